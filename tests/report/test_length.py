"""The table of lengths: the effect of doubling the epochs. The truth is SciPy's interval over the seeds of both."""

import pandas as pd
import pytest
from scipy import stats
from synthetic import populate

from lora.errors import UserError
from lora.records.record import record_path
from lora.report.build import build_report
from lora.report.comparisons import change_table
from lora.report.gather import gather

GIVEN = ["experiment=length", "seed=6,7"]
VALUE = {("full", 10): (28, 32), ("full", 20): (30, 36), ("lora", 10): (23, 27), ("lora", 20): (25, 27)}  # in points


def value(run):
    kind = run.slug.partition("-")[0] if "qkvo" not in run.slug else "other"
    return VALUE.get((kind, run.config.train.epochs), (18, 22))[run.seed - 6] / 100


def with_interval(*values: float) -> str:
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{sum(values) / len(values):+.1f} ({low:+.1f} to {high:+.1f})"


def cells_of(results) -> pd.DataFrame:
    (table,) = [table for table in build_report("long", GIVEN, results).tables if table.name == "length"]
    assert list(table.cells.columns) == ["Task", "Method", "10 epochs", "20 epochs", "Change", "Pairs"]
    return table.cells.set_index("Method").drop(columns="Task")


def test_a_change_is_over_the_seeds_that_were_trained_at_both_lengths(tmp_path):
    runs = [run for run in populate(tmp_path / "long", "long", GIVEN, value=value) if run.slug == "full"]
    records = {(run.config.train.epochs, run.seed): record_path(tmp_path / "long", run.run_id) for run in runs}
    cells = cells_of(tmp_path)
    assert cells.loc["Full fine-tuning"].tolist() == ["30.0 ±2.8", "33.0 ±4.2", with_interval(2, 4), "2"]
    assert cells.loc["LoRA (qv, r8)"].tolist() == ["25.0 ±2.8", "26.0 ±1.4", with_interval(2, 0), "2"]
    assert cells.loc["Houlsby adapters (m8)", "Change"] == "+0.0"  # equal values have no interval
    assert len(cells) == 4
    records[20, 7].unlink()
    assert cells_of(tmp_path).loc["Full fine-tuning"].tolist() == ["30.0 ±2.8", "30.0 (1/2)", "+2.0", "1"]
    records[10, 6].unlink()  # seed 7 at 10 epochs, seed 6 at 20
    cells = cells_of(tmp_path)
    assert cells.loc["Full fine-tuning"].tolist() == ["32.0 (1/2)", "30.0 (1/2)", "-", "0"]
    assert cells.loc["LoRA (qv, r8)", "Change"] == with_interval(2, 0)


def test_two_runs_of_one_seed_in_one_cell_are_refused(tmp_path):
    populate(tmp_path / "long", "long", [*GIVEN, "method=full"])
    runs = gather("long", GIVEN, tmp_path).runs
    one = runs.iloc[[0]]
    twice = pd.concat([runs, one.assign(run_id="again")]).assign(**{"train.epochs": "10"})
    with pytest.raises(UserError, match=r"two runs of one seed cannot be in one cell: .*, again"):
        change_table(twice, "train.epochs", {"10": "10 epochs"})
