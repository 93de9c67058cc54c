"""One judged comparison of a claim, and the comparisons that break their bounds after Holm's correction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from lora.report.claims.statements import Bound
from lora.report.stats import LEVEL, holm

Unit = Literal["points", "ratio", "failures"]


@dataclass(frozen=True)
class Finding:
    """One comparison, judged.

    Args:
        label: The name of the comparison.
        mean, low, high: The difference in points, the ratio or the failures, and the interval; NaN if unknown.
        n: Number of seeds that have every task on both sides, of rounds, or of trials; None for exact counts.
        p_against: One-sided p-value against the bound, before Holm's correction; NaN if untested.
        holds: Whether the bound holds; None if that cannot be decided, for the `reason`.
        runs: The run_ids or the file that it is based on.
        across: Number of those seeds whose two runs ran on different devices.
    """

    label: str
    mean: float
    low: float
    high: float
    n: int | None
    bound: Bound
    p_against: float
    holds: bool | None
    reason: str
    runs: tuple[str, ...]
    unit: Unit
    across: int = 0


def not_measured(label: str, bound: Bound, reason: str, unit: Unit, runs: tuple[str, ...] = ()) -> Finding:
    """A comparison without measurements."""
    nan = math.nan
    return Finding(label, nan, nan, nan, 0, bound, nan, None, reason, runs, unit)


def exact(label: str, value: float, n: int | None, bound: Bound, runs: tuple[str, ...], unit: Unit) -> Finding:
    """A comparison of counts. They have no error, so they keep or break the bound."""
    holds = bound.holds(value, value)
    return Finding(label, value, value, value, n, bound, 1.0 if holds else 0.0, holds, "", runs, unit)


def smallest_p(values: Float[np.ndarray, " n"], bound: Bound, test: Callable[..., float]) -> float:
    """The one-sided p-value against a bound: the smallest over its ends."""
    return min(test(values, edge, side) for edge, side in bound.edges)


def after_holm(findings: Sequence[Finding]) -> list[Finding]:
    """Apply Holm's correction, since any broken bound refutes a claim. A bound broken only without it is undecided."""
    corrected = holm([1.0 if math.isnan(found.p_against) else found.p_against for found in findings])
    kept = []
    for found, p in zip(findings, corrected, strict=True):
        if found.holds is False and p > (1 - LEVEL) / 2:
            reason = "outside the bound, but there are no samples to test it on"
            if not math.isnan(found.p_against):
                reason = f"outside the bound, but not after correction for {len(findings)} comparisons"
            found = replace(found, holds=None, reason=reason)
        kept.append(found)
    return kept
