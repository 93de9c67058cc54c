"""Reports of a user's own folder: own tasks, tuned rates, another folder, and broken records."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from cells import record
from own_tasks import write_csv, write_task
from scipy import stats
from synthetic import populate, write_run

from lora.cli import main
from lora.config.compose import compose_run
from lora.config.plan import add_to_plan, read_plan
from lora.config.rates import TUNING, Rate, write_rates
from lora.files import ROOT, write_atomically
from lora.records.analysis import EXAMPLES, OWN_ROWS, Analyses, analysis_json, comparison_key
from lora.records.record import write_record
from lora.report.analyses.dev_intervals import comparisons
from lora.report.build import build_report
from lora.report.command import print_sweep
from lora.report.comparisons import answers, pairs_table
from lora.report.labels import setting_labels
from lora.report.page import page
from lora.report.rates import origins_of, rates_table
from lora.report.runs import facts_of
from lora.report.stats import all_pairs
from lora.report.terminal import markdown_report
from lora.sweep.request import check_tuning, select_runs

BASELINES = ("Most frequent class", "TF-IDF, logistic regression")
FIXED = ["train.precision=fp32", "train.kernels=stock"]


def of_method(**scores):
    """The score of a run by its method and seed."""
    return lambda run: scores[run.method] + 0.01 * run.seed * (run.method == "lora")


def tuned(folder, task, rates, method="lora"):
    """Records of tuning runs on seed 0."""
    for number, rate in enumerate(rates):
        (run,) = select_runs(
            "own", [f"task={task}", f"method={method}", "seed=0", f"train.lr={rate}", "experiment=own_task", *FIXED]
        )
        record = write_run(folder, run, 0.5 + number / 100)
        group = {**record.config, "runtime": {**record.config["runtime"], "group": "tune"}}
        write_record(folder, dataclasses.replace(record, config=group))


@pytest.fixture
def moods(tmp_path):
    """A task of one's own with runs of LoRA and full fine-tuning on five seeds."""
    task = write_task(tmp_path / "data")
    asked = [f"task={task}", "method=full,lora", "seed=1,2,3,4,5", "experiment=own_task", *FIXED]
    populate(tmp_path / "own", "own", asked, of_method(full=0.70, lora=0.71))
    return tmp_path, asked


def test_a_task_of_ones_own_gets_an_answer(moods):
    folder, asked = moods
    report = build_report("own", asked, folder)
    values = 1.0 + np.arange(1, 6)  # LoRA minus full, in points
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    (line,) = report.answers
    assert line.endswith(f"{values.mean():+.1f} ({low:+.1f} to {high:+.1f}), n = 5: higher") and low > 0
    assert markdown_report(report).startswith(f"# Which method is better\n\n- {line}\n")
    shown = page(report, dict.fromkeys(report.figures, b"<svg/>"))
    assert line in shown and shown.index(line) < shown.index("<table")


def test_what_a_command_states_for_some_methods_alone_is_named_and_other_rows_or_lengths_are_not_compared(moods):
    folder, (task, _, *more) = moods
    for words in (
        ["method=dora", "train.class_weights=balanced"],
        ["method=bitfit", "data.max_length=16"],
        ["method=houlsby", "data.train_rows=3", "data.train_draw=seed"],
        ["method=pfeiffer", "data.train_rows=3"],
        ["method=lora", "method.init_a=pissa"],
    ):
        populate(folder / "own", "own", [task, *words, *more])
    report = build_report("own", [task], folder)
    (table,) = (table for table in report.tables if table.name == "table2_own")
    names = {name.partition(", ")[0]: name for name in table.cells["Method"].str.replace(", r8", " r8")}
    assert "init_a" not in names["PiSSA (qv r8)"], "its name says so already"
    assert "class_weights=balanced" in names["DoRA (qv r8)"] and "class_weights" not in names["Full fine-tuning"]
    assert "max_length=16" in names["BitFit"] and "max_length=128" in names["Full fine-tuning"]
    assert [name for name in names.values() if "train_draw=seed" in name] == [names["Houlsby adapters (m8)"]]
    pairs = [line.partition(", moods")[0] for line in report.answers]
    assert len(pairs) == 6 and not any(name in pair for pair in pairs for name in ("BitFit", "Houlsby", "Pfeiffer"))


