"""Interleaved repetitions, medians and their intervals. No torch here."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
CONFIDENCE = 0.95
INTERVAL = (
    "between two order statistics, the narrowest symmetric pair that covers the median with at least 95%, whatever the "
    "distribution; with fewer than 6 values no pair does, and the ends are the smallest and the largest value"
)


def median_of(values: Sequence[float]) -> dict[str, Any]:
    """The median, with an interval that assumes nothing of the distribution.

    Source: the number of values below the median is binomial(n, 1/2), so the k-th smallest and the k-th largest value
        enclose it with probability 1 - 2 P(binomial < k).

    Returns: `median`, `low`, `high`, `coverage` (of low..high; None for a single value) and `n`.
    Raises: ValueError: Without values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered, n = sorted(values), len(values)
    k = 1
    while _coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return {
        "median": statistics.median(ordered),
        "low": ordered[k - 1],
        "high": ordered[n - k],
        "coverage": round(_coverage(n, k), 4) if n > 1 else None,
        "n": n,
    }


def _coverage(n: int, k: int) -> float:
    """The probability that the k-th smallest and the k-th largest of n values enclose the median."""
    return 1 - 2 * sum(math.comb(n, below) for below in range(k)) / 2**n if 2 * k <= n else 0.0


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The median of ours / theirs, repetition by repetition: what slows both of a pair leaves it as it is."""
    return median_of([one / other for one, other in zip(ours, theirs, strict=True)])


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """The same, beginning `turn` places later: over the turns each runs in each place."""
    start = turn % len(items)
    return [*items[start:], *items[:start]]


def wall_seconds(action: Callable[[], Any]) -> float:
    """By this machine's clock."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def interleave(
    actions: Mapping[str, Callable[[], Any]],
    repetitions: int,
    timed: Callable[[Callable[[], Any]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of every action in every repetition: one after another, in an order that rotates.

    Args:
        timed: Runs an action and says how long it took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repetitions):
        for name in rotated(list(actions), turn):
            seconds[name].append(timed(actions[name]))
    return seconds


def slope(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The exponent of value ~ size^slope, by least squares over the logarithms; None with fewer than two sizes.

    Raises: ValueError: If a size or a value is not positive.
    """
    if len(set(sizes)) < 2:
        return None
    if min(*sizes, *values) <= 0:
        raise ValueError("a slope needs positive sizes and values")
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope
