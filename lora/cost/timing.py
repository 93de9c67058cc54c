"""Interleaved timings, and their medians with intervals. No torch."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from lora.rng import shuffled

T = TypeVar("T")
Action = Callable[[], object]
CONFIDENCE = 0.95
FEWEST = 6  # values for an interval: even the extremes of 5 enclose the median with less than `CONFIDENCE`


# Medians and intervals.


def median_interval(values: Sequence[float] | Float[np.ndarray, " rounds"]) -> tuple[float, float] | None:
    """Two order statistics that enclose the median of any distribution with at least `CONFIDENCE`.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.

    Returns: None for fewer than 6 values, whose smallest and largest are not far enough apart.
    """
    if len(values) < FEWEST:
        return None
    interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def sign_p(values: Float[np.ndarray, " rounds"], expected: float, alternative: Literal["less", "greater"]) -> float:
    """One-sided p-value of the sign test of a median against `expected`. `median_interval` has what it does not reject.

    Values equal to `expected` count against the alternative. Source: Conover 1999, section 3.4.
    """
    return float(stats.quantile_test(values, q=expected, p=0.5, alternative=alternative).pvalue)


def median_of(values: Sequence[float]) -> dict[str, Any]:
    """A median with its interval, or with the range of the values if they are too few for one.

    Returns: `median`, `low`, `high`, and `n`, the number of values.
    """
    low, high = median_interval(values) or (min(values), max(values))
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """`median_of` of the ratios ours / theirs, round by round: a slowdown of a whole round cancels out."""
    return median_of([one / other for one, other in zip(ours, theirs, strict=True)])


def spread_name(n: int) -> str:
    """The name of low..high in a `median_of` n values: `95% interval`, or `range` if they are too few for one."""
    return f"{CONFIDENCE:.0%} interval" if n >= FEWEST else "range"


def shown(median: Mapping[str, Any], digits: int) -> str:
    """Format a `median_of` for a table, as `9.81 (9.70 to 10.02)`."""
    middle, low, high = (f"{median[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


# Taking turns.


def wall_seconds(action: Action) -> float:
    """Seconds of one call, by the machine's clock."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def order(names: Sequence[T], *purpose: str | int) -> list[T]:
    """The names in a random order, the same for the same purpose."""
    return [names[i] for i in shuffled(len(names), *purpose)]


def interleave(
    work: Mapping[str, Mapping[str, Action]],
    rounds: int,
    *,
    clock: Callable[[Action], float] = wall_seconds,
    after_round: Action = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Time actions that take turns, so that a temporary slowdown of the machine affects all of them.

    Every action is called once before the first round, to compile kernels and plan matrix products, and once untimed
    before each timed call, to equalise caches and clocks.

    Args:
        work: Group -> name -> timed action. The actions of a group follow one another directly.
        clock: Calls an action and returns its seconds.
    Returns: Group -> name -> seconds, round by round.
    """
    for actions in work.values():
        for action in actions.values():
            action()
    seconds: dict[str, dict[str, list[float]]] = {group: {name: [] for name in work[group]} for group in work}
    for number in range(rounds):
        for group, actions in work.items():
            for name in order([*actions], group, number):
                actions[name]()
                seconds[group][name].append(clock(actions[name]))
        after_round()
    return seconds