def test_a_run_at_the_rate_that_was_chosen_on_its_seed_stands_apart(moods):
    """Tuned after or before it was in the table; tune leaves how the table's run was asked for."""
    folder, asked = moods
    task, *_ = asked
    populate(folder / "own", "own", [*asked, "seed=6,7"], of_method(full=0.70, lora=0.71))
    (tried,) = select_runs("own", [task, "method=lora", "seed=6", "train.lr=0.001", "experiment=own_task", *FIXED])
    add_to_plan(folder / "own", [dataclasses.replace(tried, experiments=(TUNING,))])
    assert read_plan(folder / "own").runs[tried.run_id].config.runtime.rate_from == "default"
    rate = Rate(tried.model, tried.config.protocol, tried.task.name, "lora", 1e-3, (6, 9), {1e-3: 0.5, 1e-2: 0.4})
    write_rates(folder / "own" / "rates.yaml", [rate])
    populate(folder / "own", "own", [task, "method=lora", "seed=9", "rates=null", "experiment=own_task", *FIXED])
    report = build_report("own", [task], folder)
    tables = {table.name: table for table in report.tables}
    assert tables["table2_own"].values["Seeds"].map(str).tolist() == ["7", "6"]
    assert tables["own_own"].values["Seeds"].map(str).tolist() == ["2"]
    assert any("chosen on its seed" in line for line in tables["own_own"].notes) and not tables["own_own"].banner
    write_rates(folder / "own" / "rates.yaml", [dataclasses.replace(rate, lr=1e-2)])
    tables = {table.name: table for table in build_report("own", [task], folder).tables}
    assert not any("chosen on its seed" in line for table in tables.values() for line in table.notes)


def test_without_a_plan_runs_of_other_epochs_are_not_compared(tmp_path):
    asked = [f"task={write_task(tmp_path / 'data')}", "seed=1,2,3,4,5", "experiment=own_task", *FIXED]
    for words in (["method=full"], ["method=lora", "train.epochs=1"]):
        populate(tmp_path / "own", "own", [*asked, *words], of_method(full=0.70, lora=0.71))
    (tmp_path / "own" / "plan.json").unlink()
    report = build_report("own", asked[:1], tmp_path)
    (table,) = (table for table in report.tables if table.name == "table2_own")
    assert table.cells["Method"].tolist() == ["Full fine-tuning, epochs=10", "LoRA (qv, r8), epochs=1"]
    assert report.answers == ()


def test_costs_of_two_kernels_stand_in_lines_of_their_own(tmp_path):
    asked = [f"task={write_task(tmp_path / 'data')}", "experiment=own_task", "train.precision=fp32", "method=lora"]
    for kernels in ("fused", "stock"):
        populate(tmp_path / "own", "own", [*asked, f"train.kernels={kernels}", "seed=1"])
    (table,) = (table for table in build_report("own", asked[:1], tmp_path).tables if table.name == "costs_own")
    assert table.cells["Kernels"].tolist() == ["fused", "stock"] and "Precision" not in table.cells


