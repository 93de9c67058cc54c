"""`python -m lora tune`: the choice of a rate, its file, and the runs that use it."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml
from synthetic import write_run

from lora.cli import main
from lora.config.compose import compose_run
from lora.config.rates import TUNING, Rate, read_rates, write_rates
from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_records
from lora.report.build import build
from lora.report.gather import gather
from lora.sweep.rate_grids import RateGrid, at_edge, best_rate, extended, rate_grids, reported_seeds, usual_seed
from lora.sweep.request import requested
from lora.sweep.tune import further

SETTINGS = ("protocol=ours", "task=ratings", "method=lora")
LR = 0.0123


def rate(**changes) -> Rate:
    usual = Rate("minilm", "ours", "lora", "ratings", LR, 3, (0,), "2026-11-26", (), {0.001: 0.2, LR: 0.3, 0.1: None})
    return dataclasses.replace(usual, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rates.yaml"
    write_rates(path, [rate()])
    return path


# Real runs


def lora(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "lora", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, model_dir):
    """A tuning of two methods on 32 examples of an embedded task, with a two-layer encoder."""
    folder = tmp_path_factory.mktemp("tuned")
    settings = [
        *("profile=mini", "model=local", f"model.path={model_dir}", "task=ratings", "method=full,lora"),
        *(
            "data.train_rows=32",
            "data.max_length=32",
            "train.epochs=1",
            "train.kernels=stock",
            "train.precision=fp32",
            "runtime.device=cpu",
        ),
        *(f"runtime.results={folder}/results", f"runtime.outputs={folder}/outputs"),
    ]
    grid = "train.lr=1e-4,1e-3,1e30"  # the last diverges
    code, out, err = lora("tune", *settings, grid)
    assert code == 0, out + err
    return folder, settings, grid, out


def scores_of(folder) -> dict[str, dict[float, float | None]]:
    """Method -> rate -> score, read from the records' JSON."""
    found: dict[str, dict[float, float | None]] = {}
    for path in (folder / "results" / "runs").glob("*.json"):
        record = json.loads(path.read_text())
        config = record["config"]
        if config["seed"] == 0:
            assert config["runtime"]["group"] == "tune"
            score = record["selected"]["best"]["value"] if record["status"] == "ok" else None
            assert (score is None) == (config["train"]["lr"] == 1e30)
            found.setdefault(config["method"]["name"], {})[config["train"]["lr"]] = score
    return found


def test_the_best_of_a_grid_is_kept_and_an_edge_is_extended_once(tuned):
    folder, _, _, out = tuned
    tried = scores_of(folder)
    content = yaml.safe_load((folder / "results" / "rates.yaml").read_text())["rates"]
    assert [entry["method"] for entry in content] == ["full", "lora"]
    extensions = 0
    for entry in content:
        own = tried[entry["method"]]
        known = {lr: score for lr, score in own.items() if score is not None}
        assert entry["lr"] == max(known, key=known.get) and entry["tried"] == own and entry["values"] == 3
        assert entry["seeds"] == [0] and entry["settings"][0] == "data.train_rows=32"
        lower = own[1e-4] > own[1e-3]  # the best of the first three is at an edge; a factor of ten, as within the grid
        assert set(own) == {1e-4, 1e-3, 1e30, *([1e-5] if lower else [])}
        extensions += lower
        assert (f"{entry['method']} on ratings: the best is the lowest of" in out) == (entry["lr"] == min(own))
    assert ("one more value for" in out) == bool(extensions)
    for run_id in (path.stem for path in (folder / "results" / "runs").glob("*.s0-*.json")):
        assert run_id in out  # the runs behind the rates


