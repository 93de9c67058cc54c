"""How sure a difference between two methods is: paired by seed, with Student's t. Frames and arrays; no torch.

A cell of Table 2 is a few seeds on one fixed dev set. A difference between two cells may be luck in two ways, which two
intervals keep apart:

    seeds     Would other seeds, on this dev set, show the same? Runs are paired: two methods with one seed share the
              head's init and the order of the rows, so their difference varies less than either.
    examples  Would other dev examples of the task, with these very runs, show the same? See analyses/dev_intervals.py.

Verdicts use the first: the paper's sentences are about these dev sets. The tasks are fixed, not a sample of tasks. They
share their seeds, and with these the head's init and the order of the rows, so their differences are correlated. An
average over tasks is therefore taken within each seed, and the spread of these averages over seeds gives the interval.
Only seeds that have every task count. Treating tasks as independent covers the truth 89% of the time instead of 95%
where seeds correlate by 0.2 across tasks, and 81% where they correlate by 0.4 (5 seeds, 5 tasks).

The t interval is of the mean and takes the differences to be normal. It exists from 2 pairs on. A verdict takes at
least 5 pairs, which is a convention of this project and follows from no theorem.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from lora.errors import UserError

LEVEL = 0.95
ENOUGH_SEEDS = 5
MOST_SEEDS = 100  # `seeds_needed` looks no further
DIGITS = 9  # of a difference in points; what follows is rounding, which must not look like spread


@dataclass(frozen=True)
class Interval:
    """An interval of a mean difference, in points; NaN where the values do not give one.

    Args:
        n: Number of values: pairs of seeds, or seeds that have every task.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_differences(one: pd.DataFrame, other: pd.DataFrame, column: str = "best") -> pd.DataFrame:
    """Differences of two methods' runs, task by task and seed by seed.

    Args:
        one, other: Rows of the frame of runs (`lora.records.record.load_frame`), each of one method.
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
    pairs["difference"] = (100 * (pairs[column] - pairs[f"{column}_other"])).round(DIGITS)
    return pairs[[*keys, "run_id", "run_id_other", "difference"]].dropna().reset_index(drop=True)


def seed_averages(pairs: pd.DataFrame, tasks: Sequence[str]) -> Float[np.ndarray, " seeds"]:
    """The mean over tasks of each seed's differences, by seed; a seed that lacks one of the tasks is left out.

    Args:
        pairs: `paired_differences`.
        tasks: One task or several; their order does not matter.
    """
    table = pairs.pivot(index="seed", columns="task", values="difference").reindex(columns=sorted(tasks)).dropna()
    return table.mean(axis=1).round(DIGITS).to_numpy(float)


def mean_interval(values: Float[np.ndarray, " n"], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent values.

    Returns: NaN bounds for fewer than two values, or values that are all equal: no spread, no interval.
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    half = float(half_width(values.std(ddof=1), count, level)) if count > 1 and np.ptp(values) else math.nan
    return Interval(mean, mean - half, mean + half, count)


def half_width(std: float, count: int | Int[np.ndarray, " k"], level: float = LEVEL) -> Any:
    """Half the width of a t interval, the quantile times the standard error; one for each count."""
    return stats.t.ppf((1 + level) / 2, count - 1) * std / np.sqrt(count)


def seeds_needed(values: Float[np.ndarray, " n"], settles: Callable[[float, float], bool]) -> int | None:
    """The fewest seeds with which the interval would settle a question, if mean and spread stayed as they are.

    Args:
        settles: Whether an interval from low to high does.
    Returns: At least `ENOUGH_SEEDS`; None where `MOST_SEEDS` are too few.
    Raises: ValueError: If the values have no spread to go by.
    """
    if len(values) < 2 or not np.ptp(values):
        raise ValueError(f"expected at least two different values, got {values}")
    counts = np.arange(ENOUGH_SEEDS, MOST_SEEDS + 1)
    ends = zip(counts.tolist(), half_width(values.std(ddof=1), counts).tolist(), strict=True)
    mean = float(values.mean())
    return next((count for count, half in ends if settles(mean - half, mean + half)), None)


def paired_p(differences: Float[np.ndarray, " n"]) -> float:
    """Two-sided p-value of the paired t-test; NaN for fewer than two pairs, or pairs that all differ by the same."""
    return mean_p(differences, 0.0, "two-sided")


def mean_p(
    values: Float[np.ndarray, " n"], expected: float, alternative: Literal["less", "greater", "two-sided"]
) -> float:
    """p-value of Student's t-test of a mean against `expected`; NaN for fewer than two values, or no spread."""
    if len(values) < 2 or not np.ptp(values):
        return math.nan
    return float(stats.ttest_1samp(values, expected, alternative=alternative).pvalue)


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
    Returns: Columns one, other, task (`Avg.` for the average), n, mean, low, high, p (of the paired t-test; on the
        average, of the seeds' averages).
    """
    rows = []
    for other, one in combinations(groups, 2):  # the later one minus the earlier
        pairs = paired_differences(groups[one], groups[other], column)
        tasks = sorted(set(pairs["task"]))
        places = {task: [task] for task in tasks} | ({"Avg.": tasks} if len(tasks) > 1 else {})
        for place, averaged in places.items():
            values = seed_averages(pairs, averaged)
            rows.append(
                {"one": one, "other": other, "task": place, **vars(mean_interval(values)), "p": paired_p(values)}
            )
    return pd.DataFrame(rows, columns=["one", "other", "task", "n", "mean", "low", "high", "p"])