def test_the_readmes_task_gives_the_output_that_the_readme_shows(tmp_path, monkeypatch, capsys):
    """Numbers follow the machine and are compared by their form; the rows and the words are not."""
    section = (ROOT / "README.md").read_text().partition("## Your own data")[2].partition("\n## ")[0]
    stated, _, shown, _ = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_task.yaml").write_text(stated)
    for split in ("train", "dev"):
        write_csv(tmp_path / f"{split}.csv", [("good", "positive"), ("bad", "negative")], ("text", "label"))
    tried, rates = {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.4}, tmp_path / "rates.yaml"
    asked = [f"task={tmp_path}/my_task.yaml", f"rates={rates}", "experiment=own_task", "seed=1,2,3,4,5", *FIXED]
    one = compose_run([asked[0], "profile=own", "rates=null"])
    names = (one.model.name, one.protocol, one.task)
    write_rates(rates, [Rate(*names, method, 3e-3, (0,), tried) for method in ("full", "houlsby", "lora")])
    points = {"full": [0] * 5, "lora": [-3, 1, -2, 2, -3], "houlsby": [-4, 2, -1, -3, 0]}
    populate(tmp_path / "own", "own", asked, lambda run: 0.835 + points[run.method][run.seed - 1] / 100)
    report, ends = build_report("own", asked, tmp_path), {"examples_low": -4.0, "examples_high": 4.0}
    ends |= {"tasks": [one.task], "both_low": -4.0, "both_high": 4.0}
    pairs = [{"pairs": sorted(runs), "score": score, **ends} for runs, score in comparisons(report)]
    lines = [{"name": name, "value": 50.0, "low": 43.0, "high": 57.0} for name in BASELINES]
    rows = {
        "task": one.task,
        "rows": [200, 200],
        "classes": {},
        "repeated": 0,
        "relabelled": 0,
        "leaked": {},
        "runs": {},
        "on": "",
    }
    made = {run_id: record.scored for run_id, record in report.state.ok.items()}
    for file, entries in ((EXAMPLES, pairs), (OWN_ROWS, [rows | {"baselines": lines, "methods": []}])):
        write_atomically(tmp_path / "own" / "analysis" / file, analysis_json(made, entries))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "125")
    print_sweep("own", [f"runtime.results={tmp_path / 'own'}", asked[1]], brief=True)

    def form(text: str) -> str:
        plain = re.sub(r"-[0-9a-f]{6}\b|[─\s]+", " ", re.sub(r"\x1b\[[\d;]*m", "", text))
        return re.sub(r"[+-]?\d+(\.\d+)?[kM]?", "0", re.sub(r" +", " ", plain)).strip()

    printed, (table, *answers_shown) = form(capsys.readouterr().out), map(form, shown.split("•"))
    assert len(answers_shown) == 3 and table in printed
    assert all(f"• {answer}" in printed for answer in answers_shown)


def pairs_of(**scores) -> pd.DataFrame:
    """The differences of methods on RTE: name -> its score on each seed. A run is called by method and seed."""
    rows = {"task": "rte", "device": "a CPU", "terms": ""}
    groups = {
        name: pd.DataFrame([{**rows, "seed": i, "run_id": f"{name}{i}", "best": best} for i, best in enumerate(values)])
        for name, values in scores.items()
    }
    return all_pairs(groups).assign(model="minilm", place="RTE")


NONE_COLLAPSED = pd.DataFrame({"run_id": ["A0"], "collapsed": [0]})
CLEAR = {"A": [0.5, 0.51, 0.5, 0.52, 0.5], "B": [0.6, 0.6, 0.61, 0.6, 0.6]}


def test_an_undecided_answer_says_how_many_seeds_would_tell():
    values = np.array([3.0, -2.0, 1.0])
    (line,) = answers(pairs_of(A=[0.5] * 3, B=0.5 + values / 100), Analyses(), {}, NONE_COLLAPSED)
    mean, std = values.mean(), values.std(ddof=1)

    def power(n):
        return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, mean * np.sqrt(n) / std)

    n = next(n for n in range(5, 300) if power(n) >= 0.8)
    assert line.startswith("B - A, RTE: +0.7 (") and f"about {n} seeds" in line and "at least 5 seeds" in line


def test_an_answer_names_collapsed_runs_and_equal_differences():
    half = pd.DataFrame({"run_id": [f"{name}{seed}" for name in "ABC" for seed in range(6)], "collapsed": [1, 0] * 9})
    (line,) = answers(pairs_of(**CLEAR), Analyses(), {}, half)
    assert line.endswith("n = 5: higher (6 of 10 runs collapsed)")
    (line,) = answers(pairs_of(A=[0.5] * 5, B=[0.5] * 5), Analyses(), {}, NONE_COLLAPSED)
    assert line.endswith("undecided; the same on every seed, which gives no interval")


