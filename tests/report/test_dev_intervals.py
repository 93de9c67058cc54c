"""Intervals for other dev rows: against leaving rows out, SciPy's bootstrap, closed forms, and coverage."""

import argparse
import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic import keep_predictions, synthetic_record

from lora.data import metrics
from lora.errors import UserError
from lora.records.analysis import EXAMPLES, analysis_json, read_analyses
from lora.records.predictions import dev_predictions
from lora.records.record import load_records, read_record, write_record
from lora.report.analyses.dev_intervals import bounds, check_metric, compare, main, pseudo_values
from lora.report.build import build_report
from lora.report.stats import mean_interval, seeds_and_rows
from lora.report.terminal import markdown_report
from lora.sweep.request import select_runs

RANDOM = np.random.default_rng(0)
OVERRIDES = ["experiment=glue_table2", "task=cola", "seed=1,2"]


def predictions(metric: str, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    if metric in ("pearson", "spearman"):
        labels = RANDOM.normal(2.5, 1, rows)
        return (labels + RANDOM.normal(0, 1, rows)).astype(np.float32), labels
    classes = 3 if metric == "macro_f1" else 2
    labels = RANDOM.integers(0, classes, rows)
    return np.where(RANDOM.random(rows) < 0.8, labels, (labels + 1) % classes).astype(np.int16), labels


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    return 100 * metrics.compute((metric,), predicted, labels)[metric]


METRICS = ["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]


@pytest.mark.parametrize("metric", METRICS)
def test_pseudo_values_are_those_of_leaving_each_row_out(metric):
    predicted, labels = predictions(metric, 60)
    without = [score(metric, np.delete(predicted, row), np.delete(labels, row)) for row in range(60)]
    expected = 60 * score(metric, predicted, labels) - 59 * np.array(without)
    np.testing.assert_allclose(pseudo_values(metric, predicted, labels), expected, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_the_spread_of_pseudo_values_is_that_of_scipys_bootstrap(metric):
    predicted, labels = predictions(metric)
    values = pseudo_values(metric, predicted, labels)
    options = {"paired": True, "vectorized": False, "n_resamples": 300, "method": "percentile", "rng": 1}
    theirs = stats.bootstrap((predicted, labels), functools.partial(score, metric), **options)
    assert values.std(ddof=1) / np.sqrt(len(labels)) == pytest.approx(theirs.standard_error, rel=0.15)


@pytest.mark.parametrize("metric", ["matthews", "pearson"])
def test_constant_predictions_count_as_0(metric):
    predicted, labels = predictions(metric)
    assert (pseudo_values(metric, np.full_like(predicted, predicted[0]), labels) == 0).all()


def test_an_accuracy_has_the_closed_forms_interval():
    """Two runs differ on 30 of 400 examples, 20 one way and 10 the other: var = (p1 + p2 - (p1 - p2)^2) / n."""
    labels = np.zeros(400, np.int64)
    one, other = np.zeros(400, np.int16), np.zeros(400, np.int16)
    other[:20], one[20:30] = 1, 1
    table = (pseudo_values("accuracy", one, labels) - pseudo_values("accuracy", other, labels))[None]
    found = bounds(mean_interval(table.mean(axis=1)), [table])
    half = 1.96 * 100 * np.sqrt((30 / 400 - (10 / 400) ** 2) / 399)
    assert (found["examples_low"], found["examples_high"]) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-3)
    assert found["both_low"] is None  # one pair of seeds


@pytest.mark.parametrize("seeds", [5, 8])
@pytest.mark.parametrize("rows", [400, 1500])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1])
def test_the_interval_over_seeds_and_rows_covers_the_truth(seeds, rows, of_seeds):
    """4,000 draws of a difference with an effect of the seed, one of the row, and their interaction.

    Args:
        of_seeds: Standard deviation of the seed's effect, where that of a row's and of the interaction are 1.
    """
    source, covered, draws = np.random.default_rng(seeds + rows), 0, 4000
    for _ in range(draws):
        table = source.normal(0, of_seeds, (seeds, 1)) + source.normal(0, 1, rows) + source.normal(0, 1, (seeds, rows))
        found = seeds_and_rows(mean_interval(table.mean(axis=1)), [table])
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / draws <= 0.965


def test_the_interval_over_seeds_and_rows_is_owens_variance_with_satterthwaites_degrees():
    """Two tasks of 3 seeds, computed cell by cell."""
    source = np.random.default_rng(3)
    tables = [source.normal(size=(3, 1)) + source.normal(0, 30, (1, n)) + source.normal(size=(3, n)) for n in (40, 70)]
    over = mean_interval(np.mean([table.mean(axis=1) for table in tables], axis=0))
    of_seeds = np.mean([table.mean(axis=1) for table in tables], axis=0).var(ddof=1) / 3
    variance, below = of_seeds, of_seeds**2 / 2
    for table in tables:
        n = table.shape[1]
        m_rows = 3 * table.mean(axis=0).var(ddof=1)
        m_rest = sum(
            (table[s, i] - table[s].mean() - table[:, i].mean() + table.mean()) ** 2 for s in range(3) for i in range(n)
        ) / (2 * (n - 1))
        a, b = m_rows / (3 * n * 4), m_rest / (3 * n * 4)
        variance, below = variance + a - b, below + a**2 / (n - 1) + b**2 / (2 * (n - 1))
    found = seeds_and_rows(over, tables)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, variance**2 / below) * np.sqrt(variance))
    assert found.high > over.high


