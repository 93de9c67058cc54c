"""Interleaved timings, and their medians with intervals. No torch."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    The number of values below the true median is binomial(n, 1/2). The bounds are the k-th smallest and the k-th
    largest value, for the largest k such that fewer than k fall below it with a chance of at most (1 - CONFIDENCE) / 2.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.

    Returns: None for fewer than 6 values, whose smallest and largest are not far enough apart.
    """
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(values), 0.5))
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[-k])


def sign_p(values: Float[np.ndarray, " rounds"], expected: float, alternative: Literal["less", "greater"]) -> float:
    """One-sided p-value of the sign test of a median against `expected`. `median_interval` has what it does not reject.

    Values equal to `expected` count against the alternative. Source: Conover 1999, section 3.4.
    """
    beyond = int((values < expected).sum() if alternative == "less" else (values > expected).sum())
    return float(stats.binom.sf(beyond - 1, len(values), 0.5))


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


def orders(names: Sequence[T], rounds: int, *purpose: str | int) -> Iterator[list[T]]:
    """The order of each round, the same for the same purpose.

    A block of rounds, as many as names, rotates one random order, so that each name has each place once. The next
    block has another random order, so that neighbours change too.
    """
    for number in range(rounds):
        block, turn = divmod(number, max(1, len(names)))
        order = [names[i] for i in shuffled(len(names), *purpose, block)]
        yield order[turn:] + order[:turn]


def interleave(
    work: Mapping[str, Mapping[str, Action]],
    rounds: int,
    *,
    warmup: int = 1,
    untimed: int = 0,
    calls: int = 1,
    seed: int = 0,
    clock: Callable[[Action], float] = wall_seconds,
    after_round: Action = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Time actions that take turns, so that a temporary slowdown of the machine affects all of them.

    Args:
        work: Group -> name -> timed action. The actions of a group follow one another directly.
        warmup: Calls of every action before the first round. They compile kernels and plan matrix products.
        untimed: Untimed calls of an action per round, before the timed ones. They equalise caches and clocks.
        calls: Timed calls of an action per round; their median is the round's value.
        seed: Seed of the orders.
        clock: Calls an action and returns its seconds.
    Returns: Group -> name -> seconds, round by round.
    """
    for actions in work.values():
        for action in actions.values():
            for _ in range(warmup):
                action()
    planned = {group: orders(list(actions), rounds, seed, group) for group, actions in work.items()}
    seconds: dict[str, dict[str, list[float]]] = {group: {name: [] for name in work[group]} for group in work}
    for _ in range(rounds):
        for group, actions in work.items():
            for name in next(planned[group]):
                for _ in range(untimed):
                    actions[name]()
                seconds[group][name].append(statistics.median(clock(actions[name]) for _ in range(calls)))
        after_round()
    return seconds
