"""Medians, their distribution-free intervals, and ratios of what was measured in the same round."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95


def median_interval(values: Float[np.ndarray, " rounds"]) -> tuple[float, float] | None:
    """Two order statistics that hold the median of the distribution with at least `CONFIDENCE`, whatever it is.

    The number of values below the true median is binomial, so the k-th smallest and the k-th largest do, with the
    largest k for which fewer than k fall below with a chance of at most (1 - CONFIDENCE) / 2.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.

    Returns: None from fewer than 6 values: not even the smallest and the largest of them would do.
    """
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(values), 0.5))
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[-k])


def paired_ratio(
    values: Float[np.ndarray, " rounds"], references: Float[np.ndarray, " rounds"]
) -> tuple[float, tuple[float, float] | None]:
    """The median of the rounds' ratios and its interval: what slows a whole round down cancels."""
    ratios = values / references
    return float(np.median(ratios)), median_interval(ratios)


def sign_p(values: Float[np.ndarray, " rounds"], expected: float, alternative: Literal["less", "greater"]) -> float:
    """One-sided p-value of the sign test of a median against `expected`; `median_interval` holds what it keeps.

    Values equal to `expected` count against the alternative. Source: Conover 1999, section 3.4.
    """
    beyond = int((values < expected).sum() if alternative == "less" else (values > expected).sum())
    return float(stats.binom.sf(beyond - 1, len(values), 0.5))