def test_intervals_for_other_rows_are_those_of_the_same_runs_and_qualify_the_answer():
    pairs = pairs_of(**CLEAR).assign(p_holm=1.0)
    same = [(f"B{seed}", f"A{seed}") for seed in range(5)]
    for runs, low, shown, word in (
        (same, 1.0, "+1.0 to +12.0", "higher"),
        (same, -1.0, "-1.0 to +12.0", "higher on these dev rows"),
        (same[1:], -1.0, "-", "higher"),
    ):
        ends = {"examples_low": low, "examples_high": 12.0, "both_low": low, "both_high": 12.0}
        found = Analyses({comparison_key(runs, "best"): ends})
        assert pairs_table(pairs, found)["... over both"].map(str).tolist() == [shown]
        (line,) = answers(pairs, found, {}, NONE_COLLAPSED)
        assert line.endswith(f"n = 5: {word}")


def test_methods_are_judged_only_if_their_rates_were_chosen_alike():
    refused = "not judged, because their learning rates were not chosen"
    for of_a, of_b, word in (
        ("tuned, of 3 values", "tuned, of 3 values", "higher"),
        ("untuned", "untuned", "higher"),
        ("tuned, of 3 values", "untuned", f"{refused} alike: untuned and tuned, of 3 values"),
        ("tuned, of 7 values", "tuned, of 3 values", f"{refused} alike: tuned, of 3 values and tuned, of 7 values"),
    ):
        origins = {f"{name}{seed}": origin for name, origin in (("A", of_a), ("B", of_b)) for seed in range(5)}
        (line,) = answers(pairs_of(**CLEAR), Analyses(), origins, NONE_COLLAPSED)
        assert line.endswith(f"n = 5: {word}")


def test_how_a_rate_was_chosen_follows_from_the_plan_and_the_file():
    """A file has a rate per number of train rows; the nearest is the run's."""
    about = {"model": "minilm", "protocol": "ours", "task": "rte", "rate_name": "lora", "train_rows": 2490}
    runs = pd.DataFrame(
        {**about, "whole_rows": 2490, "run_id": [*"abcdef"], "lr": [1e-3, 1e-3, 2e-3, 1e-3, 2e-3, 1e-3]}
    )
    runs = runs.assign(rate_from=["tuned", "conf", "tuned", "stated", "default", "tuned"])
    runs.loc[5, "train_rows"] = 90
    rate = Rate("minilm", "ours", "rte", "lora", 1e-3, (0,), {1e-3: 0.5, 2e-3: 0.4, 3e-3: 0.1})
    on_100 = dataclasses.replace(rate, train_rows=100, tried={1e-3: 0.5, 2e-3: 0.4})
    found = {"a": "tuned, of 3 values", "b": "tuned, of 3 values", "c": "tuned", "e": "untuned"}
    assert origins_of(runs, [rate, on_100]) == found | {"f": "tuned, of 2 values, at 100 rows"}


def test_a_default_rate_that_tune_finds_best_is_tuned_and_stays_so_without_the_file(moods):
    """Its runs are not trained again, and their records say how they were first asked for."""
    folder, asked = moods
    path, one = folder / "own" / "rates.yaml", compose_run([asked[0], "profile=own", "method=full", "rates=null"])
    rate = Rate(one.model.name, one.protocol, one.task, "full", one.train.lr, (0,), {one.train.lr: 0.6, 1: 0.5, 2: 0.1})
    write_rates(path, [rate, dataclasses.replace(rate, method="lora", lr=2)])
    runs = select_runs("own", [*asked, f"rates={path}"])
    check_tuning(runs, path)
    add_to_plan(folder / "own", runs)
    for run in (run for run in runs if run.method == "lora"):
        write_run(folder / "own", run, 0.71 + 0.01 * run.seed)
    for chosen in ("tuned, of 3", "tuned"):
        report = build_report("own", asked[1:2], folder)
        assert report.answers[0].endswith("n = 5: higher")
        (rates,) = (table for table in report.tables if table.name == "rates_own")
        assert [text.removesuffix(", at the edge") for text in rates.cells["Chosen"]] == [chosen, chosen]
        path.unlink(missing_ok=True)


