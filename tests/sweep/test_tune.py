"""`python -m lora tune`: the choice of a rate, its file, and the runs that use it."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import re

import numpy as np
import own_tasks
import pytest
import yaml
from cells import record
from commands import lora
from synthetic import keep_predictions, synthetic_record

from lora.cli import main
from lora.config.compose import compose_run
from lora.config.rates import Rate, read_rates, write_rates
from lora.data.metrics import LOWER
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_records, write_record
from lora.report.build import build_report
from lora.sweep import launch
from lora.sweep.request import select_runs
from lora.sweep.tune import best_rate, rate_grids

SETTINGS = ("protocol=ours", "task=ratings", "method=lora")
LR = 0.0123
EDITED = "rates: [{model: m, protocol: ours, task: t, method: lora, lr: 0.5, seeds: [0], tried: {0.1: 0.7}}]"
ONCE = EDITED.replace("0.5", "0.1")
TWICE = ONCE.replace("}]", "}, ") + ONCE.removeprefix("rates: [")


def rate(lr=LR, **changes) -> Rate:
    usual = Rate("minilm", "ours", "ratings", "lora", lr, (0,), {0.001: 0.2, lr: 0.3, 0.1: None})
    return dataclasses.replace(usual, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rates.yaml"
    write_rates(path, [rate()])
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, model_dir):
    """A tuning of two methods on a task of one's own, which the tiny encoder learns."""
    folder = tmp_path_factory.mktemp("tuned")
    settings = ["profile=own", f"task={own_tasks.write(folder / 'data', 200, 50)}", "method=full,lora"]
    settings += [*own_tasks.settings(model_dir), *own_tasks.folders(folder)]
    grid = "train.lr=1e-3,3e-3,1e30"  # the last diverges
    done = lora("tune", *settings, grid)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, settings, grid, done.stdout


def relative(folder, settings):
    return [setting.replace(f"{folder}/", "") for setting in settings]


def test_the_best_of_a_grid_is_kept_with_how_it_was_chosen(tuned):
    folder, _, _, _ = tuned
    tried: dict[str, dict[float, float | None]] = {}  # method -> rate -> score, from the records' JSON
    for path in (folder / "results" / "runs").glob("*.json"):
        record = json.loads(path.read_text())
        config = record["config"]
        assert (config["seed"], config["runtime"]["group"]) == (0, "tune")
        score = record["selected"]["best"]["value"] if record["status"] == "ok" else None
        tried.setdefault(config["method"]["name"], {})[config["train"]["lr"]] = score
    content = yaml.safe_load((folder / "results" / "rates.yaml").read_text())["rates"]
    assert [entry["method"] for entry in content] == ["full", "lora"]
    conditions = "data.max_length=32 train.batch=4 train.epochs=3"
    assert {entry["stated"] for entry in content} == {conditions}, "without lr, precision and kernels"
    for entry in content:
        scores = tried[entry["method"]]
        known = {lr: score for lr, score in scores.items() if score is not None}
        assert set(scores) == {1e-3, 3e-3, 1e30} and scores[1e30] is None
        assert entry["lr"] == max(known, key=known.get) and entry["tried"] == scores and entry["seeds"] == [0]


