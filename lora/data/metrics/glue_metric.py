"""GLUE's metrics as a module of the `evaluate` library: `evaluate.load(".../glue_metric.py", "accuracy+f1")`.

`evaluate` copies this file elsewhere before it imports it, so nothing of this project is imported here.
Its copy is found by a hash that leaves out what follows a hash sign, so no string in this file holds one.
"""

import math
from collections.abc import Callable

import evaluate
import numpy as np
from datasets import Features, Value

CITATION = "Wang et al. 2018, GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding"


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """The share of rows whose class is right."""
    return int((predictions == references).sum()) / len(references)


def f1(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """F1 of class 1: 2 TP / (2 TP + FP + FN).

    Returns: None when class 1 is neither predicted nor true anywhere: 0 / 0. (scikit-learn puts 0.0 there, and warns.)
    """
    true_positive, false_positive, false_negative, _ = _confusion(predictions, references)
    rows = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / rows if rows else None


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation of two binary variables.

    Returns: 0.0 when predictions or references are constant, which is 0 / 0: scikit-learn's and so GLUE's convention.
        The paper's CoLA scores follow it, and a classifier that always says the same is no better than chance.
    """
    tp, fp, fn, tn = _confusion(predictions, references)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Pearson's correlation. Returns: None when either side is constant (a single row is), where it is undefined."""
    sides = (_direction(predictions), _direction(references))
    if sides[0] is None or sides[1] is None:
        return None
    return min(1.0, max(-1.0, float(np.dot(*sides))))  # rounding can pass 1 by some 1e-16


def spearman(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Spearman's correlation: Pearson's of the ranks. Returns: None when either side is constant."""
    return pearson(_average_ranks(predictions), _average_ranks(references))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


class GlueMetric(evaluate.Metric):
    """A set of GLUE's metrics. The config name lists them, with `+` between: `accuracy+f1`, `pearson+spearman`."""

    def _info(self) -> evaluate.MetricInfo:
        names = self.config_name.split("+")
        unknown = [name for name in names if name not in METRICS]
        if unknown:
            raise ValueError(f"no metric is called {', '.join(map(repr, unknown))}; here are: {', '.join(METRICS)}")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description="predictions, references: one number a row; a class is its index.",
            # float64 holds class indices and float32 scores exactly; an integer column would cut scores off silently.
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
            # Plain lists: the library's numpy format would give float32.
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float | None]:
        sides = np.array(predictions), np.array(references)
        return {name: METRICS[name](*sides) for name in self.config_name.split("+")}


def _confusion(predictions: np.ndarray, references: np.ndarray) -> tuple[int, int, int, int]:
    """Rows by prediction and truth, as Python integers, whose products do not overflow: TP, FP, FN, TN."""
    for side, values in (("predictions", predictions), ("references", references)):
        other = np.setdiff1d(values, (0, 1))
        if other.size:
            raise ValueError(f"{side} must be 0 or 1 for f1 and matthews, got {other[0]:g}")
    predicted, true = predictions == 1, references == 1
    counts = (predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true)
    tp, fp, fn, tn = (int(rows.sum()) for rows in counts)
    return tp, fp, fn, tn


def _direction(values: np.ndarray) -> np.ndarray | None:
    """Values less their mean, at unit length; None when they are constant, bit for bit or to within rounding."""
    if (values == values[0]).all():
        return None
    scaled = values / np.abs(values).max()  # no overflow or underflow in the squares
    centred = scaled - scaled.mean()
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else None


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