def test_tuning_resumes_and_ends_the_same(tuned):
    folder, settings, grid, _ = tuned
    rates = (folder / "results" / "rates.yaml").read_text()
    runs = sorted((folder / "results" / "runs").glob("*.s0-*.json"))
    gone = next(path for path in runs if json.loads(path.read_text())["config"]["train"]["lr"] == 1e-3)
    kept = {path: path.stat().st_mtime_ns for path in runs if path != gone}
    gone.unlink()
    (folder / "results" / "rates.yaml").unlink()
    code, out, _ = lora("tune", *settings, grid)
    assert code == 0 and re.search("3 done, 2 failed, 1 to train", out)
    assert gone.exists() and {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (folder / "results" / "rates.yaml").read_text() == rates


def test_the_next_launch_takes_the_rates_and_no_table_has_the_runs_that_chose_them(tuned):
    folder, settings, _, _ = tuned
    rates = {one.method: one.lr for one in read_rates(folder / "results" / "rates.yaml")}
    code, out, err = lora("-m", *settings, "seed=1,2")
    assert code == 0, err
    assert f"rates:   {folder}/results/rates.yaml, tuned on seed 0, " in out
    records = [record for record in load_records(folder / "results")[0] if record.config["seed"] in (1, 2)]
    assert len(records) == 4
    assert all(record.config["train"]["lr"] == rates[record.config["method"]["name"]] for record in records)

    given = [*settings[1:], "seed=1,2"]
    code, out, _ = lora("status", "mini", *given)
    assert code == 0 and "4 runs: 4 done" in out
    report = build("mini", given)
    assert not report.state.missing and not report.state.extra
    assert set(report.cells["planned"]) == {2} and not report.gathered.frame["seed"].eq(0).any()
    tries = {record.run_id for record in load_records(folder / "results")[0]} - {r.run_id for r in records}
    assert set(report.gathered.tuning) == tries
    assert f"{len(tries)} runs of `python -m lora tune`" in report.text()

    single = [one if one != "method=full,lora" else "method=lora" for one in settings]
    code, out, _ = lora(*single, "seed=1")
    assert code == 0 and "already done" in out
    code, out, _ = lora(*single, "seed=1", "train.lr=0.5")
    assert code == 0 and "rates:" not in out
    assert {r.config["train"]["lr"] for r in load_records(folder / "results")[0]} >= {0.5}


def test_no_sweep_takes_the_seed_that_chose_the_rates(tuned, capsys):
    folder, settings, _, _ = tuned
    before = sorted((folder / "results").rglob("*"))
    code, out, err = lora("-m", *settings, "seed=0,1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: seed must be one on which no learning rate was chosen, got 0: the rates in ")
    assert f" {folder}/results/rates.yaml look best on the seeds they were chosen on" in err
    assert "give other seeds, or ignore the file with rates=null" in err
    for name in ("status", "plan", "report"):
        assert main([name, "mini", *settings[1:], "seed=0,1"]) == 2
        assert capsys.readouterr() == ("", err)
    assert sorted((folder / "results").rglob("*")) == before
    assert main(["plan", "mini", *settings[1:], "seed=0,1", "rates=null"]) == 0
    assert "4 runs" in capsys.readouterr().out


# The rule


@pytest.mark.parametrize(
    ("tried", "best", "edge"),
    [
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.3}, 2.0, None),
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.5}, 5.0, "highest"),
        ({1.0: 0.6, 2.0: 0.4, 5.0: 0.5}, 1.0, "lowest"),
        ({1.0: 0.2, 2.0: 0.4, 5.0: 0.4}, 2.0, None),  # the smaller one on a tie
        ({1.0: 0.2, 2.0: 0.4, 5.0: None}, 2.0, None),  # a diverged rate counts as tried
        ({1.0: None, 2.0: None, 5.0: None}, None, None),
    ],
)
def test_the_best_and_its_edge(tried, best, edge):
    assert (best_rate(tried), at_edge(tried)) == (best, edge)


def test_a_grid_is_extended_by_the_distance_to_its_neighbour():
    (grid,) = rate_grids("mini", {"task": ["ratings"], "method": ["lora"]}, ROOT / "absent.yaml")
    assert grid.rates == (6e-4, 1.5e-3, 3e-3, 6e-3, 1.5e-2)
    rising = {lr: lr for lr in grid.rates}
    falling = {lr: -lr for lr in grid.rates}
    assert extended(grid, rising).rates == (*grid.rates, 0.0375) and extended(grid, falling).rates[0] == 2.4e-4
    assert extended(grid, rising).values == 5
    inside = {lr: -abs(lr - 3e-3) for lr in grid.rates}
    assert extended(grid, inside) is grid and further(grid, inside, []) is None
    line = further(extended(grid, rising), {**rising, 0.0375: 1}, ["profile=mini", "task=ratings,reviews", "seed=0"])
    assert "the best is the highest of 6 rates" in line
    assert line.endswith(
        "python -m lora tune profile=mini seed=0 method=lora task=ratings train.lr=0.006,0.015,0.0375,0.0938,0.235"
    )