def test_tuning_resumes_and_ends_the_same(tuned):
    folder, settings, grid, _ = tuned
    rates = (folder / "results" / "rates.yaml").read_text()
    runs = sorted((folder / "results" / "runs").glob("*.s0-*.json"))
    gone = next(path for path in runs if json.loads(path.read_text())["config"]["train"]["lr"] == 1e-3)
    kept = {path: path.stat().st_mtime_ns for path in runs if path != gone}
    gone.unlink()
    (folder / "results" / "rates.yaml").unlink()
    with contextlib.chdir(folder):  # relative folders are those where the command is typed
        done = lora("tune", *relative(folder, settings), grid)
    assert done.returncode == 0 and "3 done, 2 failed, 1 to train" in done.stdout
    assert gone.exists() and {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (folder / "results" / "rates.yaml").read_text() == rates


def test_the_next_launch_takes_the_rates_and_no_table_has_the_runs_that_chose_them(tuned):
    folder, settings, _, _ = tuned
    rates = {one.method: one.lr for one in read_rates(folder / "results" / "rates.yaml")}
    done = lora("-m", *settings, "experiment=own_task", "seed=1")
    assert done.returncode == 0 and "tuned" in done.stdout and "ntuned" not in done.stdout, done.stderr
    with contextlib.chdir(folder):
        shown = lora("status", "own", *relative(folder, settings[1:]), "experiment=own_task", "seed=1")
        assert "2 done" in shown.stdout
    records = [record for record in load_records(folder / "results")[0] if record.config["seed"] == 1]
    assert {record.config["method"]["name"]: record.config["train"]["lr"] for record in records} == rates
    report = build_report("own", [*settings[1:], "seed=1"])
    assert not report.state.missing and not report.gathered.frame["seed"].eq(0).any()
    tries = {record.run_id for record in load_records(folder / "results")[0]} - {r.run_id for r in records}
    assert {record.run_id for record in report.gathered.tuning} == tries


def test_no_sweep_takes_the_seed_that_chose_the_rates(tuned, capsys):
    folder, settings, _, _ = tuned
    before = sorted((folder / "results").rglob("*"))
    assert main(["-m", "profile=own", *settings[1:], "experiment=null", "seed=0,1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: seed must be one on which no learning rate was chosen, got 0: the rates in ")
    assert sorted((folder / "results").rglob("*")) == before
    assert main(["status", "own", *settings[1:], "experiment=tune", "seed=0"]) == 0
    assert "own: 6 runs" in capsys.readouterr().out, "the tries are in the plan"


@pytest.mark.parametrize(
    ("tried", "best", "edge"),
    [
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.3}, 2.0, None),
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.5}, 5.0, "highest"),
        ({1.0: 0.6, 2.0: 0.4, 5.0: 0.5}, 1.0, "lowest"),
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.4}, 2.0, None),  # the lowest on a tie, as in the committed grids
        ({1.0: 0.4, 2.0: 0.4, 5.0: 0.5}, 5.0, "highest"),  # unless another rate is better
        ({1.0: 0.2, 2.0: 0.4, 5.0: None}, 2.0, None),  # a diverged rate counts as tried
        ({1.0: None, 2.0: None, 5.0: None}, None, None),
    ],
)
def test_the_best_and_its_edge(tried, best, edge):
    found, words = best_rate(tried, "accuracy", "lora")
    assert best_rate({rate: score and -score for rate, score in tried.items()}, f"cost{LOWER}", "lora")[0] == best
    way = f", the {edge}: method=lora train.lr=A,B,C looks further, with 3 values"
    assert found == best and (way in words if edge else "the lowest" not in words)


def tune(folder, monkeypatch, values: dict[float, float | None]) -> int:
    """Call `tune` on runs that have been trained: rate -> score of LoRA on ratings, None for a collapsed run."""
    monkeypatch.setattr(launch, "verify_inputs", lambda *given: None)  # the rows of synthetic records are no rows
    asked = ["task=ratings", "method=lora", f"runtime.results={folder}", f"train.lr={','.join(map(str, values))}"]
    for run in select_runs("mini", [*asked, "seed=0", "rates=null", "experiment=null"]):
        best = values[run.config.train.lr]
        spread = np.zeros(8, np.float32) if best is None else np.linspace(0, 5, 8, dtype=np.float32)
        splits = TASKS["ratings"].validation_splits
        digest = keep_predictions(folder, run, {f"{epoch}.{split}": spread for epoch in (3, 4) for split in splits})
        write_record(folder, synthetic_record(run, 0.9 if best is None else best, digest))
    return main(["tune", "profile=mini", *asked])


def test_collapsed_runs_win_nothing_and_a_rate_that_was_chosen_earlier_is_named(tmp_path, monkeypatch, capsys):
    assert tune(tmp_path, monkeypatch, {0.001: None, 0.002: 0.3, 0.003: 0.2}) == 0
    (chosen,) = read_rates(tmp_path / "rates.yaml")
    assert (chosen.lr, chosen.tried) == (0.002, {0.001: None, 0.002: 0.3, 0.003: 0.2})
    assert tune(tmp_path, monkeypatch, {0.001: None, 0.004: None, 0.008: None}) == 1
    kept = f"no rate: all runs diverged or collapsed; .*; 0.002, chosen earlier, stays in {tmp_path}"
    assert re.search(kept, capsys.readouterr().err)
    assert tune(tmp_path, monkeypatch, {0.004: 0.1, 0.005: 0.2, 0.006: 0.2, 0.007: 0.1}) == 0
    assert "takes 0.005; replaces 0.002, which was chosen from 3 values and scored 30.0" in capsys.readouterr().out


