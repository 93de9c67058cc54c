"""The table of lengths: the effect of doubling the epochs."""

import dataclasses
import json

import pandas as pd
import pytest
from scipy import stats
from synthetic import populate

from lora.errors import UserError
from lora.report.build import build
from lora.report.compared import length_table
from lora.report.gather import gather

GIVEN = ["experiment=length", "seed=6,7"]
VALUE = {  # of seeds 6 and 7, in points
    ("full", 10): (28, 32),
    ("full", 20): (30, 36),
    ("lora", 10): (23, 27),
    ("lora", 20): (25, 27),
}


def value(run):
    epochs = run.config.train.epochs
    of_seeds = VALUE.get((run.slug.partition("-")[0] if "qkvo" not in run.slug else "other", epochs), (18, 22))
    return of_seeds[run.seed - 6] / 100


def with_interval(*values: float) -> str:
    """The mean of two values and its interval, from scipy."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{sum(values) / len(values):+.1f} ({low:+.1f} to {high:+.1f})"


def cells_of(folder) -> pd.DataFrame:
    """The table's cells by method."""
    gathered = gather("long", GIVEN, folder)
    return length_table(gathered.frame, gathered.planned["length"]).set_index("Method")


def remove(folder, epochs, methods=("full", "houlsby", "lora"), seeds=(6, 7)) -> None:
    """Remove the records of one length."""
    for path in (folder / "long" / "runs").glob("*.json"):
        config = json.loads(path.read_text())["config"]
        if config["train"]["epochs"] == epochs and config["method"]["name"] in methods and config["seed"] in seeds:
            path.unlink()


def test_each_method_has_its_change_and_so_has_the_difference(tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    gathered = gather("long", GIVEN, tmp_path)
    assert len(gathered.every) == 16 and not gathered.state.missing
    cells = cells_of(tmp_path)
    assert list(cells.columns) == ["Task", "Seeds", "10 epochs", "20 epochs", "Change"]
    assert cells.loc["Full fine-tuning"].tolist()[1:] == ["2", "30.0", "33.0", with_interval(2, 4)]
    assert cells.loc["LoRA (qv, r8)"].tolist()[1:] == ["2", "25.0", "26.0", with_interval(2, 0)]
    difference = ["2", "-5.0", with_interval(-5, -9), with_interval(0, -4)]  # equal values have no interval
    assert cells.loc["LoRA (qv, r8) - Full fine-tuning"].tolist()[1:] == difference
    assert cells.loc["Houlsby adapters (m8)"].tolist()[1:] == ["2", "20.0", "20.0", "+0.0"]
    assert len(cells) == 5


@pytest.mark.parametrize("kept", [10, 20])
def test_a_method_at_one_length_has_no_change_beside_others_at_two(kept, tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    remove(tmp_path, 30 - kept, ("full",))
    change = cells_of(tmp_path)["Change"]
    assert change["Full fine-tuning"] == change["LoRA (qv, r8) - Full fine-tuning"] == "-"
    assert change["LoRA (qv, r8)"] == with_interval(2, 0)


def test_only_the_seeds_of_both_lengths_are_compared(tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    remove(tmp_path, 20, ("full",), seeds=(7,))
    cells = cells_of(tmp_path)
    assert cells.loc["Full fine-tuning"].tolist()[1:] == ["1", "28.0", "30.0", "+2.0"]
    assert cells.loc["LoRA (qv, r8)"].tolist()[1:] == ["2", "25.0", "26.0", with_interval(2, 0)]
    assert cells.loc["LoRA (qv, r8) - Full fine-tuning"].tolist()[1:] == ["1", "-5.0", "-5.0", "+0.0"]
    remove(tmp_path, 10, ("full",), seeds=(6,))
    cells = cells_of(tmp_path)
    assert cells.loc["Full fine-tuning"].tolist()[1:] == ["2", "32.0", "30.0", "-"], "seed 7 at 10, seed 6 at 20"
    assert cells.loc["LoRA (qv, r8) - Full fine-tuning"].tolist()[1:] == ["2", "-5.0", "-5.0", "-"]


def test_two_runs_of_one_seed_in_one_cell_are_refused(tmp_path):
    populate(tmp_path / "long", "long", GIVEN)
    gathered = gather("long", GIVEN, tmp_path)
    one = gathered.planned["length"][0]
    copy = gathered.frame[gathered.frame["run_id"] == one.run_id].assign(run_id="again")
    planned = [*gathered.planned["length"], dataclasses.replace(one, run_id="again")]
    with pytest.raises(UserError, match=f"two runs of one seed cannot be in one cell: {one.run_id}, again"):
        length_table(pd.concat([gathered.frame, copy]), planned)


def test_the_report_shows_it_with_its_curves(tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    report = build("long", GIVEN, tmp_path)
    (table,) = [table for table in report.tables if table.name == "length"]
    assert "stated before the runs" in table.notes[0] and "Median" not in " ".join(table.notes)
    assert "length_curves" in report.figures
