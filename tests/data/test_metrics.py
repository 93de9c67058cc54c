"""Metrics against scikit-learn, SciPy and the committed records: closed forms, and a record's own scores."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lora.data import metrics
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.files import ROOT
from lora.records.predictions import dev_predictions
from lora.records.record import load_records

BINARY = ("accuracy", "f1", "matthews")
SCORES = ("pearson", "spearman")


def reference(name: str, predictions: np.ndarray, references: np.ndarray) -> float | None:
    """The other libraries' value, or None if they call it undefined."""
    if name in SCORES:
        if len(references) < 2:  # scipy raises
            return None
        correlate = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
            value = float(correlate(predictions, references).statistic)
        return None if np.isnan(value) else value
    if name in ("f1", "macro_f1"):
        average = "binary" if name == "f1" else "macro"
        value = float(sklearn.metrics.f1_score(references, predictions, average=average, zero_division=np.nan))
        return None if np.isnan(value) else value
    function = {"accuracy": sklearn.metrics.accuracy_score, "matthews": sklearn.metrics.matthews_corrcoef}[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        return float(function(references, predictions))


def assert_equal(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> None:
    expected = {name: reference(name, predictions, references) for name in names}
    closed = {name: metrics.METRICS[name](predictions.astype(float), references.astype(float)) for name in names}
    for found in (metrics.compute(names, predictions, references), closed):
        assert list(found) == list(names)
        for name in names:
            assert found[name] is None or type(found[name]) is float
            assert found[name] == pytest.approx(expected[name], abs=1e-12), (name, predictions, references)


def test_every_pair_of_up_to_four_binary_rows() -> None:
    seen = 0
    for rows in (1, 2, 3, 4):
        sides = [np.array(side) for side in itertools.product((0, 1), repeat=rows)]
        for predictions, references in itertools.product(sides, sides):
            assert_equal(BINARY, predictions, references)
            seen += 1
    assert seen == 4 + 16 + 64 + 256


@pytest.mark.parametrize("rows", [2, 3, 10, 1043, 40_430])
def test_random_classes(rows: int) -> None:
    random = np.random.default_rng(rows)
    for share in (0.05, 0.5):
        predictions, references = (random.random((2, rows)) < share).astype(np.int16)
        assert_equal(BINARY, predictions, references)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_macro_f1_of_any_number_of_classes(classes: int) -> None:
    """Also on small samples, in which classes are absent from one side or from both."""
    random = np.random.default_rng(classes)
    for rows in (1, 2, 3, 5, 100):
        for _ in range(20):
            predictions, references = random.integers(0, classes, (2, rows))
            assert_equal(("macro_f1",), predictions, references)


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 1500])
@pytest.mark.parametrize("values", [2, 6, None], ids=["two values", "six values", "no ties"])
def test_random_scores(rows: int, values: int | None) -> None:
    """Also one row, and a few of which all are equal on one side: a correlation is None there."""
    random = np.random.default_rng(rows)
    for _ in range(5):
        references = random.integers(0, values, rows) / 4 if values else random.normal(size=rows)
        predictions = (references + random.normal(size=rows)).astype(np.float32)
        assert_equal(SCORES, predictions, references)
        assert_equal(SCORES, np.round(predictions), references)


def test_scores_that_are_a_line_are_one_exactly_at_any_scale() -> None:
    line = np.random.default_rng(0).random(1500)
    for scale in (1e-200, 1.0, 1e200, -1e308):
        found = metrics.compute(SCORES, scale * line, line)
        sign = np.sign(scale)
        assert found == {"pearson": pytest.approx(sign, abs=1e-12), "spearman": pytest.approx(sign, abs=1e-12)}
        assert abs(found["pearson"]) <= 1


def test_the_committed_predictions_give_the_committed_scores():
    """Of classes bit for bit; of correlations up to the order of sums, which is the machine's."""
    folder = ROOT / "results" / "reference" / "mini"
    tasks = ("reviews", "scrambled", "ratings")
    labels = {task: np.array(read(TASKS[task], "embedded").splits["validation"]["label"]) for task in tasks}
    records, _ = load_records(folder)
    assert {record.config["task"] for record in records} == set(labels)
    for record in records:
        task = TASKS[record.config["task"]]
        for rule, predicted in dev_predictions(record, folder).items():
            found = metrics.compute(task.metrics, predicted, labels[task.name])
            recorded = record.epochs[record.selected[rule]["epoch"] - 1]["metrics"]["validation"]
            assert found == (recorded if task.labels else pytest.approx(recorded, abs=1e-12)), record.run_id
