"""The table of lengths: the effect of doubling the epochs."""

import json

import pandas as pd
import pytest
from synthetic import populate

from lora.report.build import build
from lora.report.length import length_table
from lora.report.select import gather

GIVEN = ["experiment=length"]
VALUE = {("full", 10): 0.30, ("full", 20): 0.33, ("lora", 10): 0.25, ("lora", 20): 0.26}


def value(run):
    epochs = next(int(o.removeprefix("train.epochs=")) for o in run.overrides if o.startswith("train.epochs="))
    return VALUE.get((run.slug.partition("-")[0] if "qkvo" not in run.slug else "other", epochs), 0.20)


def cells_of(folder) -> pd.DataFrame:
    """The table's cells by method, with curves as long as each run was trained."""
    gathered = gather("long", GIVEN, folder)
    lengths = {i: record.config["train"]["epochs"] for i, record in gathered.state.ok.items()}
    curves = pd.DataFrame([(i, epoch) for i, last in lengths.items() for epoch in range(1, last + 1)])
    curves.columns = ["run_id", "epoch"]
    return length_table(gathered.frame, curves, gathered.planned["length"]).set_index("Method")


def remove(folder, epochs, methods=("full", "houlsby", "lora")) -> None:
    """Remove the records of one length."""
    for path in (folder / "long" / "runs").glob("*.json"):
        config = json.loads(path.read_text())["config"]
        if config["train"]["epochs"] == epochs and config["method"]["name"] in methods:
            path.unlink()


def test_each_method_has_its_change_and_so_has_the_difference(tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    gathered = gather("long", GIVEN, tmp_path)
    assert len(gathered.every) == 8 and not gathered.state.missing
    cells = cells_of(tmp_path)
    assert list(cells.columns) == ["Task", "10 epochs", "20 epochs", "Change"]
    assert cells.loc["Full fine-tuning"].tolist()[1:] == ["30.0", "33.0", "+3.0"]
    assert cells.loc["LoRA (qv, r8)"].tolist()[1:] == ["25.0", "26.0", "+1.0"]
    assert cells.loc["LoRA (qv, r8) - Full fine-tuning"].tolist()[1:] == ["-5.0", "-7.0", "-2.0"]
    assert len(cells) == 5


@pytest.mark.parametrize("kept", [10, 20])
def test_one_length_has_no_change(kept, tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    remove(tmp_path, 30 - kept)
    cells = cells_of(tmp_path)
    assert list(cells.columns) == ["Task", f"{kept} epochs", "Change"] and len(cells) == 5
    assert set(cells["Change"]) == {"-"} and "-" not in set(cells[f"{kept} epochs"])


@pytest.mark.parametrize("kept", [10, 20])
def test_a_method_at_one_length_has_no_change_beside_others_at_two(kept, tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    remove(tmp_path, 30 - kept, ("full",))
    change = cells_of(tmp_path)["Change"]
    assert change["Full fine-tuning"] == change["LoRA (qv, r8) - Full fine-tuning"] == "-"
    assert change["LoRA (qv, r8)"] == "+1.0"


def test_the_report_shows_it_with_its_curves(tmp_path):
    populate(tmp_path / "long", "long", GIVEN, value=value)
    report = build("long", GIVEN, tmp_path)
    (table,) = [table for table in report.tables if table.name == "length"]
    assert "stated before the runs" in " ".join(table.notes)
    assert "length_curves" in report.figures
