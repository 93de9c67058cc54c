"""The plan of a folder of results: what launches write, and all others read."""

import json
import multiprocessing
import re
import shlex
import shutil
from dataclasses import replace

import pytest
from commands import lora
from own_tasks import settings as settings_of
from own_tasks import write, write_task
from synthetic import populate, write_run

from lora.cli import main
from lora.config.compose import parsed_override
from lora.config.plan import (
    LAUNCH,
    PLAN_FILE,
    Launch,
    add_to_plan,
    locked,
    planned_tasks,
    read_launch,
    read_plan,
    write_plan,
)
from lora.config.select import filter_runs, parse_words
from lora.errors import UserError
from lora.files import ROOT, write_atomically
from lora.records.record import adapter_path, load_records, record_path, write_record
from lora.report.build import build_report
from lora.sweep.pool import LIBRARIES
from lora.sweep.request import select_runs

ASKED = ["experiment=glue_table2", "task=reviews", "rates=null"]


def ids(runs):
    return {run.run_id for run in runs}


def test_a_plan_gives_back_the_runs_that_were_added_and_holds_no_path(tiny_overrides, tmp_path):
    own = f"task={write_task(tmp_path / 'data')}"
    runs = select_runs("small", [*tiny_overrides[1:], "experiment=null", "seed=1,2", "method=lora,vera"])
    runs += select_runs("own", [own, "experiment=own_task", "method=full", "seed=1", "train.precision=fp32"])
    runs += select_runs("small", ["experiment=mnli_start", "task=rte", "seed=1", "train.precision=fp32"])
    add_to_plan(tmp_path / "results", runs)
    plan = read_plan(tmp_path / "results")
    assert not plan.problems and plan.runs.keys() == ids(runs)
    for run in runs:
        again = plan.runs[run.run_id]
        assert again.config.settings() == run.config.settings()
        assert (again.experiments, again.options, again.stated) == (run.experiments, run.options, run.stated)
        assert again.config.runtime.save_adapter == run.config.runtime.save_adapter
        assert again.task == replace(run.task, folder=None)
    assert {run.parent for run in runs if run.start == "mnli"} <= plan.runs.keys()
    text = (tmp_path / "results" / PLAN_FILE).read_text()
    assert str(tmp_path) not in text and text == json.dumps(json.loads(text), sort_keys=True, indent=0) + "\n"
    add_to_plan(tmp_path / "results", [])
    assert (tmp_path / "results" / PLAN_FILE).read_text() == text


def launch(folder, seeds):
    add_to_plan(folder, select_runs("mini", [*ASKED, "method=lora", f"seed={seeds}", "train.precision=fp32"]))


def test_launches_at_once_end_with_the_union(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, "lora.sweep.request"])
    launches = [context.Process(target=launch, args=(tmp_path, f"{i},{i + 1}")) for i in range(1, 5)]
    for process in launches:
        process.start()
    for process in launches:
        process.join()
        assert process.exitcode == 0
    assert {run.seed for run in read_plan(tmp_path).runs.values()} == {1, 2, 3, 4, 5}


def test_another_rate_or_row_replaces_a_run_and_another_value_does_not(tmp_path):
    """The replaced run is never missing, and its record stands under "Other runs"."""
    folder, asked = tmp_path / "mini", [*ASKED, "method=lora", "seed=1", "train.precision=fp32"]
    (old,) = populate(folder, "mini", asked)
    rate = 2 * old.config.train.lr
    tuned = replace(old, config=replace(old.config, train=replace(old.config.train, lr=rate)))
    add_to_plan(folder, [tuned])
    plan = read_plan(folder).runs
    assert (plan[old.run_id].experiments, plan[tuned.run_id].experiments) == ((), ("glue_table2",))
    report = build_report("mini", [], tmp_path)
    assert [run.run_id for run in report.state.missing] == [tuned.run_id]
    assert {run.run_id: run.experiment for run in report.gathered.runs.itertuples()} == {
        old.run_id: "own",
        tuned.run_id: "glue_table2",
    }
    add_to_plan(folder, [old])
    assert read_plan(folder).runs[tuned.run_id].experiments == ()
    add_to_plan(folder, select_runs("mini", [*asked, "train.epochs=5"]))
    assert sum(run.experiments == ("glue_table2",) for run in read_plan(folder).runs.values()) == 2