def test_two_tasks_of_ones_own_get_an_answer_each_and_no_average(moods):
    folder, asked = moods
    other = write_task(folder / "data", "scores", metric="f1")
    of_other = [f"task={other}", *asked[1:]]
    populate(folder / "own", "own", of_other, of_method(full=0.70, lora=0.60))
    both = build_report("own", [f"task={asked[0].partition('=')[2]},{other}", *asked[1:]], folder)
    assert [("moods-" in line, "scores-" in line, line.rpartition(": ")[2]) for line in both.answers] == [
        (True, False, "higher"),
        (False, True, "lower"),
    ]
    assert all("Avg." not in set(table.cells.astype(str).to_numpy().ravel()) | {*table.cells} for table in both.tables)
    assert len(both.figures["parameters_own"]["panels"]) == 2
    (line,) = build_report("own", of_other, folder).answers
    assert "scores-" in line
    assert build_report("own", ["task=scores"], folder).answers == (line,), "the digits may be left out"


def test_scores_on_different_numbers_of_train_rows_are_told_apart():
    asked = ["experiment=null", "task=cola", "seed=1", "rates=null"]
    runs = [*select_runs("small", [*asked, "method=full,lora"])]
    runs += select_runs("small", [*asked, "method=lora", "data.train_rows=60"])

    def words(*shown):
        frame = facts_of([("", run) for run in shown]).fillna("null")
        return set(setting_labels(frame, frame[:0]).values())

    assert words(runs[0], runs[-1]) == {"train_rows=4000", "train_rows=60"}
    assert words(*runs[:2]) == {""}


def test_untuned_rates_stand_above_the_table_and_tuning_runs_are_in_none(moods):
    folder, asked = moods
    tuned(folder / "own", asked[0].removeprefix("task="), [1e-4, 3e-4])
    tables = {table.name: table for table in build_report("own", asked, folder).tables}
    assert "Untuned rates" in tables["table2_own"].banner and set(tables["table2_own"].cells["Seeds"]) == {"5"}
    assert set(tables["rates_own"].cells["Chosen"]) == {"default, not tuned for this task"}


