"""One comparison of a claim, judged; and which of a claim's comparisons break their bounds after Holm's correction."""

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
        label: What was compared.
        mean, low, high: The difference in points or the ratio, and its interval; NaN where it is not known.
        n: Number of seeds that have every task on both sides, or of rounds; None for what is counted and exact.
        p_against: One-sided p-value against the bound, before Holm's correction; NaN where it was not tested.
        holds: None: cannot tell, for the `reason`.
        runs: The run_ids, or the file, behind it.
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


def not_measured(label: str, bound: Bound, reason: str, unit: Unit, runs: tuple[str, ...] = ()) -> Finding:
    """A comparison of which a side is absent."""
    nan = math.nan
    return Finding(label, nan, nan, nan, 0, bound, nan, None, reason, runs, unit)


def exact(label: str, value: float, n: int | None, bound: Bound, runs: tuple[str, ...], unit: Unit) -> Finding:
    """What is counted has no error: it keeps its bound or breaks it."""
    holds = bound.holds(value, value)
    return Finding(label, value, value, value, n, bound, 1.0 if holds else 0.0, holds, "", runs, unit)


def smallest_p(values: Float[np.ndarray, " n"], bound: Bound, test: Callable[..., float]) -> float:
    """The one-sided p-value against a bound: the smaller one of its ends."""
    return min(test(values, edge, side) for edge, side in bound.edges)


def after_holm(findings: Sequence[Finding]) -> list[Finding]:
    """Any broken bound refutes a claim, so that one which is broken without the correction only does not count."""
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