def test_a_run_of_a_grid_stays_in_the_table_of_all_methods(tmp_path):
    """Unless the grid is one that compares methods, and shows it there."""
    asked = ["task=ratings", "method=lora", "seed=1", "train.precision=fp32"]
    for grids, known in (([], ("adhoc",)), (["lora_ranks"], ("adhoc", "lora_ranks")), (["glue_table2"], None)):
        words = [f"experiment={','.join(grids) or 'null'}", *asked, *["method.rank=8"] * (grids == ["lora_ranks"])]
        (run,) = add_to_plan(tmp_path, select_runs("mini", words)).runs.values()
        assert known in (None, run.experiments)
    assert set(run.experiments) == {"lora_ranks", "glue_table2"}


def test_an_adapter_that_was_asked_for_once_stays_asked_for(tmp_path):
    asked = [*ASKED, "method=lora", "seed=1", "train.precision=fp32"]
    for more in (["runtime.save_adapter=true"], []):
        add_to_plan(tmp_path, select_runs("mini", [*asked, *more]))
        (run,) = read_plan(tmp_path).runs.values()
        assert run.config.runtime.save_adapter


def test_a_folder_without_a_plan_is_read_by_its_records_and_adopted(tmp_path):
    runs = select_runs("mini", [*ASKED, "method=lora,full", "seed=1,2", "train.precision=bf16"])
    for run in runs:
        write_run(tmp_path / "mini", run, 0.7)
    assert not (tmp_path / "mini" / PLAN_FILE).exists()
    (table,) = [table for table in build_report("mini", [], tmp_path).tables if table.name == "table2"]
    assert table.cells["Seeds"].tolist() == ["2", "2"]
    launched = [*ASKED, "method=bitfit", "seed=1", f"runtime.results={tmp_path}/mini"]
    (new,) = select_runs("mini", launched)
    assert new.config.train.precision == "bf16", "as the records of the encoder"
    add_to_plan(tmp_path / "mini", [new])
    assert read_plan(tmp_path / "mini").runs.keys() == ids([*runs, new])
    asked = [*ASKED, "method=lora", "seed=1", "train.precision=bf16", "method.rank=4"]
    add_to_plan(tmp_path / "mini", select_runs("mini", asked))
    assert all(run.experiments for run in read_plan(tmp_path / "mini").runs.values()), "none of them is replaced"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: "{", "is not readable JSON"),
        (lambda plan: plan | {"schema": 2}, "has schema 2, and this version reads schema 1"),
        (lambda plan: plan | {"runs": []}, "is not a plan: runs must be a mapping"),
    ],
)
def test_a_file_that_is_no_plan_is_one_message_and_stays_as_it_is(change, message, tmp_path):
    runs = populate(tmp_path / "mini", "mini", [*ASKED, "method=lora", "seed=1"])
    path = tmp_path / "mini" / PLAN_FILE
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    before = path.read_bytes()
    for action in (lambda: add_to_plan(tmp_path / "mini", runs), lambda: build_report("mini", [], tmp_path)):
        with pytest.raises(UserError, match=re.escape(message)):
            action()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiments": ["no_such"]}, "experiment 'no_such' does not exist"),
        ({"group": "0"}, "group '0' does not exist"),
        ({"seed": 7}, "its settings give the name minilm.lora-qv-r8.reviews.s7-"),
        ({"seed": -1}, "seed must be in"),
        ({"run_id": "../../elsewhere"}, "'../../elsewhere': its settings give the name"),
    ],
)
def test_a_broken_entry_is_left_out_of_a_report_and_stops_a_launch(changes, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "mini"
    runs = populate(folder, "mini", [*ASKED, "method=lora", "seed=1,2"])
    content = json.loads((folder / PLAN_FILE).read_text())
    entry = content["runs"].pop(runs[0].run_id) | changes
    content["runs"][entry.pop("run_id", runs[0].run_id)] = entry
    (folder / PLAN_FILE).write_text(json.dumps(content))
    before = (folder / PLAN_FILE).read_bytes()
    assert main(["report", "mini"]) == 1
    shown = capsys.readouterr()
    assert message in shown.out and runs[0].run_id in shown.out and "Traceback" not in shown.err
    assert read_plan(folder).runs.keys() == {runs[1].run_id}
    with pytest.raises(UserError, match=re.escape(message)):
        add_to_plan(folder, runs)
    assert (folder / PLAN_FILE).read_bytes() == before


def overrides_of_the_readmes():
    """Every setting=value in the code of the READMEs."""
    texts = [path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/README.md")]]
    code = [piece for text in texts for piece in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)]
    words = [word for piece in code for word in re.findall(r"(?<![\w.-])[a-z_]+(?:\.[a-z_]+)*=[^\s`\"]+", piece)]
    return sorted({word for word in words if not re.search(r"[A-Z]{3}|\.\.\.|[()<>]|=~|://|\$", word)})


def test_words_are_read_as_hydra_reads_them():
    words = overrides_of_the_readmes()
    assert len(words) > 60
    for word in [*words, "a=1e-3,0.001", "a='x,y',z", "a=[q,[k,v]]", "a={r: 4, b: [1,2]}", "a=null", "a=-.5", "a=1_0"]:
        try:
            parsed = parsed_override(word)
        except UserError:
            continue
        theirs = [*parsed.sweep_iterator()] if parsed.is_sweep_override() else [parsed.value()]
        (ours,) = parse_words([word]).values()
        assert ours == [getattr(value, "text", value) for value in theirs], word


def test_settings_select_by_value_and_places_do_not(tmp_path):
    runs = populate(tmp_path, "mini", ["experiment=glue_table2,lora_ranks", "rates=null"])
    planned = [*read_plan(tmp_path).runs.values()]
    rate = {f"{run.config.train.lr:e}" for run in runs if run.method == "full"}.pop()
    for words, chosen in (
        (["data.path=/nowhere", "runtime.outputs=/x", "launcher=slurm", "rates=null"], lambda run: True),
        (["data.max_length=128"], lambda run: run.config.data.max_length == 128),
        (["method=lora", "seed=1,2"], lambda run: run.method == "lora" and run.seed in (1, 2)),
        ([f"train.lr={rate}"], lambda run: f"{run.config.train.lr:e}" == rate),
        (["method.targets=[q,v]"], lambda run: getattr(run.config.method, "targets", ()) == ("q", "v")),
        (["experiment=lora_ranks"], lambda run: "lora_ranks" in run.experiments),
        (["experiment=null", "task=ratings"], lambda run: run.task.name == "ratings"),
    ):
        assert ids(filter_runs(planned, words)) == ids(filter(chosen, runs)) != set(), words
    with pytest.raises(UserError, match=r"no planned run has a setting method\.rnak; did you mean method\.rank\?"):
        filter_runs(planned, ["method.rnak=4"])


def test_status_and_report_need_no_word_of_the_launch(model_dir, tmp_path, monkeypatch):
    """In another folder, after the results were moved, with tasks from two folders."""
    tasks = [write(tmp_path / name, 40, 20) for name in ("one", "two")]
    tasks[1] = tasks[1].rename(tasks[1].with_name("other.yaml"))
    monkeypatch.chdir(tmp_path)
    for task in tasks:
        asked = ("-m", "experiment=null", f"task={task}", "method=bitfit", "seed=1", *settings_of(model_dir))
        assert lora(*asked).returncode == 0
    shutil.copytree(tmp_path / "results", tmp_path / "elsewhere" / "results")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lora("status", "own").stdout.startswith("profile own: 2 runs: 2 done")
    reported = lora("report", "own")
    names = {run.task.name for run in read_plan("results/own").runs.values()}
    assert reported.returncode == 0 and len(names) == 2 and all(name in reported.stdout for name in names)
    assert f"seed=9 model=local model.path={model_dir} trains them" in lora("status", "own", "seed=9").stderr
    short = f"task={tasks[0].stem}"  # without the digits of its definition
    shown = lora("status", "own", short, "seed=9").stderr
    command = shlex.split(shown.partition(": ")[2].partition(" trains them")[0].rpartition(": ")[2])[3:]
    assert lora(*command, "experiment=null", "method=bitfit", *settings_of(model_dir)).returncode == 0
    assert {task.folder for task in planned_tasks("results/own").values()} == {path.parent for path in tasks}
    assert "reviews" not in lora("status", "own", "task=reviews").stdout
    assert lora("status", "own", f"task={tasks[0]}").stdout.startswith("profile own: 2 runs: 2 done")
    (tasks[0].parent / "dev.csv").unlink()  # the definition is in the plan, and a table needs no rows
    assert lora("report", "own", f"task={tasks[0]}").returncode == 0


def test_records_of_a_task_that_no_plan_defines_are_named_and_no_refused_command_is_advised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, folder = write_task(tmp_path / "data"), tmp_path / "results" / "own"
    assert lora("report", "own").stderr.endswith(": a task of profile own is a file of yours, task=FILE\n")
    asked = [f"task={task}", "experiment=own_task", "method=lora", "seed=1", "train.precision=fp32"]
    (run,) = populate(folder, "own", asked)
    for word, advice in (("task=cola", "a task of profile own is"), ("method=bitfit", ".* -m profile=own method=b")):
        assert re.search(f"none of the 1 runs of results/own has {word}: {advice}", lora("report", "own", word).stderr)
    for command in (["report", "own"], ["status", "own"], ["status", "small"], ["-m", "profile=small"]):
        for key in ("task", "method"):
            assert f"error: {key} must be one of " in lora(*command, f"{key}=no_such").stderr
    (folder / PLAN_FILE).unlink()
    for command in ("report", "status"):
        message = f"{run.run_id} is of task '{run.task.name}', not defined here: launch it with task=FILE"
        assert message in lora(command, "own").stderr


def test_status_of_a_profile_that_was_never_launched_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["status", "mini"])
    shown = capsys.readouterr().out
    assert "never launched: " in shown and "66 waiting" in shown and not list(tmp_path.iterdir())
    command = re.search(r"never launched: (.*) trains", shown)[1]
    assert shlex.split(command)[1:] == ["-m", "lora", "-m", "profile=mini"]
    populate(tmp_path / "results" / "mini", "mini", ["method=full", "rates=null"])
    main(["status", "mini"])
    assert "more runs, which no launch has asked for" in capsys.readouterr().out
    populate(tmp_path / "results" / "own_encoder", "mini", [*ASKED, "model=mpnet_base", "method=lora", "seed=1"])
    main(["status", "mini", "runtime.results=results/own_encoder"])
    assert "which no launch has asked for" not in capsys.readouterr().out, "of another encoder"
    (other,) = select_runs("mini", [*ASKED, "method=bitfit", "seed=1"])
    write_run(tmp_path / "results" / "mini", other, 0.5)
    main(["status", "mini"])
    assert "1 other record in results/mini, which no launch asks for now" in capsys.readouterr().out


