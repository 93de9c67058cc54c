"""Intervals over dev examples: the metrics against their own module, the intervals against SciPy and closed forms."""

import argparse
import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save
from scipy import stats
from synthetic import synthetic_record

from lora.data import metrics
from lora.errors import UserError
from lora.records.analysis import EXAMPLES, analysis_json, read_analyses
from lora.records.predictions import dev_predictions
from lora.records.record import read_record, write_record
from lora.report.analyses.dev_intervals import bounds, check, compare, main, resampled
from lora.report.build import build
from lora.report.gather import gather
from lora.report.terminal import markdown
from lora.sweep.request import select_runs

RANDOM = np.random.default_rng(0)
OVERRIDES = ["experiment=glue_table2", "task=cola", "seed=1,2"]


def predictions(metric: str, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    if metric == "pearson":
        labels = RANDOM.normal(2.5, 1, rows)
        return (labels + RANDOM.normal(0, 1, rows)).astype(np.float32), labels
    classes = 3 if metric == "macro_f1" else 2
    labels = RANDOM.integers(0, classes, rows)
    return np.where(RANDOM.random(rows) < 0.8, labels, (labels + 1) % classes).astype(np.int16), labels


@pytest.mark.parametrize(("metric", "undefined"), [("matthews", 0.0), ("pearson", None)])
def test_constant_predictions_have_the_value_of_the_metrics_module(metric, undefined):
    """They are resampled like any others, with 0 for an undefined value: no interval excludes a collapsed run."""
    predicted, labels = predictions(metric)
    constant = np.full_like(predicted, predicted[0])
    assert metrics.compute((metric,), constant, labels)[metric] == undefined
    points = resampled(metric, [constant, predicted], labels, "test")
    assert (points[:, 0] == 0).all() and points[:, 1].min() > 0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews", "pearson"])
def test_a_resample_is_the_metric_of_the_rows_drawn(metric):
    """Its spread over resamples is that of SciPy's bootstrap, which computes the metric from the drawn rows."""
    predicted, labels = predictions(metric)

    def one(x: np.ndarray, y: np.ndarray) -> float:
        return metrics.compute((metric,), x, y)[metric]

    ours = resampled(metric, [predicted], labels, "test")[:, 0] / 100
    theirs = stats.bootstrap(
        (predicted, labels), one, paired=True, vectorized=False, n_resamples=300, method="percentile", rng=1
    )
    assert ours.std() == pytest.approx(theirs.standard_error, rel=0.15)
    assert ours.mean() == pytest.approx(one(predicted, labels), abs=0.01)


def test_an_accuracy_has_the_closed_forms_interval():
    """Two runs differ on 30 of 400 examples, 20 one way and 10 the other: var = (p1 + p2 - (p1 - p2)^2) / n."""
    labels = np.zeros(400, np.int64)
    one, other = np.zeros(400, np.int16), np.zeros(400, np.int16)
    other[:20], one[20:30] = 1, 1
    points = resampled("accuracy", [one, other], labels, "closed form")
    found = bounds(points[:, :1] - points[:, 1:], "closed form")
    std = 100 * np.sqrt((30 / 400 - (10 / 400) ** 2) / 400)
    assert (points[:, 0] - points[:, 1]).std() == pytest.approx(std, rel=0.06)
    assert (found["examples_low"], found["examples_high"]) == pytest.approx((2.5 - 2 * std, 2.5 + 2 * std), abs=0.5)
    assert found["both_low"] is None  # one pair of seeds


def test_both_is_as_wide_as_the_two_together():
    """Seeds and examples vary independently, so variances add up. That of seeds is widened by t for their number."""
    examples = RANDOM.normal(0, 1, (2000, 1))
    seeds = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = bounds(examples + seeds, "both")
    t = stats.t.ppf(0.975, 4) * seeds.std(ddof=1) / np.sqrt(5)
    assert found["both_high"] == pytest.approx(np.sqrt(1.96**2 + t**2), rel=0.1)
    assert found["examples_high"] == pytest.approx(1.96, rel=0.1)


@pytest.fixture
def predicted_runs(tmp_path):
    """Full and LoRA on CoLA with two seeds. The examples that they predict right are known."""
    labels = np.tile([0, 1], 50)
    runs = [run for run in select_runs("small", OVERRIDES) if run.method in ("full", "lora")]
    for run in runs:
        wrong = {"full": 20, "lora": 10}[run.method] + run.seed
        values = labels.astype(np.int16).copy()
        values[:wrong] = 1 - values[:wrong]
        content = save({"3.validation": values, "4.validation": values})
        best = metrics.compute(("matthews",), values, labels)["matthews"]
        record = synthetic_record(run, best, hashlib.sha256(content).hexdigest())
        write_record(tmp_path / "small", record)
        path = tmp_path / "small" / "predictions" / f"{run.run_id}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path, labels


def test_methods_are_compared_and_the_tables_show_it_unless_the_predictions_are_others(predicted_runs):
    results, labels = predicted_runs
    gathered = gather("small", OVERRIDES, results)
    (entry,) = compare(gathered, {"cola": labels}, results / "small")
    assert (entry["one"], entry["other"], entry["task"]) == ("LoRA (qv, r8)", "Full fine-tuning", "cola")
    assert (entry["pairs"], entry["examples"]) == (2, 100)
    assert 0 < entry["examples_low"] < 20 < entry["examples_high"] < 40
    path = results / "small" / "analysis" / EXAMPLES
    path.parent.mkdir()
    made_from = {run_id: record.predictions for run_id, record in gathered.state.ok.items()}
    path.write_bytes(analysis_json(made_from, [entry]))
    report = build("small", OVERRIDES, results)
    (pairs,) = [table for table in report.tables if table.name == "pairs"]
    assert pairs.cells["... over examples"].item() == f"{entry['examples_low']:+.1f} to {entry['examples_high']:+.1f}"
    assert not report.problems
    path.write_bytes(analysis_json({next(iter(gathered.state.ok)): "0" * 64}, []))
    report = build("small", OVERRIDES, results)
    assert len(report.problems) == 1 and "python -m lora analyse intervals" in report.problems[0]
    assert "left out" in markdown(report)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_analysis_is_refused(tmp_path, content):
    (tmp_path / EXAMPLES).write_text(content)
    with pytest.raises(UserError, match=r"examples.json (is not readable JSON|must hold a JSON object)"):
        read_analyses(tmp_path, {})


def test_the_hash_of_the_predictions_is_checked(predicted_runs):
    results, labels = predicted_runs
    folder = results / "small"
    record = read_record(next((folder / "runs").glob("*.json")))
    path = folder / "predictions" / f"{record.run_id}.safetensors"
    with pytest.raises(UserError, match=r"not the rows that it was evaluated on"):
        check(record, "matthews", dev_predictions(record, folder)["best"], 1 - labels)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"not the file of predictions that its record names"):
        dev_predictions(record, folder)
    path.unlink()
    with pytest.raises(UserError, match=r"not readable"):
        dev_predictions(record, folder)


def test_the_command_writes_its_file_and_without_labels_it_is_an_error(predicted_runs, monkeypatch):
    results, labels = predicted_runs
    path = results / "small" / "analysis" / EXAMPLES
    monkeypatch.setattr("lora.report.analyses.dev_intervals.gather", lambda name, given: gather(name, given, results))
    monkeypatch.setattr("lora.report.analyses.dev_intervals.read_labels", lambda _: {"cola": labels})
    given = argparse.Namespace(profile="small", overrides=OVERRIDES)
    main(given)
    written = json.loads(path.read_bytes())
    assert [entry["task"] for entry in written["entries"]] == ["cola"]
    for changed, tasks in (({}, ["rte", "cola"]), ({"a run that is gone": "0" * 64}, ["cola"])):
        earlier = [*written["entries"], {**written["entries"][0], "task": "rte"}]
        path.write_bytes(analysis_json(written["made_from"] | changed, earlier))
        main(given)
        assert [entry["task"] for entry in json.loads(path.read_bytes())["entries"]] == tasks
    path.unlink()
    monkeypatch.setattr("lora.report.analyses.dev_intervals.read_labels", lambda _: {})
    with pytest.raises(UserError, match="nothing can be compared"):
        main(given)
    assert not path.exists()