def test_a_report_reads_the_folder_where_it_is_typed(tmp_path, monkeypatch, capsys):
    """In an empty folder there is nothing, although the clone has results; relative folders are those of a shell."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", "mini"]) == 2
    assert "results/mini holds no finished run" in capsys.readouterr().err and not list(tmp_path.iterdir())
    asked = ["experiment=glue_table2", "method=lora", "task=reviews", "seed=1"]
    failed = {"status": "failed", "error": "it broke", "provenance": None}
    (run,) = select_runs("mini", asked)
    add_to_plan("results/mini", [run])
    write_record("results/mini", record(run.run_id, **failed))
    assert main(["report", "mini", *asked]) == 2
    command = re.search("asked for: (.*) trains them", capsys.readouterr().err)[1]
    assert shlex.split(command)[1:] == [*"-m lora -m profile=mini".split(), *asked, "runtime.retry_failed=true"]
    for folder, more in (("results/mini", []), ("elsewhere", ["runtime.results=elsewhere"])):
        populate(tmp_path / folder, "mini", asked)
        assert main(["report", "mini", *asked, *more]) == 0
        assert (tmp_path / folder / "report.html").exists()
    assert "| LoRA (qv, r8) |" in capsys.readouterr().out


def test_without_a_plan_the_tasks_file_defines_its_runs(moods, capsys):
    folder, asked = moods
    (folder / "own" / "plan.json").unlink()
    command = ["report", "own", f"runtime.results={folder}/own"]
    assert main(command) == 2 and "not defined here: launch it with task=FILE" in capsys.readouterr().err
    assert main([*command, asked[0]]) == 1
    printed, error = capsys.readouterr()
    assert "n = 5: higher" in printed and "lacks 10 of the runs of moods-" in printed + error
    assert "n = 5: higher" in (folder / "own" / "report.html").read_text()


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: content | {"selected": None},
        lambda content: content | {"config": {}},
        lambda content: content | {"epochs": [{"epoch": 1}]},
        lambda content: content | {"selected": content["selected"] | {"best": {"epoch": 1, "value": "high"}}},
        lambda content: content | {"config": content["config"] | {"train": {}}},
    ],
)
def test_a_corrupt_record_is_named_and_left_out(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["experiment=glue_table2", "method=lora", "task=reviews", "seed=1,2"]
    populate(tmp_path / "results" / "mini", "mini", asked)
    path = min((tmp_path / "results" / "mini" / "runs").glob("*.json"))
    path.write_text(json.dumps(broken(json.loads(path.read_text()))))
    assert main(["report", "mini", *asked]) == 1
    shown = capsys.readouterr()
    assert path.stem in shown.out and "(1/2)" in shown.out and "Traceback" not in shown.err


def test_a_tuned_rate_says_of_how_many_and_whether_it_is_at_the_edge(tmp_path):
    """At any rank, for a method of PEFT's too. A rate that the file no longer has was tuned, and that is all."""
    task, path, tried = write_task(tmp_path / "data"), tmp_path / "rates.yaml", {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.7}
    asked = [f"task={task}", f"rates={path}", "experiment=own_task", "seed=1", *FIXED]
    one = compose_run([asked[0], "profile=own", "method=lora", "rates=null"])

    def write(**rates):
        write_rates(path, [Rate(one.model.name, one.protocol, one.task, *rate, (0,), tried) for rate in rates.items()])

    def chosen(*more):
        tables = {table.name: table for table in build_report("own", [*asked, *more], tmp_path).tables}
        return tables["rates_own"].cells.set_index("Method")["Chosen"].to_dict()

    write(lora=3e-3, vera=1e-2)
    for more in (["method=lora,vera"], ["method=lora", "method.rank=4"]):
        populate(tmp_path / "own", "own", [*asked, *more], lambda run: 0.7)
    names = {"LoRA (qv, r8)": "tuned, of 3", "VeRA (qv, r256)": "tuned, of 3, at the edge"}
    smaller = {"LoRA (qv, r4)": "tuned, of 3"}
    assert chosen("method=lora,vera") == names | smaller
    assert chosen("method=lora", "method.rank=4") == smaller
    runs = build_report("own", [*asked, "method=lora,vera"], tmp_path).gathered.runs
    assert set(rates_table(runs, [])["Chosen"]) == {"tuned"}


def test_all_rows_are_one_run_however_they_were_asked_for(moods):
    """The task has four. Of two that are the same, a trained one stands in the table."""
    folder, asked = moods
    for rows in (4, 100):
        populate(folder / "own", "own", [*asked, f"data.train_rows={rows}"], of_method(full=0.70, lora=0.71))
    for path in sorted((folder / "own" / "runs").glob("*.lora-*.s1-*"))[:2]:
        path.unlink()
    tables = {table.name: table for table in build_report("own", [], folder).tables}
    assert tables["table2_own"].cells["Seeds"].tolist() == ["5", "5"] and "own_own" not in tables


def test_rows_say_in_what_they_differ_from_those_of_another_table(moods):
    """Runs with other settings stand under "Other runs"; a method of PEFT's on other modules is another row."""
    folder, asked = moods
    task, _, _, *same = asked
    other = [task, "method=lora", "seed=1", *same]
    targets = "method.targets=['*query'],['*value']"
    for asked_too in ([*other, "train.lr=0.05", "train.epochs=1"], [task, "method=vera", "seed=1", *same, targets]):
        for run in select_runs("own", asked_too):
            write_run(folder / "own", run, 0.6)  # not in the plan
    tables = {table.name: table for table in build_report("own", [], folder).tables}
    assert tables["table2_own"].cells["Method"].tolist() == ["Full fine-tuning", "LoRA (qv, r8)"]
    rows = tables["own_own"].cells["Method"].tolist()
    assert rows[0] == "LoRA (qv, r8), lr=0.05, epochs=1"
    assert rows[1:] == [f"VeRA (1modules, r256), targets=*{name}, epochs=10" for name in ("query", "value")]
