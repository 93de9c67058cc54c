"""Collapsed runs: found in the predictions that records name, counted in tables, never excluded."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file
from synthetic import EPOCHS, keep_predictions, synthetic_record

from lora.data.read import read
from lora.data.tasks import TASKS
from lora.files import ROOT
from lora.records.predictions import is_constant, with_collapsed
from lora.records.record import load_frame, load_records, write_record
from lora.report.gather import gather
from lora.report.runs import summarise
from lora.report.tables import score
from lora.sweep.request import select_runs

OVERRIDES = ["experiment=glue_table2", "task=stsb,rte", "seed=1,2,3,4,5"]


def test_a_class_is_constant_only_where_every_row_has_it():
    predicted = np.ones(277, np.int16)
    assert is_constant(predicted, TASKS["rte"])
    predicted[276] = 0
    assert not is_constant(predicted, TASKS["rte"])


@pytest.mark.parametrize(("share", "constant"), [(0.0, True), (0.009, True), (0.011, False), (1.0, False)])
def test_scores_are_constant_below_a_hundredth_of_the_labels_spread(share, constant):
    labels = np.asarray(read(TASKS["ratings"], "embedded").splits["validation"]["label"])
    predicted = (1.5 + share * (labels - labels.mean())).astype(np.float32)
    assert is_constant(predicted, TASKS["ratings"]) is constant


def test_the_spread_of_the_labels_is_that_of_the_dev_set():
    labels = np.asarray(read(TASKS["ratings"], "embedded").splits["validation"]["label"])
    assert TASKS["ratings"].label_std == pytest.approx(labels.std(), abs=5e-5)


@pytest.fixture
def one_collapsed(tmp_path):
    """Full and LoRA on STS-B and RTE. LoRA's first seed predicts one value only, so it has no Pearson correlation."""
    source = np.random.default_rng(0)
    for run in select_runs("small", OVERRIDES):
        if run.method not in ("full", "lora"):
            continue
        same = run.method == "lora" and run.seed == 1
        if run.task.name == "stsb":
            values = source.normal(2.5, 0 if same else 1, 50).astype(np.float32)
        else:
            values = np.arange(50).astype(np.int16) % (1 if same else 2)
        digest = keep_predictions(tmp_path / "small", run, {f"{epoch}.validation": values for epoch in range(1, 5)})
        record = synthetic_record(run, 0.5, digest)
        if same and run.task.name == "stsb":
            undefined = {"validation": {"headline": None}}
            epochs = [{**epoch, "metrics": undefined} for epoch in record.epochs]
            selected = {**record.selected, **{rule: {"epoch": EPOCHS, "value": None} for rule in ("best", "last")}}
            record = dataclasses.replace(record, epochs=epochs, selected=selected)
        write_record(tmp_path / "small", record)
    return tmp_path


def test_a_collapsed_run_is_counted_and_kept(one_collapsed):
    gathered = gather("small", OVERRIDES, one_collapsed)
    found = gathered.frame[gathered.frame["collapsed"] == 1]
    assert sorted(zip(found["slug"], found["task"], found["seed"], strict=True)) == [
        ("lora-qv-r8", "rte", 1),
        ("lora-qv-r8", "stsb", 1),
    ]
    summary = summarise(gathered.runs).set_index(["slug", "task"], drop=False)
    assert str(score(summary.loc["lora-qv-r8", "rte"])) == "50.0 ±0.0 (1 of 5 collapsed)"
    assert str(score(summary.loc["lora-qv-r8", "stsb"])) == "50.0 ±22.4 (1 of 5 collapsed)"
    assert str(score(summary.loc["full", "stsb"])) == "50.0 ±0.0"
    scored = gathered.runs["best"].mask(gathered.runs["collapsed"].eq(1))  # as with a metric of one's own
    own = gathered.runs.assign(best=scored)
    summary = summarise(own).set_index(["slug", "task"], drop=False)
    assert str(score(summary.loc["lora-qv-r8", "rte"])) == "50.0 ±0.0 (4/5) (1 of 5 collapsed)"


def test_without_predictions_nothing_is_known_and_a_missing_or_broken_file_is_named(one_collapsed):
    first, second, *_ = sorted((one_collapsed / "small" / "predictions").iterdir())
    first.unlink()
    second.write_bytes(b"junk")
    gathered = gather("small", OVERRIDES, one_collapsed)
    known = gathered.frame.set_index("run_id")["collapsed"]
    assert known[[first.stem, second.stem]].isna().all() and known.notna().sum() == len(known) - 2
    assert len(gathered.state.problems) == 2
    assert all(path.name in problem for path, problem in zip((first, second), gathered.state.problems, strict=True))


def test_the_committed_predictions_agree():
    """The truth is the number of different values, counted again."""
    folder = ROOT / "results" / "reference" / "small"
    records, _ = load_records(folder)
    frame, problems = with_collapsed(load_frame(records), records, folder, TASKS)
    expected = {}
    for record in records:
        values = load_file(folder / "predictions" / f"{record.run_id}.safetensors")[
            "best.validation" if record.config["task"] != "mnli" else "best.validation_matched"
        ]
        expected[record.run_id] = len(set(values.tolist())) == 1
    assert not problems and len(expected) > 100
    assert frame.set_index("run_id")["collapsed"].eq(1).to_dict() == expected
    assert 0 < sum(expected.values()) < 20
