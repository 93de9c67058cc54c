"""The choice of the learning rate. The runs that it was chosen by are in no table of results."""

import dataclasses
import math

import pandas as pd
import pytest
import yaml
from synthetic import populate

from lora.config.compose import CONF
from lora.data.metrics import LOWER
from lora.records.record import load_curves
from lora.report.build import build_report
from lora.report.gather import Gathered, gather
from lora.report.rates import best_rate_by_label, learning_rate_table, tried_rows
from lora.table import Table

GIVEN = ["experiment=learning_rate"]
TASKS = ("sst2", "mrpc", "cola", "rte", "stsb")


def table_of(gathered: Gathered) -> Table | None:
    """The table of the runs that were tried."""
    return learning_rate_table("small", gathered.tried, load_curves(list(gathered.state.ok.values())))


def taken_by_slug(gathered: Gathered) -> dict[str, float]:
    rows = tried_rows(gathered.tried)
    slugs = dict(zip(rows["label"], rows["slug"], strict=True))
    assert len(slugs) == len(set(slugs.values()))
    return {slugs[label]: rate for label, rate in best_rate_by_label(rows).items()}


@pytest.fixture
def tried(tmp_path):
    """Records whose metric is best at 1e-3: the middle for LoRA, the highest for full, the lowest for the others."""
    populate(
        tmp_path / "small", "small", GIVEN, value=lambda run: 0.6 - abs(math.log10(run.config.train.lr / 1e-3)) / 10
    )
    return tmp_path


def test_the_best_mean_is_taken_and_an_edge_is_named(tried):
    gathered = gather("small", GIVEN, tried)
    assert len(gathered.tried) == 30 and not len(gathered.runs) and not gathered.state.missing
    cells = table_of(gathered).cells
    assert len(cells) == 15
    yes = cells[cells["Taken"] != ""].set_index("Method")
    assert yes["Taken"].to_dict() == {
        "Full fine-tuning": "yes (edge)",
        "BitFit": "yes (edge)",
        "Houlsby adapters (m8)": "yes (edge)",
        "Pfeiffer adapters (m16)": "yes (edge)",
        "LoRA (qv, r8)": "yes",
    }
    assert yes.loc["LoRA (qv, r8)", "Learning rate"] == "0.001" and yes.loc["LoRA (qv, r8)", "Avg."] == "60.0"
    assert yes.loc["Full fine-tuning", "Learning rate"] == "0.0003"
    between = dataclasses.replace(gathered, tried=gathered.tried.replace({"lr": {3e-4: 2.5e-4}}))
    assert "0.00025" in set(table_of(between).cells["Learning rate"]), "all its digits"


def test_a_grid_with_a_gap_takes_nothing(tried):
    path = next((tried / "small" / "runs").glob("*lora-qv-r8.cola*"))
    path.unlink()
    gathered = gather("small", GIVEN, tried)
    assert len(gathered.state.missing) == 1
    found = taken_by_slug(gathered)
    assert "lora-qv-r8" not in found and found["houlsby-m8"] == 1e-3
    cells = table_of(gathered).cells
    assert "-" in set(cells[cells["Method"] == "LoRA (qv, r8)"]["CoLA (Matthews)"])


def test_seed_0_is_in_no_other_table(tried):
    populate(tried / "small", "small", ["experiment=glue_table2"])
    report = build_report("small", (), tried)
    assert not report.state.extra and any(table.name == "learning_rate" for table in report.tables)
    assert not set(report.gathered.runs["run_id"]) & set(report.gathered.tried["run_id"])
    assert set(report.cells["planned"]) == {3, 5} and report.gathered.frame["seed"].eq(0).sum() == 30


FILES = {"full": "full", "bitfit": "bitfit", "houlsby-m8": "houlsby", "pfeiffer-m16": "pfeiffer", "lora-qv-r8": "lora"}
SUCCESSORS = {
    "lora-qv-r8-plus": "lora_plus",
    "lora-qv-r8-pissa": "pissa",
    "lora-qv-r8-dora": "dora",
    "peft-vera-qv-r256": "vera",
    "peft-miss-qv-r16": "miss",
    "peft-ia3-kvf": "ia3",
}
FILES_LONG = {"full": "full", "houlsby-m8": "houlsby", "lora-qv-r8": "lora", "lora-qkvo-r4": "lora_qkvo"} | SUCCESSORS


