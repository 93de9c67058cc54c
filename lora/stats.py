"""How sure a difference between two methods is: paired by seed, with bootstrap intervals. Frames and arrays; no torch.

What is resampled, and why. A cell of Table 2 is a few seeds on one fixed dev set, so a difference between two cells may
be luck in two ways, which two intervals keep apart:

    seeds     Would other seeds, on this dev set, show the same? The tasks are fixed, not a sample of tasks: each is a
              stratum, and its seeds are resampled within it. Runs are paired, since two methods with one seed share the
              head's init and the order of the rows, and their difference varies less than either.
    examples  Would other dev examples of the task, with these very runs, show the same? See lora/examples.py.

Verdicts use the first: the paper's sentences are about these dev sets. With n seeds the range of a cell's values covers
its median with probability 1 - 2^(1 - n): 75% for 3 seeds, 94% for 5. So nothing is decided on fewer than 5 pairs.
The interval is of the mean of the paired differences: a median of 5 values takes few values when it is resampled.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from lora.errors import UserError
from lora.order import drawn

LEVEL = 0.95
RESAMPLES = 10_000
ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class Interval:
    """Of a mean difference, in points; NaN where there are too few values to tell.

    Args:
        n: Pairs of seeds in the task that has the fewest.
    """

    mean: float
    low: float
    high: float
    n: int


def median_coverage(n: int) -> float:
    """The probability that the range of n independent values covers the median of what they are drawn from."""
    return max(0.0, 1 - 2.0 ** (1 - n))


def paired_differences(one: pd.DataFrame, other: pd.DataFrame, column: str = "best") -> pd.DataFrame:
    """Differences of two methods' runs, task by task and seed by seed.

    Args:
        one, other: Rows of the frame of runs (`lora.results.load_frame`), each of one method.
    Returns: Columns task, seed, run_id, run_id_other, difference (one - other, in points); pairs without a partner or
        a value are left out.
    Raises: UserError: If a side has two runs of one task and seed, so that it is not one method.
    """
    keys = ["task", "seed"]
    for side in (one, other):
        twice = side[side.duplicated(keys, keep=False)]
        if len(twice):
            raise UserError(f"two runs of one task and seed cannot be one side of a pair: {', '.join(twice['run_id'])}")
    pairs = one.merge(other, on=keys, suffixes=("", "_other"))
    pairs["difference"] = 100 * (pairs[column] - pairs[f"{column}_other"])
    return pairs[[*keys, "run_id", "run_id_other", "difference"]].dropna().reset_index(drop=True)


def mean_interval(strata: Sequence[np.ndarray], level: float = LEVEL) -> Interval:
    """A stratified bootstrap interval of the mean over strata of their means.

    Percentiles of resampled means are too narrow for few values: they leave out the factor n / (n - 1) of the variance
    and Student's t. Both are put back by taking wider percentiles (Hesterberg 2015, arXiv:1411.5279: the
    expanded percentile interval), with Satterthwaite's degrees of freedom, since tasks differ in how much seeds matter.

    No percentile of resampled means lies outside of the values, so that those of 3 or 4 alone cannot reach 95%: there
    it is Student's interval, which the expanded one stands for.

    Args:
        strata: The paired differences of each task.
    Returns: NaN bounds where no stratum has two values.
    """
    counts = [len(values) for values in strata]
    if not counts or min(counts) < 1:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean, fewest = float(np.mean([values.mean() for values in strata])), min(counts)
    if fewest < 2:
        return Interval(mean, math.nan, math.nan, fewest)
    variances = [values.var(ddof=1) / len(values) for values in strata]
    if not any(variances):
        return Interval(mean, mean, mean, fewest)
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    t = float(stats.t.ppf((1 + level) / 2, freedom))
    tail = float(stats.norm.cdf(-math.sqrt(fewest / (fewest - 1)) * t))
    if tail <= math.prod(
        float(n) ** -n for n in counts
    ):  # the share of resamples that take the lowest value throughout
        half = t * math.sqrt(sum(variances)) / len(counts)
        return Interval(mean, mean - half, mean + half, fewest)
    picks = [resamples(n, index) for index, n in enumerate(counts)]
    means = [values[picked].mean(axis=1) for values, picked in zip(strata, picks, strict=True)]
    low, high = np.quantile(np.mean(means, axis=0), (tail, 1 - tail))
    return Interval(mean, float(low), float(high), fewest)


@functools.lru_cache(maxsize=32)
def resamples(n: int, stratum: int) -> Int[np.ndarray, "b n"]:
    """Which of n values each resample of a stratum takes: the same for every comparison, and drawn once."""
    return drawn((RESAMPLES, n), n, "seeds", stratum)


def by_task(pairs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Task -> its paired differences, in the order of the seeds."""
    return {
        task: group.sort_values("seed")["difference"].to_numpy() for task, group in pairs.groupby("task", sort=True)
    }


def paired_p(differences: Float[np.ndarray, " n"]) -> float:
    """Two-sided p-value of the paired t-test; NaN for fewer than two pairs, or pairs that all differ by the same."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for looking at all of them (Holm 1979): the k-th smallest of m times m + 1 - k, never falling.

    NaN stays NaN and is not counted.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for place, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - place)))
        corrected[index] = highest
    return corrected


def all_pairs(groups: Mapping[str, pd.DataFrame], column: str = "best") -> pd.DataFrame:
    """Every method against every other, task by task and on the average of their common tasks.

    Args:
        groups: Label -> the runs of one method, in the order of the tables.
    Returns: Columns one, other, task (`Avg.` for the average), n, mean, low, high, p (of the paired t-test, tasks
        only).
    """
    rows = []
    for other, one in combinations(groups, 2):  # the later one minus the earlier
        tasks = by_task(paired_differences(groups[one], groups[other], column))
        strata = {task: [values] for task, values in tasks.items()}
        if len(strata) > 1:
            strata["Avg."] = list(tasks.values())
        for task, values in strata.items():
            found = mean_interval(values)
            p = paired_p(values[0]) if task != "Avg." else math.nan
            rows.append({"one": one, "other": other, "task": task, **vars(found), "p": p})
    return pd.DataFrame(rows, columns=["one", "other", "task", "n", "mean", "low", "high", "p"])