@pytest.fixture
def predicted_runs(tmp_path):
    """Full and LoRA on CoLA with two seeds. The examples that they predict right are known."""
    labels = np.tile([0, 1], 50)
    runs = [run for run in select_runs("small", OVERRIDES) if run.method in ("full", "lora")]
    for run in runs:
        wrong = {"full": 20, "lora": 10}[run.method] + run.seed
        values = labels.astype(np.int16).copy()
        values[:wrong] = 1 - values[:wrong]
        digest = keep_predictions(tmp_path / "small", run, {"3.validation": values, "4.validation": values})
        best = metrics.compute(("matthews",), values, labels)["matthews"]
        write_record(tmp_path / "small", synthetic_record(run, best, digest))
    return tmp_path, labels


def test_methods_are_compared_and_the_tables_show_it_unless_the_predictions_are_others(predicted_runs):
    results, labels = predicted_runs
    report = build_report("small", OVERRIDES, results)
    entries = compare(report, {"cola": labels})
    (entry,) = [one for one in entries if one["tasks"] == ["cola"] and ".lora-" in one["pairs"][0][0]]
    assert len(entry["pairs"]) == 2 and entry["score"] == "best"
    assert 0 < entry["examples_low"] < 20 < entry["examples_high"] < 40
    path = results / "small" / "analysis" / EXAMPLES
    path.parent.mkdir()
    made_from = {run_id: record.predictions for run_id, record in report.state.ok.items()}
    path.write_bytes(analysis_json(made_from, entries))
    report = build_report("small", OVERRIDES, results)
    (pairs,) = [table for table in report.tables if table.name == "pairs"]
    assert pairs.cells["... over examples"].item() == f"{entry['examples_low']:+.1f} to {entry['examples_high']:+.1f}"
    (claim,) = [each for each in report.verdicts if each.claim.id == "lora_as_good_as_full"]
    assert (claim.findings[0].rows_low, claim.findings[0].rows_high) == (entry["both_low"], entry["both_high"])
    assert not report.problems
    for made_from, older, word in (
        ({next(iter(report.state.ok)): "0" * 64}, [], "another training"),
        ({}, [{"one": "A", "other": "B", "pairs": 2}], "an older version"),
    ):
        path.write_bytes(analysis_json(made_from, older))
        report = build_report("small", OVERRIDES, results)
        assert len(report.problems) == 1 and "python -m lora analyse intervals" in report.problems[0]
        assert word in report.problems[0] and "left out" in markdown_report(report)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_analysis_is_refused(tmp_path, content):
    (tmp_path / EXAMPLES).write_text(content)
    with pytest.raises(UserError, match=r"examples.json (is not readable JSON|must hold a JSON object)"):
        read_analyses(tmp_path, {}, "python -m lora {}".format)


def test_the_hash_of_the_predictions_is_checked(predicted_runs):
    results, labels = predicted_runs
    folder = results / "small"
    record = read_record(next((folder / "runs").glob("*.json")))
    path = folder / "predictions" / f"{record.run_id}.safetensors"
    with pytest.raises(UserError, match=r"not the rows that it was evaluated on"):
        check_metric(record, "matthews", dev_predictions(record, folder)["best"], 1 - labels)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"not the file of predictions that its record names"):
        dev_predictions(record, folder)
    path.unlink()
    with pytest.raises(UserError, match=r"not readable"):
        dev_predictions(record, folder)


def test_the_command_writes_its_file_and_without_labels_it_is_an_error(predicted_runs, monkeypatch):
    results, labels = predicted_runs
    path = results / "small" / "analysis" / EXAMPLES
    monkeypatch.setattr(
        "lora.report.analyses.dev_intervals.build_report", lambda name, given: build_report(name, given, results)
    )
    monkeypatch.setattr("lora.report.analyses.dev_intervals.read_dev_labels", lambda _: {"cola": labels})
    given = argparse.Namespace(profile="small", overrides=OVERRIDES)
    main(given)
    written = json.loads(path.read_bytes())
    assert {tuple(entry["tasks"]) for entry in written["entries"]} == {("cola",)}
    turned = [pair[::-1] for pair in written["entries"][0]["pairs"]]
    trained_again, gone = {turned[0][0]: "0" * 64}, {"a run that is gone": "0" * 64}
    for changed, kept in (({}, 1), (trained_again, 0), (gone, 1)):  # what is not compared now stays as its records do
        earlier = [*written["entries"], {**written["entries"][0], "pairs": turned, "tasks": ["rte"]}]
        path.write_bytes(analysis_json(written["made_from"] | changed, earlier))
        main(given)
        entries = json.loads(path.read_bytes())["entries"]
        assert [entry["tasks"] for entry in entries].count(["rte"]) == kept
        assert len(entries) == len(written["entries"]) + kept
    path.write_bytes(analysis_json(written["made_from"], written["entries"]))
    main(argparse.Namespace(profile="small", overrides=[*OVERRIDES[:2], "seed=1"]))
    of_part = json.loads(path.read_bytes())["entries"]
    assert of_part[: len(written["entries"])] == written["entries"], "a selection adds its comparisons"
    assert len(of_part) > len(written["entries"])
    for rows in ("0" * 64, "1" * 64):  # other labels of the same texts: trained again, with the same predictions
        for record in load_records(results / "small")[0]:
            data = record.provenance["data"] | {"dev_fingerprint": rows}
            write_record(results / "small", replace(record, provenance=record.provenance | {"data": data}))
        assert "python -m lora analyse intervals" in build_report("small", OVERRIDES, results).problems[0]
        main(given)
        assert not build_report("small", OVERRIDES, results).problems
    path.unlink()
    monkeypatch.setattr("lora.report.analyses.dev_intervals.read_dev_labels", lambda _: {})
    with pytest.raises(UserError, match="nothing can be compared"):
        main(given)
    assert not path.exists()
