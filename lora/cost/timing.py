"""Medians of timings, with intervals. No torch."""

import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special  # `scipy.stats` takes a second to load

CONFIDENCE = 0.95
FEWEST = 6  # values for an interval: even the extremes of 5 enclose the median with less than `CONFIDENCE`


def median_interval(values: Sequence[float] | Float[np.ndarray, " rounds"]) -> tuple[float, float] | None:
    """Two order statistics that enclose the median of any distribution with at least `CONFIDENCE`.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.

    Returns: None for fewer than 6 values, whose smallest and largest are not far enough apart.
    """
    if len(values) < FEWEST:
        return None
    ordered = np.sort(values)
    at_most = special.bdtr(np.arange(len(ordered)), len(ordered), 0.5)  # the probability of at most k values below it
    outside = int(np.searchsorted(at_most, (1 - CONFIDENCE) / 2))  # values left out on each side, and one more
    return float(ordered[outside - 1]), float(ordered[-outside])


def sign_p(values: Float[np.ndarray, " rounds"], expected: float, alternative: Literal["less", "greater"]) -> float:
    """One-sided p-value of the sign test of a median against `expected`. `median_interval` has what it does not reject.

    Values equal to `expected` count against the alternative. Source: Conover 1999, section 3.4.
    """
    against = values <= expected if alternative == "greater" else values >= expected
    return float(special.bdtr(int(against.sum()), len(values), 0.5))


def shown(values: Sequence[float], digits: int) -> str:
    """A median with its interval, or with the range of the values if they are too few: `9.81 (9.70 to 10.02)`."""
    ends = median_interval(values) or (min(values), max(values))
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), *ends))
    return f"{middle} ({low} to {high})"