def test_every_method_has_a_grid_of_one_size_around_its_row_on_seed_0():
    grids = rate_grids("small", {"task": ["cola", "rte"], "data.path": ["GLUE"]}, ROOT / "absent.yaml")
    assert {(grid.method, grid.task) for grid in grids} == {
        (method, task) for method in ("full", "lora", "houlsby") for task in ("cola", "rte")
    }
    rows = {
        method: yaml.safe_load((ROOT / f"conf/hparams/ours/minilm_{method}.yaml").read_text())
        for method in ("full", "lora", "houlsby")
    }
    for grid in grids:
        assert len(grid.rates) == grid.values == 5 and grid.rates[2] == rows[grid.method][grid.task]["lr"]
        factors = [high / low for low, high in zip(grid.rates, grid.rates[1:], strict=False)]
        assert all(1.99 < factor < 3 for factor in factors)
        assert grid.axes["seed"] == ["0"] and grid.first.seed == 0


PROFILES = sorted(path.stem for path in (ROOT / "conf" / "profile").glob("*.yaml"))


def seeds_in_grids(profile: str) -> set[int]:
    """The seeds in all files of conf/experiment but the one of the rates."""
    found = set()
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        if path.stem != "learning_rate":
            for block in yaml.safe_load(path.read_text())["grid"].get(profile, ()):
                found |= set(block["seed"] if isinstance(block["seed"], list) else [block["seed"]])
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_no_grid_of_the_profile_has_the_seeds_of_tune(profile):
    reported = seeds_in_grids(profile)
    usual = int(usual_seed(reported_seeds(profile)))
    assert reported and usual not in reported and usual == 0
    for seed in reported:
        with pytest.raises(UserError, match=f"got {seed}: .*; without seed=, tune takes {usual}$"):
            rate_grids(profile, {"task": ["ratings"], "seed": [str(seed)]}, ROOT / "absent.yaml")


def test_the_long_run_has_other_seeds_than_its_tuning():
    asked = {"task": ["cola"], "method": ["full"], "data.path": ["GLUE"], "protocol": ["long"]}
    (grid,) = rate_grids("long", asked, ROOT / "absent.yaml")
    tuning = {run for runs in grid.run_ids("long").values() for run in runs}
    runs = requested("long", ["data.path=GLUE,experiment=length,glue_table2"])
    assert not tuning & {run.run_id for run in runs} and grid.first.seed not in {run.seed for run in runs}


