"""The settings that tell runs of one method apart: table rows that differ in a setting are never merged."""

import pytest
import tiny
from synthetic import populate

from lora.report.build import build_report
from lora.report.terminal import reference_lines

Q, V = (f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value"))
ONE = ["experiment=glue_table2", "task=reviews", "method=lora", "seed=1", "train.epochs=1", "train.precision=fp32"]


def tables_of(folder, profile="mini", arguments=()):
    report = build_report(profile, arguments, folder)
    return report, {table.name: table.cells for table in report.tables}


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        (["train.lr=0.0005,0.002"], ["LoRA (qv, r8), lr=0.0005", "LoRA (qv, r8), lr=0.002"]),
        ([f"method.targets=[{Q}],[{V}]"], [f"LoRA (1modules, r8), targets={name}" for name in (Q, V)]),
        (["method.targets=['*.query','*.value']"], ["LoRA (2modules, r8), targets=*.query+*.value"]),
        (["method.ranks={q:2},{q:4}"], ["LoRA (qv, r8x), ranks=q:2", "LoRA (qv, r8x), ranks=q:4"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_each_value_of_a_grid_is_a_row(grid, labels, tmp_path):
    arguments = ["experiment=null", "task=reviews", "method=lora", "train.epochs=1", "seed=1,2", *grid]
    populate(tmp_path / "mini", "mini", arguments)
    _, tables = tables_of(tmp_path, "mini", arguments)
    assert sorted(tables["table2"]["Method"]) == sorted(labels)
    assert set(tables["table2"]["Seeds"]) == {"2"}


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        (["experiment=glue_table2"], ["LoRA (qv, r8)"]),
        (["experiment=null", "train.epochs=2"], ["LoRA (qv, r8)"]),
        (["experiment=null", "train.epochs=2,4"], ["LoRA (qv, r8), epochs=2", "LoRA (qv, r8), epochs=4"]),
    ],
)
def test_a_value_that_conf_gives_to_one_task_only_is_one_row(grid, labels, tmp_path):
    """conf/ trains reviews for 2 epochs and scrambled for 4. Without a grid, these are one row."""
    arguments = [*grid, "task=reviews,scrambled", "method=lora", "seed=1,2"]
    populate(tmp_path / "mini", "mini", arguments)
    _, tables = tables_of(tmp_path, "mini", arguments)
    assert sorted(tables["table2"]["Method"]) == labels and not (tables["table2"] == "-").any(axis=None)


def test_a_setting_given_at_one_rank_makes_a_row_of_its_own_and_leaves_the_other_ranks_together(tmp_path):
    """In the long run, rank 64 is trained with alpha constant, as all ranks are, and with alpha / r constant."""
    arguments = ["experiment=lora_ranks", "seed=6,7"]
    populate(tmp_path / "long", "long", arguments, lambda run: 0.5 if run.config.method.alpha_at_rank == 8 else 0.6)
    _, tables = tables_of(tmp_path, "long", arguments)
    names = ["Wq", "Wq, Wv", "Wq, Wv, alpha_at_rank=8"]
    assert tables["table6"]["Adapted"].tolist() == [*names, *["Wq", "Wq, Wv"] * 2]  # the last four are the paper's
    ours = tables["table6"].iloc[:3, 2:-1].map(lambda text: text.partition(" ")[0])
    assert ours.values.tolist() == [["60.0"] * 4, ["60.0"] * 4, ["-", "-", "-", "50.0"]]


def test_runs_that_no_experiment_expects_have_a_table_of_their_own(tmp_path):
    populate(tmp_path / "mini", "mini", ONE[:4])
    populate(tmp_path / "mini", "mini", ["experiment=null", *ONE[1:3], "train.lr=0.0005,0.002", "seed=1,2"])
    report, tables = tables_of(tmp_path)
    assert sorted(tables["own"]["Method"]) == ["LoRA (qv, r8), lr=0.0005", "LoRA (qv, r8), lr=0.002"]
    assert not report.state.extra
    lora = tables["table2"].set_index("Method").loc["LoRA (qv, r8)"]
    assert lora["Seeds"] == "1"  # the others are never in the paper's tables


@pytest.mark.parametrize("asked", ["method", "place", "nothing"])
def test_two_encoders_stand_in_one_table_whichever_is_asked_for(asked, tmp_path):
    """The fused kernels do not cover DistilBERT, which the command about another encoder cannot know."""
    path = f"model.path={tiny.folder(tmp_path / 'distil', 'distilbert')}"
    there = [*ONE, "model=local", path]
    populate(tmp_path / "mini", "mini", ONE)
    (other,) = populate(tmp_path / "mini", "mini", there)
    report, tables = tables_of(tmp_path, "mini", {"method": ONE, "place": [path], "nothing": []}[asked])
    assert "own" not in tables and not report.state.extra
    assert set(tables["table2"]["Model"]) == {"minilm", other.model}
    assert {row for row in tables["table2"]["Method"] if row.startswith("LoRA")} == {"LoRA (qv, r8)"}


def test_a_folder_of_one_encoder_is_reported_without_naming_it(tmp_path):
    """A report of runs of another encoder than the profile's shows these, and misses none of the profile's."""
    other = ["experiment=null", "model=local", "model.name=other-123abc", "seed=1,2"]
    runs = populate(tmp_path / "mini", "mini", [*other, *ONE[1:3], "train.epochs=1"])
    report, tables = tables_of(tmp_path)
    assert not report.state.missing and set(report.state.ok) == {run.run_id for run in runs}
    assert tables["table2"]["Method"].tolist() == ["LoRA (qv, r8)"] and "own" not in tables
    assert tables["table2"]["Seeds"].tolist() == ["2"]


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        ("train.precision=fp32,bf16", ["LoRA (qv, r8), precision=bf16", "LoRA (qv, r8), precision=fp32"]),
        ("method.alpha=4,64", ["LoRA (qv, r8), alpha=4", "LoRA (qv, r8), alpha=64"]),
    ],
)
def test_each_row_of_ones_own_stands_beside_its_reference_cell(grid, labels, tmp_path):
    """The reference has one precision, which may depend on the machine, and both alphas."""
    arguments = ["experiment=null", "task=reviews", "method=lora", "seed=1,2"]
    usual = [*arguments, *([grid] if "alpha" in grid else ["train.precision=fp32"])]
    populate(tmp_path / "reference" / "mini", "mini", usual, lambda run: 0.6 + 0.1 * (run.config.method.alpha == 64))
    populate(tmp_path / "mini", "mini", [*arguments, grid], lambda run: 0.5)
    report, tables = tables_of(tmp_path, "mini", [*arguments, grid])
    assert sorted(tables["reference"]["Method"]) == sorted(tables["table2"]["Method"]) == labels
    reference = tables["reference"].set_index("Method")[["First", "Second", "Change"]]
    wanted = [("60.0", "+10.0"), ("70.0", "+20.0")] if "alpha" in grid else [("60.0", "+10.0")] * 2
    assert [tuple(reference.loc[label]) for label in labels] == [("50.0", *values) for values in wanted]
    (line,) = reference_lines(report)
    assert line == f"Reference: 4 of 4 runs, largest change {wanted[-1][1]} ({labels['alpha' in grid]}, reviews)"
