"""The uncertainty of a difference between two methods: pairs by seed, Student's t. Frames and arrays; no torch.

A cell of Table 2 is a few seeds on one fixed dev set. A difference between two cells can be due to chance in two ways,
which two intervals distinguish:

    seeds     Would other seeds, on this dev set, show the same? Runs are paired: two methods with one seed share the
              head's init and the order of the examples. In the long run this gains little: within a seed, the scores
              of two methods correlate by about 0.
    rows      Would other dev rows of the task show the same? `seeds_and_rows` is the interval for other seeds and other
              rows; analyses/dev_intervals.py computes it, and that for other rows with the same runs.

Verdicts use the first, because the paper's sentences are about these dev sets, and say whether the second agrees. The
tasks are fixed, not a sample of tasks. They share seeds, and thus the head's init and the order of the examples, so
their differences are correlated. An average over tasks is therefore taken within each seed, and the spread of these
averages over seeds gives the interval. Only seeds that have every task count. Treating tasks as independent covers the
truth 89% of the time instead of 95% if seeds correlate by 0.2 across tasks, and 81% if they correlate by 0.4 (5 seeds,
5 tasks).

The t interval is for the mean and assumes normal differences. It needs at least 2 pairs. A verdict needs at least 5, a
convention of this project that follows from no theorem.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special  # `scipy.stats` takes a second to load

from lora.data.tasks import task_order
from lora.table import Cell, Value, number

LEVEL = 0.95
ENOUGH_SEEDS = 5
MOST_SEEDS = 200  # the upper limit of `seeds_needed`
ON_ROWS = " on these dev rows"  # behind a word that the interval for other dev rows does not confirm
POWER = 0.8  # of the number of seeds that is said to decide
DIGITS = 9  # decimals of a difference in points; further ones are rounding error, which must not look like spread


@dataclass(frozen=True)
class Interval:
    """An interval of a mean difference over n values, in points; NaN if the values do not determine it."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def shown(self) -> Cell:
        """`+3.4 (+2.0 to +4.8)`; the mean alone without an interval, and `-` without a mean."""
        return number(self.mean, "+.1f", *([] if math.isnan(self.low) else [str(ends(self.low, self.high))]))


def interval_of(row: Any) -> Interval:
    """The interval of a row of `all_pairs`, or of a finding."""
    return Interval(row.mean, row.low, row.high, row.n)


def ends(low: float, high: float) -> Cell:
    """`+2.0 to +4.8`; `-` without an interval."""
    return "-" if math.isnan(low) else Value(low, f"{low:+.1f} to {high:+.1f}")


def paired_differences(one: pd.DataFrame, other: pd.DataFrame, column: str = "best") -> pd.DataFrame:
    """Differences between two methods' runs, per task and seed.

    Args:
        one, other: Rows of the frame of runs, each of one method, with one run per task and seed.
    Returns: Columns task, seed, run_id, run_id_other, difference (one - other, in points). Runs without a partner of
        the same terms, or without a value, are excluded.
    """
    keys = ["task", "seed", "terms"]
    one, other = (side[[*keys, "run_id", column]] for side in (one, other))  # merging all columns is slow
    pairs = one.merge(other, on=keys, suffixes=("", "_other"))
    pairs["difference"] = (100 * (pairs[column] - pairs[f"{column}_other"])).round(DIGITS)
    return pairs[["task", "seed", "run_id", "run_id_other", "difference"]].dropna().reset_index(drop=True)


def by_seed(pairs: pd.DataFrame, tasks: Sequence[str]) -> pd.Series:
    """Seed -> the mean over tasks of its differences. Seeds that lack one of the tasks are excluded."""
    table = pairs.pivot(index="seed", columns="task", values="difference").reindex(columns=sorted(tasks)).dropna()
    return table.mean(axis=1).round(DIGITS)