def test_status_as_json_names_every_run(tmp_path, capsys):
    runs = populate(tmp_path, "mini", [*ASKED, "method=lora", "seed=1,2"])
    record_path(tmp_path, runs[0].run_id).unlink()
    main(["status", "mini", f"runtime.results={tmp_path}", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert [content["runs"][run.run_id]["state"] for run in runs] == ["waiting", "done"]


def test_unfinished_runs_are_forgotten_and_with_records_finished_ones_too(tmp_path, capsys):
    runs = populate(tmp_path, "mini", [*ASKED, "method=lora", "seed=1,2,3"], predictions=True)
    failed = replace(load_records(tmp_path)[0][0], status="failed", error="broken weights")
    write_record(tmp_path, failed)
    where = f"runtime.results={tmp_path}"
    main(["status", "mini", where, "--forget"])
    assert f"forgotten: {failed.run_id}" in capsys.readouterr().out
    left = ids(runs) - {failed.run_id}
    assert read_plan(tmp_path).runs.keys() == left == {record.run_id for record in load_records(tmp_path)[0]}
    (tmp_path / "rates.yaml").write_text("rates: []")
    main(["status", "mini", where, "seed=2", "--forget", "--records"])
    assert f"{tmp_path}/rates.yaml still has the tuned rates" in capsys.readouterr().out
    left = {run.run_id for run in runs if run.run_id in left and run.seed != 2}
    assert read_plan(tmp_path).runs.keys() == left == {record.run_id for record in load_records(tmp_path)[0]}
    assert {path.stem for path in (tmp_path / "predictions").iterdir()} == left


def test_forget_leaves_a_record_that_it_cannot_read_and_says_what_it_cannot_remove(tmp_path, capsys):
    """Such as one of a newer version, whose run may be finished."""
    (run,) = populate(tmp_path, "mini", [*ASKED, "method=lora", "seed=1"], predictions=True)
    path, where = record_path(tmp_path, run.run_id), f"runtime.results={tmp_path}"
    newer = path.read_text().replace('"schema": 3', '"schema": 4')
    path.write_text(newer)
    assert main(["status", "mini", where]) == 0 and f"left out: {path} has record schema 4" in capsys.readouterr().err
    assert main(["status", "mini", where, "--forget"]) == 0
    assert "0 runs forgotten, 1 run left of those selected (--records" in capsys.readouterr().out
    assert path.read_text() == newer and read_plan(tmp_path).runs.keys() == {run.run_id}
    predictions = tmp_path / "predictions" / f"{run.run_id}.safetensors"
    predictions.unlink()
    predictions.mkdir()  # cannot be unlinked, even by root
    assert main(["status", "mini", where, "--forget", "--records"]) == 2
    shown = capsys.readouterr()
    assert f"error: cannot forget {run.run_id}: " in shown.err and "forgotten: " not in shown.out


def test_forget_takes_no_more_than_what_is_selected(tmp_path, capsys):
    runs = populate(tmp_path / "mini", "mini", ["experiment=null", "task=reviews", "method=lora,dora", "seed=1"])
    where = f"runtime.results={tmp_path}/mini"
    adapter = adapter_path(tmp_path / "mini" / "outputs", runs[0].run_id)
    write_atomically(adapter, b"")
    for words, message in (
        (["rates=null"], "rates= selects no runs, and --forget removes what is selected"),
        (["data.path=/x"], "data.path= selects no runs"),
        (["experiment=null"], "experiment= selects no runs"),
        (["data.max_length=99"], " data.max_length=99: nothing was removed"),
    ):
        main(["status", "mini", where, *words, "--forget", "--records"])
        shown = capsys.readouterr()
        assert message in shown.err + shown.out and len(load_records(tmp_path / "mini")[0]) == 2
    shutil.copytree(tmp_path / "mini", tmp_path / "copy")
    main(["status", "mini", f"runtime.results={tmp_path}/copy", "--forget", "--records"])
    assert adapter.exists() and not load_records(tmp_path / "copy")[0]
    main(["status", "mini", where, "method=lora", "--forget", "--records"])
    (left,) = load_records(tmp_path / "mini")[0]
    assert left.config["method"]["dora"]
    assert main(["status", "reference/mini", "--forget"]) == 2


def test_what_another_experiment_asks_for_too_is_not_forgotten_with_one(tmp_path, capsys):
    runs = populate(tmp_path, "mini", ["experiment=lora_targets,lora_ranks", "task=reviews", "seed=1,2"])
    both = {run.run_id for run in runs if {*run.experiments} == {"lora_targets", "lora_ranks"}}
    alone = {run.run_id for run in runs if run.experiments == ("lora_targets",)}
    assert both and alone
    where = f"runtime.results={tmp_path}"
    main(["status", "mini", where, "experiment=lora_targets", "--forget", "--records"])
    assert capsys.readouterr().out.count("stays for lora_ranks") == len(both)
    left = read_plan(tmp_path).runs
    assert left.keys() == ids(runs) - alone == {record.run_id for record in load_records(tmp_path)[0]}
    assert {run.experiments for run in left.values()} == {("lora_ranks",)}
    replaced = min(left)
    with locked(tmp_path) as plan:
        write_plan(tmp_path, replace(plan, runs=left | {replaced: replace(left[replaced], experiments=())}))
    main(["status", "mini", where, "experiment=lora_ranks", "--forget", "--records"])
    assert read_plan(tmp_path).runs.keys() == {replaced}, "no experiment asks for it"


def test_a_launch_file_of_other_types_is_as_none(tmp_path):
    runs = populate(tmp_path, "mini", [*ASKED, "method=lora", "seed=1"])
    for content in ({"tasks": {"x": 7}}, {"tasks": []}, {"outputs": ["a"]}, []):
        (tmp_path / LAUNCH).write_text(json.dumps(content))
        assert read_launch(tmp_path) == Launch()
    add_to_plan(tmp_path, runs)
    assert read_launch(tmp_path).results == str(tmp_path)


@pytest.mark.parametrize("profile", ["base", "decide", "long", "mini", "small"])
def test_the_plans_of_the_reference_are_those_of_grids_and_records(profile):
    """Which runs an experiment has, by its grid, in the precision of the records."""
    folder = ROOT / "results" / "reference" / profile
    plan, records = read_plan(folder), load_records(folder)[0]
    assert plan.runs.keys() == {record.run_id for record in records}
    named = {name for run in plan.runs.values() for name in run.experiments}
    (precision,) = {run.config.train.precision for run in plan.runs.values()}
    for name in named:
        asked = [f"experiment={name}", "rates=null", f"train.precision={precision}", "model.attention=eager"]
        kernels = [f"train.kernels={one}" for one in {run.config.train.kernels for run in plan.runs.values()}]
        grid = select_runs(profile, asked + kernels * (len(kernels) == 1))
        assert ids(grid) == ids(run for run in plan.runs.values() if name in run.experiments), name