@pytest.mark.parametrize(
    ("name", "protocol", "tasks", "files"),
    [
        ("reference/small", "ours", TASKS, FILES),
        ("reference/mini", "ours", ("reviews", "ratings", "clauses", "scrambled"), FILES),
        ("reference/long", "long", ("cola", "mrpc", "stsb", "rte", "mnli"), FILES_LONG),
    ],
    ids=["small", "mini", "long"],
)
def test_the_rates_of_minilm_are_those_that_came_out_best(name, protocol, tasks, files):
    gathered = gather(name)
    found = taken_by_slug(gathered)
    assert set(found) == set(files)
    frame = gathered.frame[gathered.frame["seed"].eq(0)]
    tried = frame[frame["slug"].isin(found)].groupby(["task", "slug"])["lr"].nunique().unstack("task")
    same = tried[~tried.index.isin(SUCCESSORS)]
    assert (same.nunique() == 1).all()  # all methods try equally many on a task
    for slug in tried.index[tried.index.isin(SUCCESSORS)]:  # or more, while the highest was the best so far
        scores, first = frame[frame["slug"] == slug].sort_values("lr")["best"], int(same["stsb"].iloc[0])
        assert len(scores) >= first and scores.eq(scores.cummax()).iloc[first - 1 : -1].all()
    grids = frame.groupby("slug")["lr"].agg(set)
    assert all(min(grids[slug]) < rate < max(grids[slug]) for slug, rate in found.items())  # at no edge
    for slug, rate in found.items():
        rows = yaml.safe_load((CONF / "hparams" / protocol / f"minilm_{files[slug]}.yaml").read_text())
        assert {rows[task]["lr"] for task in (("stsb", "mrpc") if slug in SUCCESSORS else tasks)} == {rate}


def test_seeds_are_averaged_within_a_task_and_a_rate_must_have_every_task_and_seed():
    """As in the long run: the best two rates have a second seed on CoLA, and neighbours a run on STS-B."""
    rows = [(1e-3, "cola", 0, 0.50), (1e-3, "cola", 5, 0.10), (1e-3, "stsb", 0, 0.80)]
    rows += [(2e-3, "cola", 0, 0.40), (2e-3, "cola", 5, 0.40), (2e-3, "stsb", 0, 0.78)]
    rows += [(5e-3, "cola", 0, 0.90), (5e-3, "stsb", 0, 0.90)]  # without the second seed
    columns = ["label", "metric", "lr", "task", "seed", "best"]
    runs = pd.DataFrame([("LoRA", "accuracy", *row) for row in rows], columns=columns)
    assert best_rate_by_label(runs) == {"LoRA": 2e-3}  # (0.40 + 0.78) / 2 against (0.30 + 0.80) / 2
    assert best_rate_by_label(runs.assign(best=-runs["best"], metric=f"cost.mean{LOWER}")) == {"LoRA": 2e-3}
    missing = pd.DataFrame([{"label": "LoRA", "task": "rte", "seed": 0, "metric": "accuracy"}])
    assert best_rate_by_label(pd.concat([runs, missing])) == {}  # a planned run is not trained


def test_learning_curves_take_a_rate_for_each_method_task_and_size(tmp_path):
    """As experiments/plans/rows.md says. LoRA's best rate falls with the size on STS-B, and is 1e-3 on SST-2."""
    best = {100: 2e-3, 300: 1e-3, 1000: 5e-4}

    def value(run):
        rows = run.config.data.train_rows
        peak = best[rows] if (run.method, run.task.name) == ("lora", "stsb") else 1e-3
        return 0.7 - abs(math.log10(run.config.train.lr / peak)) / 10

    populate(tmp_path / "rows", "rows", value=value)
    (table,) = [one for one in build_report("rows", [], tmp_path).tables if one.name == "learning_rate"]
    taken = table.cells[table.cells["Taken"] != ""].set_index("Method")["Learning rate"].to_dict()
    assert len(taken) == 18 and "Avg." not in table.cells
    found = {label: rate for label, rate in taken.items() if label.startswith("LoRA") and label.endswith("STS-B")}
    assert {int(label.split("train_rows=")[1].split(",")[0]): float(rate) for label, rate in found.items()} == best
    assert {rate for label, rate in taken.items() if label.startswith("LoRA") and label.endswith("SST-2")} == {"0.001"}
    assert table.notes[0].startswith("Each run's best epoch. Taken: for each method on each task")