def mean_interval(values: Float[np.ndarray, " n"]) -> Interval:
    """Student's t interval of the mean of independent values.

    Returns: NaN bounds for fewer than two values or equal values: without spread there is no interval.
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    half = math.nan
    if count > 1 and np.ptp(values):
        half = float(special.stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def seeds_and_rows(over_seeds: Interval, tables: Sequence[Float[np.ndarray, "seeds _"]]) -> Interval:
    """The interval of a mean difference over tasks for other seeds and other dev rows: a crossed random-effects model.

    Source: Owen 2007 (Annals of Applied Statistics 1(2)) for the variance of a crossed array; Satterthwaite 1946 for
        the degrees of freedom.

    Args:
        over_seeds: The interval over seeds, whose variance holds the interaction of seeds and rows already.
        tables: Per task, the jackknife pseudo-values of each seed's difference, in points: R d - (R - 1) d(-i) for the
            difference d on R rows and d(-i) without row i. For accuracy they are the rows' differences themselves.
    Returns: At least as wide as `over_seeds`; NaN bounds where that has none.
    """
    if math.isnan(over_seeds.low):
        return over_seeds
    seeds = over_seeds.n
    half = over_seeds.high - over_seeds.mean
    of_seeds = (half / special.stdtrit(seeds - 1, (1 + LEVEL) / 2)) ** 2
    variance, by_degrees = of_seeds, of_seeds**2 / (seeds - 1)
    for table in tables:
        count = table.shape[1]
        row_means = table.mean(axis=0)
        residuals = table - table.mean(axis=1, keepdims=True) - row_means + table.mean()
        shared = row_means.var(ddof=1) / (count * len(tables) ** 2)
        residual = (residuals**2).sum() / ((seeds - 1) * (count - 1)) / (seeds * count * len(tables) ** 2)
        variance += shared - residual
        by_degrees += shared**2 / (count - 1) + residual**2 / ((seeds - 1) * (count - 1))
    variance = max(variance, of_seeds)
    degrees = max(variance**2 / by_degrees, seeds - 1)
    half = max(half, float(special.stdtrit(degrees, (1 + LEVEL) / 2)) * math.sqrt(variance))
    return Interval(over_seeds.mean, over_seeds.mean - half, over_seeds.mean + half, seeds)


def seeds_needed(
    values: Float[np.ndarray, " n"], edges: Sequence[tuple[float, Literal["less", "greater"]]], comparisons: int = 1
) -> float:
    """The smallest number of seeds that decide about a bound with a probability of `POWER`, at this mean and spread.

    If the mean keeps the bound, the whole interval must; else a one-sided test must break it after Holm's correction.
    Source: power of the t-test, the noncentral t distribution.

    Args:
        edges: The ends of the bound, each with the side on which it is broken.
        comparisons: Number of comparisons that Holm's correction is over; the first of its steps is assumed.
    Returns: At least `ENOUGH_SEEDS`; infinite if `MOST_SEEDS` are too few; NaN if the values have no spread.
    """
    if len(values) < 2 or not np.ptp(values):
        return math.nan
    mean, std = float(values.mean()), float(values.std(ddof=1))

    def missed(edge: float, level: float, count: int) -> float:
        """The probability that a one-sided t-test at this level does not tell the mean from the edge."""
        quantile = special.stdtrit(count - 1, 1 - level)
        probability = float(special.nctdtr(count - 1, abs(mean - edge) * math.sqrt(count) / std, quantile))
        return 0.0 if math.isnan(probability) else probability

    one_sided = (1 - LEVEL) / 2
    broken = [edge for edge, side in edges if (mean <= edge if side == "less" else mean >= edge)]

    def decides(count: int) -> bool:
        if broken:
            return min(missed(edge, one_sided / comparisons, count) for edge in broken) <= 1 - POWER
        return sum(missed(edge, one_sided, count) for edge, _ in edges) <= 1 - POWER

    count = bisect_left(range(MOST_SEEDS + 1), True, ENOUGH_SEEDS, key=decides)  # the power grows with the seeds
    return count if count <= MOST_SEEDS else math.inf


def needed_text(count: float, what: str) -> str:
    """A part of a sentence about `seeds_needed`; empty if it is not known."""
    seeds = f"more than {MOST_SEEDS}" if math.isinf(count) else f"about {count:.0f}"
    return "" if math.isnan(count) else f"; {seeds} seeds would {what} with {POWER:.0%} power"


def direction(difference: Interval) -> str:
    """`higher` or `lower` if an interval of at least `ENOUGH_SEEDS` pairs is above or below 0, else `undecided`."""
    if difference.n < ENOUGH_SEEDS or not (difference.low > 0 or difference.high < 0):
        return "undecided"
    return "higher" if difference.low > 0 else "lower"


def few_text(difference: Interval) -> str:
    """A part of a sentence about fewer pairs than a verdict needs, or pairs without spread; empty for enough."""
    if difference.n < ENOUGH_SEEDS:
        return f"; a verdict needs at least {ENOUGH_SEEDS} seeds"
    return "; the same on every seed, which gives no interval" if math.isnan(difference.low) else ""


def mean_p(
    values: Float[np.ndarray, " n"], expected: float, alternative: Literal["less", "greater", "two-sided"]
) -> float:
    """p-value of Student's t-test of a mean against `expected`; NaN for fewer than two values, or no spread."""
    if len(values) < 2 or not np.ptp(values):
        return math.nan
    t = (values.mean() - expected) * math.sqrt(len(values)) / values.std(ddof=1)
    tail = {"less": t, "greater": -t, "two-sided": -abs(t)}[alternative]
    return float(special.stdtr(len(values) - 1, tail) * (2 if alternative == "two-sided" else 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple tests (Holm 1979): the k-th smallest of m times m + 1 - k, never falling. NaN
    stays NaN and does not count in m."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for place, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - place)))
        corrected[index] = highest
    return corrected


def all_pairs(
    groups: Mapping[str, pd.DataFrame], score: str = "best", sides: Iterable[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Compare every method (label -> its runs) with every other, per task and on the average of their common tasks.

    Args:
        sides: The pairs of labels to compare, the first minus the second. None: each later one minus each earlier.
    Returns: Columns one, other, task (`Avg.` for the average), n, mean, low, high, p (of the paired t-test; for the
        average, over the seeds' averages), needed (`seeds_needed` to tell the two apart), runs (pairs of run_ids).
    """
    scores, names, terms = (
        {label: group.pivot(index="seed", columns="task", values=value) for label, group in groups.items()}
        for value in (score, "run_id", "terms")
    )
    rows = []
    for one, other in [pair[::-1] for pair in combinations(groups, 2)] if sides is None else sides:
        alike = terms[one].eq(terms[other].reindex_like(terms[one]))
        pairs = (100 * (scores[one] - scores[other])).where(alike).round(DIGITS).dropna(axis=1, how="all")
        tasks = task_order(pairs.columns)
        tables = [table.reindex(pairs.index, columns=tasks).to_numpy() for table in (pairs, names[one], names[other])]
        places = {task: [i] for i, task in enumerate(tasks)} | ({"Avg.": slice(None)} if len(tasks) > 1 else {})
        for place, averaged in places.items():
            paired = ~pd.isna(tables[0][:, averaged]).any(axis=1)
            chosen, *sides = (table[paired][:, averaged] for table in tables)
            values = chosen.astype(float).mean(axis=1).round(DIGITS)  # as `by_seed`
            compared = vars(mean_interval(values)) | {"p": mean_p(values, 0.0, "two-sided")}
            compared["needed"] = seeds_needed(values, [(0.0, "less" if compared["mean"] > 0 else "greater")])
            compared["runs"] = tuple(zip(*(side.ravel() for side in sides), strict=True))
            rows.append({"one": one, "other": other, "task": place, **compared})
    columns = ["one", "other", "task", "n", "mean", "low", "high", "p", "needed", "runs"]
    return pd.DataFrame(rows, columns=columns)
