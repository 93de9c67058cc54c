"""Ratios of cost against their bounds, from the measurements of `python -m lora efficiency` in results/efficiency/."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.cost.efficiency.summary import TIMES, by_round
from lora.cost.timing import median_interval, sign_p
from lora.errors import UserError, first_line
from lora.methods.titles import METHOD_TITLES
from lora.report.claims.findings import Finding, exact, not_measured, smallest_p
from lora.report.claims.statements import BASES, Claim, Compare

MEASURES = {
    "trainable": "trainable parameters",
    "checkpoint_bytes": "size of a checkpoint",
    "optimizer_bytes": "optimizer state",
    "saved_activation_bytes": "saved activations",
    "step_ms": "time of a training step",
    "latency_ms": "latency",
}
SHAPE = ", batch "  # what a label says before its shape
SIDES = METHOD_TITLES | {"full": "full fine-tuning", "lora_merged": "merged LoRA", "base": "untouched encoder"}


def ratios(claim: Claim, compare: Compare, summary: Mapping[str, Any], path: Path, folder: Path) -> list[Finding]:
    """The ratio of one measure, per shape (batch x tokens) if it depends on that; [] if the method was not measured.

    Raises: UserError: If the summary has another layout.
    """
    samples, bound, source = path.parent / "samples.csv", compare.bound, (str(path.relative_to(folder.parent)),)
    try:
        to_other = (summary.get(compare.one) or {}).get(f"to_{compare.other}")
        if compare.other not in BASES:
            to_other = of_samples(samples, claim.measure, compare)
            if to_other is None and {compare.one, compare.other} <= set(summary):
                names = " and ".join(map(SIDES.get, (compare.one, compare.other)))
                reason = f"samples.csv has no samples of {names}"
                return [not_measured(cost_label(claim.measure, compare), bound, reason, "ratio", source)]
        if to_other is None or to_other.get(claim.measure) is None:
            return []
        values, rounds = to_other[claim.measure], summary["about"]["plan"]["rounds"]
        by_shape = values if isinstance(values, dict) else {"": values}
        if claim.measure not in TIMES.values():
            return [
                exact(cost_label(claim.measure, compare, shape), value, None, bound, source, "ratio")
                for shape, value in by_shape.items()
            ]
        intervals = to_other[f"{claim.measure}_interval"]
        measured, found = ratios_by_round(samples, claim.measure, compare), []
        for shape, value in by_shape.items():
            low, high = intervals[shape] or (math.nan, math.nan)
            holds, p_against, reason = bound.holds(low, high), math.nan, ""
            if math.isnan(low):
                reason = f"{rounds} rounds: an interval of their median needs more"
            else:
                p_against = smallest_p(measured[shape], bound, sign_p) if shape in measured else math.nan
                reason = "" if holds is not None else "the bound lies inside the interval"
            label = cost_label(claim.measure, compare, shape)
            found.append(Finding(label, value, low, high, rounds, bound, p_against, holds, reason, source, "ratio"))
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a summary of python -m lora efficiency: {error!r}") from error


def cost_label(measure: str, compare: Compare, shape: str = "") -> str:
    """`time of a training step, LoRA / full fine-tuning, batch 16 x 28 tokens`."""
    served = {"lora": "unmerged LoRA"} if measure == "latency_ms" else {}
    one, other = ((SIDES | served)[side] for side in (compare.one, compare.other))
    return f"{MEASURES[measure]}, {one} / {other}" + (f"{SHAPE}{shape.replace('x', ' x ')} tokens" if shape else "")


def of_samples(path: Path, measure: str, compare: Compare) -> dict[str, Any] | None:
    """The ratio to a method that the summary has no ratios to, in the summary's form; None without samples of both."""
    found = ratios_by_round(path, measure, compare)
    values = {shape: round(float(np.median(of_rounds)), 6) for shape, of_rounds in found.items()}
    intervals = {shape: median_interval(of_rounds) for shape, of_rounds in found.items()}
    return {measure: values, f"{measure}_interval": intervals} if found else None


def ratios_by_round(path: Path, measure: str, compare: Compare) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Shape -> the ratio in each round, from the samples next to a summary; empty if they were not kept.

    Raises: UserError: If the file is not one of samples.
    """
    if not path.exists():
        return {}
    try:
        times = by_round(pd.read_csv(path).to_dict("records"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a file of samples: {first_line(error)}") from error
    kind = next(kind for kind, key in TIMES.items() if key == measure)
    one, other = times.get((kind, compare.one), {}), times.get((kind, compare.other), {})
    return {shape: one[shape] / other[shape] for shape in one if shape in other}