def test_a_method_that_fails_leaves_the_others_their_rates(tmp_path, monkeypatch, capsys):
    values = {0.001: 0.2, 0.002: 0.3, 0.003: 0.2}
    asked = ["task=ratings", f"runtime.results={tmp_path}", "train.lr=0.001,0.002,0.003"]
    for run in select_runs("mini", [*asked, "method=bitfit", "seed=0", "rates=null", "experiment=null"]):
        write_record(tmp_path, record(run.run_id, status="failed", error="it broke"))
    assert tune(tmp_path, monkeypatch, values) == 0
    (tmp_path / "rates.yaml").unlink()
    assert main(["tune", "profile=mini", *asked, "method=bitfit,lora"]) == 1
    assert "bitfit" in (error := capsys.readouterr().err) and "it broke" in error
    (chosen,) = read_rates(tmp_path / "rates.yaml")
    assert chosen.lr == 0.002 and "lora" in chosen.key


def test_every_method_has_a_grid_of_one_size_around_its_row_on_seed_0():
    grids = rate_grids("small", {"task": ["cola", "rte"], "data.path": ["GLUE"]})
    assert {(first.runtime.rate_name, first.task) for first, _ in grids} == {
        (method, task) for method in ("full", "lora", "houlsby") for task in ("cola", "rte")
    }
    for first, axes in grids:
        row = yaml.safe_load((ROOT / f"conf/hparams/ours/minilm_{first.method.name}.yaml").read_text())[first.task]
        rates = [float(rate) for rate in axes["train.lr"]]
        assert len(rates) == 5 and rates[2] == row["lr"]
        assert all(1.99 < high / low < 3 for low, high in itertools.pairwise(rates))
        assert axes["seed"] == ["0"] and first.seed == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "tune needs task=NAME"),
        ({"task": ["ratings"], "seed": ["0", "3"]}, r"no table of profile mini reports, got 3: .* 1, 2, 3"),
        ({"task": ["ratings"], "train.lr": ["1e-3", "0.001", "1e-2"]}, "at least 3 different numbers > 0"),
        ({"task": ["ratings"], "train.lr": ["a", "b", "c"]}, "numbers > 0 in tune, got a, b, c"),
        ({"task": ["ratings"], "train.epochs": ["1", "2"]}, "several values in tune, got train.epochs"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_request_that_is_no_grid_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        rate_grids("mini", given)


def test_a_rate_is_taken_by_its_runs_alone_and_names_them_as_train_lr_does(file):
    def lr(*overrides):
        return compose_run([*SETTINGS, f"rates={file}", *overrides]).train.lr

    assert lr() == LR and lr("seed=7", "method.rank=4", "profile=mini") == LR
    assert lr("train.lr=0.5") == 0.5 and lr("rates=null") == 3e-3
    assert lr("task=reviews") == 3e-3 and lr("method=bitfit") != LR
    assert compose_run([*SETTINGS, f"rates={file}"]).run_id == compose_run([*SETTINGS, f"train.lr={LR}"]).run_id
    write_rates(file, [rate(lr=0.5), rate(method="lora_qkvo", lr=0.25, protocol="long", task="cola")])
    assert lr() == 0.5 and len(read_rates(file)) == 2
    glue = ["profile=long", "protocol=long", "task=cola", f"rates={file}"]
    assert compose_run([*glue, "method=lora_qkvo"]).train.lr == 0.25
    assert compose_run([*glue, "method=lora"]).train.lr == 5e-4


def test_tunings_that_end_at_once_keep_each_others_rates(tmp_path):
    methods = [f"lora{number}" for number in range(8)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(write_rates, [(tmp_path / "rates.yaml", [rate(method=method)]) for method in methods], 1)
    assert {one.method for one in read_rates(tmp_path / "rates.yaml")} == {*methods}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rates: [{method: lore}]", "lr is missing"),
        (EDITED, "lr must be one of those tried, 0.1 "),
        (TWICE, "2 entries for m, ours, t, lora, where there may be one"),
        ("a: 1", "is not a file of rates"),
        ("rates: !!python/object/apply:os.getcwd []", "is not a file of rates"),
    ],
)
def test_a_broken_file_is_one_message_and_exit_code_2(content, message, tmp_path, capsys):
    assert main(["status", "mini", f"rates={tmp_path}/rates.yaml"]) == 2
    assert "rates.yaml does not exist; `python -m lora tune` writes it" in capsys.readouterr().err
    (tmp_path / "rates.yaml").write_text(content)
    assert main(["status", "mini", f"rates={tmp_path}/rates.yaml"]) == 2
    assert re.search(f"(?s)^error: {tmp_path}/rates.yaml .*{message}", capsys.readouterr().err)