def test_a_grid_stays_where_it_is_once_its_rate_is_tuned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = rate_grids("mini", {"task": ["ratings"], "method": ["lora"]}, tmp_path / "results/mini/rates.yaml")
    write_rates(tmp_path / "results" / "mini" / "rates.yaml", [rate(values=5)])
    assert compose_run(["task=ratings"]).train.lr == LR
    assert rate_grids("mini", {"task": ["ratings"], "method": ["lora"]}, tmp_path / "results/mini/rates.yaml") == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "tune needs task=NAME"),
        ({"task": ["ratings"], "seed": ["0", "3"]}, r"no table of profile mini reports, got 3: .* 1, 2, 3"),
        (
            {"task": ["ratings"], "train.lr": ["1e-3", "1e-2"]},
            "at least 3 different values of train.lr, got 1e-3, 1e-2",
        ),
        ({"task": ["ratings"], "train.lr": ["1e-3", "0.001", "1e-2"]}, "at least 3 different values"),
        ({"task": ["ratings"], "train.lr": ["1e-3", "0", "1e-2"]}, "train.lr must be numbers > 0, got 1e-3, 0, 1e-2"),
        ({"task": ["ratings"], "train.lr": ["1e-3", "nan", "1e-2"]}, "train.lr must be numbers > 0"),
        ({"task": ["ratings"], "train.lr": ["a", "b", "c"]}, "train.lr must be numbers > 0, got a, b, c"),
        ({"task": ["ratings"], "train.epochs": ["1", "2"]}, "several values in tune, got train.epochs"),
        ({"task": ["ratings"], "method": ["lore"]}, "method must be one of .*lora.*, got 'lore'"),
        ({"task": ["sst9"]}, "task must be one of .*, or a file of your own .*, got 'sst9'"),
        (
            {"task": ["ratings"], "method": ["full"]},
            r"lora on ratings was tuned with 3 rates .*, got 5 for full; give 3 values of train.lr, or tune lora again",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_grid_that_would_be_unfair_or_is_none_is_refused(given, message, file):
    with pytest.raises(UserError, match=message):
        rate_grids("mini", given, file)
    if given == {"task": ["ratings"], "method": ["full"]}:
        both = rate_grids("mini", {**given, "method": ["full", "lora"]}, file)
        assert [type(grid) for grid in both] == [RateGrid, RateGrid]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=ratings", "experiment=glue_table2"], "leave out experiment="),
        (["task=ratings", "rates=null"], "a file outside results/reference"),
        (["task=ratings", "runtime.results=results/reference/mini"], "a file outside results/reference"),
    ],
)
def test_no_committed_file_is_written(arguments, message):
    code, out, err = lora("tune", *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not list((ROOT / "results" / "reference").rglob("rates.yaml"))


# The runs that use it


def test_a_rate_is_taken_by_its_runs_alone_and_names_them_as_train_lr_does(file):
    def lr(*overrides):
        return compose_run([*SETTINGS, f"rates={file}", *overrides]).train.lr

    assert lr() == LR and lr("seed=7", "method.rank=4", "profile=mini") == LR
    assert lr("train.lr=0.5") == 0.5 and lr("hparams.ratings.lr=0.25") == 0.25 and lr("rates=null") == 3e-3
    assert lr("task=reviews") == 3e-3 and lr("method=bitfit") != LR
    assert compose_run([*SETTINGS, f"rates={file}"]).run_id == compose_run([*SETTINGS, f"train.lr={LR}"]).run_id
    write_rates(file, [rate(lr=0.5), rate(method="lora_qkvo", lr=0.25, protocol="long", task="cola")])
    assert lr() == 0.5 and len(read_rates(file)) == 2
    glue = ["profile=long", "protocol=long", "task=cola", f"rates={file}"]
    assert compose_run([*glue, "method=lora_qkvo"]).train.lr == 0.25
    assert compose_run([*glue, "method=lora"]).train.lr == 5e-4


def test_planned_runs_follow_the_file_and_keep_their_rate_when_it_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["task=rte,mrpc", "method=lora", "start=pretrained,mnli", "data.path=GLUE", "seed=1"]
    plain = {run.run_id for run in requested("small", asked)}
    path = tmp_path / "results" / "small" / "rates.yaml"
    write_rates(path, [rate(task="mnli", lr=0.25), rate(task="rte", lr=0.5)])
    runs = requested("small", asked)
    rates = {(run.task, run.start): run.config.train.lr for run in runs}
    assert rates == {
        ("mnli", "pretrained"): 0.25, ("rte", "pretrained"): 0.5, ("rte", "mnli"): 0.5,
        ("mrpc", "pretrained"): 1e-3, ("mrpc", "mnli"): 1e-3,
    }  # fmt: skip
    assert {run.run_id for run in runs} & plain == {
        r.run_id for r in runs if (r.task, r.start) == ("mrpc", "pretrained")
    }
    assert all(not run.given or run.given[0].startswith("start") for run in runs)  # a tuned rate counts as usual
    path.unlink()
    assert [run.config.run_id for run in runs] == [run.run_id for run in runs]
    assert {run.run_id for run in requested("small", asked)} == plain


def test_committed_runs_have_their_own_rates(tmp_path, monkeypatch):
    before = gather("reference/mini")
    monkeypatch.chdir(tmp_path)
    lines = [rate(method=method, task=task, lr=0.5) for method in ("lora", "full") for task in ("ratings", "reviews")]
    write_rates(tmp_path / "results" / "mini" / "rates.yaml", lines)
    assert compose_run(["task=ratings"]).train.lr == 0.5
    after = gather("reference/mini")
    assert after.every == before.every and after.tried == before.tried and not after.state.missing
    assert len(after.every) > 50
    inside = [f"rates={ROOT}/results/reference/mini/rates.yaml", "task=ratings"]
    assert compose_run(inside).train.lr == 3e-3


def test_no_table_of_results_has_a_run_on_a_seed_that_chose_rates(tmp_path):
    """Neither one of an experiment nor a single one. Those that chose the rates of conf/ stay in their own table."""
    folder = tmp_path / "long"
    rates = requested("long", ["method=full,experiment=learning_rate"])
    single = requested("long", ["protocol=long", "task=mrpc", "method=lora", "seed=0", "experiment=null"])
    table2 = requested("long", ["task=cola,method=lora,experiment=glue_table2"])
    for run in (*rates, *single, *table2):
        write_run(folder, run, 0.5)
    before = gather("long", (), tmp_path)
    assert {"own", "glue_table2"} <= set(before.planned) and not before.tuning
    assert {p.seed for p in before.every} == {0, 6, 7, 8, 9, 10}
    write_rates(folder / "rates.yaml", [rate(protocol="long", task="sst2", seeds=(0, 10))])
    after = build("long", (), tmp_path)
    assert "own" not in after.gathered.planned
    assert {p.seed for p in after.gathered.every} == {6, 7, 8, 9}
    assert after.gathered.tried == before.tried and len(after.gathered.tried) == 4 * (5 + 2 + 3)
    left_out = {run.run_id for run in (*single, *table2) if run.seed in (0, 10)}
    assert set(after.gathered.tuning) == left_out and not after.state.extra
    assert f"- {len(left_out)} runs of `python -m lora tune`, or on seeds that chose learning rates" in after.text()
    assert gather("long", ["rates=null"], tmp_path).planned == before.planned


def test_the_runs_that_chose_the_rates_of_conf_are_no_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["experiment=learning_rate", "data.path=GLUE"]
    before = requested("small", asked)
    write_rates(tmp_path / "results" / "small" / "rates.yaml", [rate(task="cola")])
    assert {run.seed for run in requested("small", asked)} == {0} and len(requested("small", asked)) == len(before)
    write_rates(tmp_path / "results" / "small" / "rates.yaml", [rate(task="cola", seeds=(0, 5))])
    with pytest.raises(UserError, match="got 0, 5: the rates in"):
        requested("small", ["experiment=learning_rate,glue_table2", "seed=0,4,5", "data.path=GLUE"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0}, "entry 1: lr must be > 0 and finite, got 0.0"),
        ({"lr": -1.0}, "entry 1: lr must be > 0 and finite, got -1.0"),
        ({"lr": "fast"}, "entry 1: lr must be of type float, got 'fast'"),
        ({"method": "lore"}, "entry 1: method must be one of .*houlsby.*, got 'lore'"),
        ({"protocol": "theirs"}, "entry 1: protocol must be one of"),
        ({"rank": 8}, "entry 1: rank is not a setting"),
        ("rates: [", "is not a file of rates"),
        ("a: 1", "expected a list under the one key `rates`"),
        ("rates: [1]", "entry 1: entry is not a setting"),
        ("rates: !!python/object/apply:os.getcwd []", "is not a file of rates"),
        ("\x00", "is not a file of rates"),
    ],
    ids=str,
)
def test_a_broken_file_is_one_message_and_exit_code_2(change, message, file, capsys):
    if isinstance(change, str):
        file.write_text(change)
    else:
        content = yaml.safe_load(file.read_text())
        content["rates"][0] |= change
        file.write_text(yaml.safe_dump(content))
    before = file.read_bytes()
    assert main(["status", "mini", f"rates={file}"]) == 2
    err = capsys.readouterr().err
    assert re.search(f"^error: {re.escape(str(file))} .*{message}", err) and err.count("\n") == 1
    assert "rates=null" in err
    with pytest.raises(UserError, match=message):
        write_rates(file, [rate(task="reviews")])
    assert file.read_bytes() == before


def test_two_entries_of_one_run_are_refused(file):
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({"rates": content["rates"] * 2}))
    with pytest.raises(UserError, match="entry 2: lora on ratings has an entry before"):
        read_rates(file)


def test_the_group_of_tuning_runs_is_no_experiment():
    assert not (ROOT / "conf" / "experiment" / f"{TUNING}.yaml").exists()
