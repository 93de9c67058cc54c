"""Ratios of cost against their bounds, from what `python -m lora efficiency` left in results/efficiency/."""

import json
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
from lora.report.claims.findings import Finding, smallest_p
from lora.report.claims.statements import BASES, Claim, Compare


def ratios(claim: Claim, compare: Compare, summary: Mapping[str, Any], path: Path, folder: Path) -> list[Finding]:
    """The ratio of one measure, for each batch x tokens where it has one; nothing where the method was not measured.

    Raises: UserError: If the summary is of another layout.
    """
    try:
        to_other = (summary.get(compare.one) or {}).get(f"to_{compare.other}")
        if compare.other not in BASES:
            to_other = of_samples(path.parent / "samples.csv", claim.measure, compare)
            if to_other is None and {compare.one, compare.other} <= set(summary):
                return [without_samples(claim, compare, str(path.relative_to(folder.parent)))]
        if to_other is None or to_other.get(claim.measure) is None:
            return []
        values, rounds = to_other[claim.measure], summary["about"]["plan"]["rounds"]
        by_shape = values if isinstance(values, dict) else {"": values}
        timed = claim.measure in TIMES.values()  # the others are counted, and exact
        intervals = to_other[f"{claim.measure}_interval"] if timed else {}
        measured = ratios_by_round(path.parent / "samples.csv", claim.measure, compare) if timed else {}
        found, source = [], (str(path.relative_to(folder.parent)),)
        edges = tuple(edge for edge, _ in compare.bound.edges)
        for shape, value in by_shape.items():
            low, high = (intervals[shape] or (math.nan, math.nan)) if timed else (value, value)
            holds, reason, n = compare.bound.holds(low, high), "", rounds if timed else None
            if not timed:
                p_against = 1.0 if holds else 0.0
            elif math.isnan(low):
                holds, p_against, reason = None, math.nan, f"{n} rounds: an interval of their median needs more"
            else:
                p_against = smallest_p(measured[shape], compare.bound, sign_p) if shape in measured else math.nan
                reason = "" if holds is not None else "the bound lies inside the interval"
            label = f"{claim.measure} of {compare.one} / {compare.other}" + (f" at {shape}" if shape else "")
            stated = compare.bound.text
            found.append(Finding(label, value, low, high, n, stated, edges, p_against, holds, reason, source, "ratio"))
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a summary of python -m lora efficiency: {error!r}") from error


def without_samples(claim: Claim, compare: Compare, source: str) -> Finding:
    nan, edges = math.nan, tuple(edge for edge, _ in compare.bound.edges)
    label = f"{claim.measure} of {compare.one} / {compare.other}"
    reason = f"no samples of {compare.one} and {compare.other} beside the summary"
    return Finding(label, nan, nan, nan, 0, compare.bound.text, edges, nan, None, reason, (source,), "ratio")


def of_samples(path: Path, measure: str, compare: Compare) -> dict[str, Any] | None:
    """The ratio to a method for which the summary has none, in the summary's form; None without samples of both."""
    found = ratios_by_round(path, measure, compare)
    values = {shape: round(float(np.median(of_rounds)), 6) for shape, of_rounds in found.items()}
    intervals = {shape: median_interval(of_rounds) for shape, of_rounds in found.items()}
    return {measure: values, f"{measure}_interval": intervals} if found else None


def ratios_by_round(path: Path, measure: str, compare: Compare) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Shape -> the ratio of each round, from the samples beside a summary; empty where they were not kept.

    Raises: UserError: If the file is none of samples.
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


def read_json(path: Path) -> dict[str, Any]:
    """Raises: UserError: If it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content
