"""GLUE's metrics and macro F1 (Wang et al. 2018, arXiv:1804.07461)."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy

LOWER = ", lower is better"  # ends the name of such a metric


def better(metric: str) -> int:
    """1, or -1 if lower is better: the factor by which higher scores are better."""
    return -1 if metric.endswith(LOWER) else 1


def compute(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """Metrics of class indices or finite scores, as fractions, by name (`METRICS`); None for one that is undefined."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef  # half a second, once in a run

    # Correlations stay closed forms: SciPy's would change the last bits of a repeated run's record.
    functions = METRICS | {"accuracy": accuracy_score, "matthews": matthews_corrcoef}
    functions |= {"f1": partial(f1_score, zero_division=math.nan), "macro_f1": partial(f1_score, average="macro")}
    predicted, true = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on rows of a single class
        values = {name: functions[name](predicted, true) for name in names}  # all are symmetric
    return {name: None if value is None or math.isnan(value) else float(value) for name, value in values.items()}


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """The fraction of rows whose class is predicted correctly."""
    return int((predictions == references).sum()) / len(references)


def f1(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """F1 of class 1: 2 TP / (2 TP + FP + FN).

    Returns: None if class 1 is neither predicted nor true in any row: 0 / 0. (scikit-learn returns 0.0 and warns.)
    """
    true_positive, false_positive, false_negative, _ = _confusion(predictions, references)
    rows = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / rows if rows else None


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """The mean over classes of each class's F1, for any number of classes.

    A class that is neither predicted nor true in any row has no F1 and is excluded, as in scikit-learn.
    """
    classes = np.union1d(predictions, references)
    return math.fsum(f1(predictions == label, references == label) for label in classes) / len(classes)


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation of two binary variables.

    Returns: 0.0 if predictions or references are constant (0 / 0), the convention of scikit-learn and thus of GLUE.
        The paper's CoLA scores follow it, and a classifier with constant answers is no better than chance.
    """
    tp, fp, fn, tn = _confusion(predictions, references)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Pearson's correlation. Returns: None, for undefined, if either side is constant, as with a single row."""
    sides = (_direction(predictions), _direction(references))
    if sides[0] is None or sides[1] is None:
        return None
    return min(1.0, max(-1.0, float(np.dot(*sides))))  # rounding can exceed 1 by about 1e-16


def spearman(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Spearman's correlation, which is Pearson's of the ranks. Returns: None if either side is constant."""
    return pearson(*map(scipy.stats.rankdata, (predictions, references)))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {  # closed forms, fast enough for resampling
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def _confusion(predictions: np.ndarray, references: np.ndarray) -> tuple[int, int, int, int]:
    """TP, FP, FN and TN as Python integers, whose products cannot overflow."""
    predicted, true = predictions == 1, references == 1
    counts = (predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true)
    tp, fp, fn, tn = (int(rows.sum()) for rows in counts)
    return tp, fp, fn, tn


def _direction(values: np.ndarray) -> np.ndarray | None:
    """Values minus their mean, scaled to unit length; None if they are constant, exactly or up to rounding."""
    if (values == values[0]).all():
        return None
    scaled = values / np.abs(values).max()  # so that the squares neither overflow nor underflow
    centred = scaled - scaled.mean()
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else None
