"""The choice of the learning rate. The runs that it was chosen by are in no table of results."""

import math

import pandas as pd
import pytest
import yaml
from synthetic import populate

from lora.config.options import CONF
from lora.records.record import load_curves
from lora.report.build import build
from lora.report.learning_rate import learning_rate_table, taken, tried_runs
from lora.report.select import Gathered, gather
from lora.sweep.expand import PlannedRun
from lora.table import Table

GIVEN = ["experiment=learning_rate"]
TASKS = ("sst2", "mrpc", "cola", "rte", "stsb")


def table_of(gathered: Gathered) -> Table | None:
    curves = load_curves(list(gathered.state.ok.values()))
    return learning_rate_table("small", gathered.tried, gathered.frame, curves)


def rate_of(run: PlannedRun) -> float:
    return next(float(o.removeprefix("train.lr=")) for o in run.overrides if o.startswith("train.lr="))


@pytest.fixture
def tried(tmp_path):
    """Records whose metric is best at 1e-3: the middle for LoRA, the highest for full, the lowest for the others."""
    populate(tmp_path / "small", "small", GIVEN, value=lambda run: 0.6 - abs(math.log10(rate_of(run) / 1e-3)) / 10)
    return tmp_path


def test_the_best_mean_is_taken_and_an_edge_is_named(tried):
    gathered = gather("small", GIVEN, tried)
    assert len(gathered.tried) == 30 and not gathered.planned and not gathered.state.missing
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
    assert yes.loc["LoRA (qv, r8)", "Learning rate"] == "1e-03" and yes.loc["LoRA (qv, r8)", "Avg."] == "60.0"
    assert yes.loc["Full fine-tuning", "Learning rate"] == "3e-04"


def test_a_grid_with_a_gap_takes_nothing(tried):
    path = next((tried / "small" / "runs").glob("*lora-qv-r8.cola*"))
    path.unlink()
    gathered = gather("small", GIVEN, tried)
    assert len(gathered.state.missing) == 1
    found = taken(gathered.tried, tried_runs(gathered.tried, gathered.frame))
    assert "lora-qv-r8" not in found and found["houlsby-m8"] == 1e-3
    cells = table_of(gathered).cells
    assert "-" in set(cells[cells["Method"] == "LoRA (qv, r8)"]["CoLA (Matthews)"])


def test_seed_0_is_in_no_other_table(tried):
    populate(tried / "small", "small", ["experiment=glue_table2"])
    report = build("small", (), tried)
    assert not report.state.extra and any(table.name == "learning_rate" for table in report.tables)
    assert not {p.run_id for p in report.gathered.every} & {p.run_id for p in report.gathered.tried}
    assert set(report.cells["planned"]) == {3, 5} and report.gathered.frame["seed"].eq(0).sum() == 30


def test_without_such_runs_there_is_no_table(tmp_path):
    gathered = gather("small", (), tmp_path)
    assert table_of(gathered) is None


@pytest.mark.parametrize(
    ("name", "tasks"), [("reference/small", TASKS), ("reference/mini", ("reviews", "ratings", "clauses", "scrambled"))]
)
def test_the_rates_of_minilm_are_those_that_came_out_best(name, tasks):
    gathered = gather(name)
    found = taken(gathered.tried, tried_runs(gathered.tried, gathered.frame))
    assert set(found) == {"full", "bitfit", "houlsby-m8", "pfeiffer-m16", "lora-qv-r8"}
    grids = [
        set(gathered.frame[gathered.frame["slug"].eq(slug) & gathered.frame["seed"].eq(0)]["lr"]) for slug in found
    ]
    assert len({len(grid) for grid in grids}) == 1
    assert all(min(grid) < found[slug] < max(grid) for slug, grid in zip(found, grids, strict=True))  # at no edge
    for slug, rate in found.items():
        rows = yaml.safe_load((CONF / "hparams" / "ours" / f"minilm_{slug.split('-')[0]}.yaml").read_text())
        assert {rows[task]["lr"] for task in tasks} == {rate}


def test_seeds_are_averaged_within_a_task_and_a_rate_must_have_every_task_and_seed(tried):
    """As in the long run: the best two rates have a second seed on CoLA, and neighbours a run on STS-B."""
    gathered = gather("small", GIVEN, tried)
    lora = tried_runs(gathered.tried, gathered.frame)
    lora = lora[lora["slug"] == "lora-qv-r8"]
    columns = ["run_id", "slug", "lr", "task", "seed", "best"]
    rows = [(1e-3, "cola", 0, 0.50), (1e-3, "cola", 5, 0.10), (1e-3, "stsb", 0, 0.80)]
    rows += [(2e-3, "cola", 0, 0.40), (2e-3, "cola", 5, 0.40), (2e-3, "stsb", 0, 0.78)]
    rows += [(5e-3, "cola", 0, 0.90), (5e-3, "stsb", 0, 0.90)]  # without the second seed
    runs = pd.DataFrame([(f"{i}", "lora-qv-r8", *row) for i, row in enumerate(rows)], columns=columns)
    assert taken([], runs) == {"lora-qv-r8": 2e-3}  # (0.40 + 0.78) / 2 against (0.30 + 0.80) / 2
    planned = next(p for p in gathered.tried if p.slug == "lora-qv-r8")
    assert taken([planned], runs) == {}  # a planned run is missing
    assert taken([], lora)["lora-qv-r8"] == 1e-3
