"""One judged comparison of a claim: of counts, of times, or of cells (`lora.report.claims.verdicts`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.cost.efficiency.summary import TIMES, by_round
from lora.cost.timing import median_interval, sign_p
from lora.methods.titles import METHOD_TITLES
from lora.models.sizes import gpt3_count
from lora.report.claims.statements import Bound, Claim, Compare
from lora.report.stats import LEVEL, holm
from lora.report.titles import encoder_title, slug_label

Unit = Literal["points", "ratio", "failures"]
GPT3 = "GPT-3 175B"
SHAPE = ", batch "  # what a label says before its shape
MEASURES = {
    "trainable": "trainable parameters",
    "checkpoint_bytes": "size of a checkpoint",
    "optimizer_bytes": "optimizer state",
    "saved_activation_bytes": "saved activations",
    "step_ms": "time of a training step",
    "latency_ms": "latency",
}
SIDES = METHOD_TITLES | {"full": "full fine-tuning", "lora_merged": "merged LoRA", "base": "untouched encoder"}


@dataclass(frozen=True)
class Finding:
    """One comparison, judged.

    Args:
        label: The name of the comparison.
        n: Number of seeds that have every task on both sides, of rounds, or of trials; None for exact counts.
        holds: Whether the bound holds; None if that cannot be decided, for the `reason`.
        mean, low, high: The difference in points, the ratio or the failures, and the interval; NaN if unknown.
        p_against: One-sided p-value against the bound, before Holm's correction; NaN if untested.
        runs: The run_ids or the file that it is based on.
    """

    label: str
    unit: Unit
    n: int | None
    bound: Bound
    holds: bool | None = None
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_against: float = math.nan
    reason: str = ""
    runs: tuple[str, ...] = ()


def exact(label: str, value: float, n: int | None, bound: Bound, runs: Sequence[str], unit: Unit) -> Finding:
    """A comparison of counts. They have no error, so they keep or break the bound."""
    holds = bound.holds(value, value)
    return Finding(label, unit, n, bound, holds, value, value, value, 0.0 if holds is False else 1.0, runs=tuple(runs))


def timed(label: str, values: Float[np.ndarray, " rounds"], bound: Bound, runs: tuple[str, ...]) -> Finding:
    """A comparison of times: the median of the rounds' ratios, judged by the sign test."""
    mean, interval = float(np.median(values)), median_interval(values)
    if interval is None:
        reason = f"{len(values)} rounds: an interval of their median needs more"
        return Finding(label, "ratio", len(values), bound, mean=mean, reason=reason, runs=runs)
    holds = bound.holds(*interval)
    reason = "" if holds is not None else "the interval includes the bound"
    p = smallest_p(values, bound, sign_p)
    return Finding(label, "ratio", len(values), bound, holds, mean, *interval, p, reason=reason, runs=runs)


def smallest_p(values: Float[np.ndarray, " n"], bound: Bound, test: Callable[..., float]) -> float:
    """The one-sided p-value against a bound: the smallest over its ends."""
    return min(test(values, edge, side) for edge, side in bound.edges)


def after_holm(findings: Sequence[Finding]) -> list[Finding]:
    """Apply Holm's correction, since any broken bound refutes a claim. A bound broken only without it is undecided."""
    corrected = holm([1.0 if math.isnan(found.p_against) else found.p_against for found in findings])
    reason = f"outside the bound, but not after correction for {len(findings)} comparisons"
    return [
        replace(found, holds=None, reason=reason) if found.holds is False and p > (1 - LEVEL) / 2 else found
        for found, p in zip(findings, corrected, strict=True)
    ]


def ratios(claim: Claim, compare: Compare, path: Path, summary: Mapping[str, Any], folder: Path) -> list[Finding]:
    """The ratio of one measure, per shape (batch x tokens) if it depends on that; [] if the method was not measured.

    Args:
        path, summary: A summary of `python -m lora efficiency`, whose samples of times are in samples.csv next to it.
        folder: The folder of all measurements.
    """
    source, bound, measure = (str(path.relative_to(folder.parent)),), compare.bound, claim.measure
    served = {"lora": "unmerged LoRA"} if measure == "latency_ms" else {}
    one, other = ((SIDES | served)[side] for side in (compare.one, compare.other))
    label = f"{MEASURES[measure]}, {one} / {other}"

    def named(shape: str) -> str:
        return f"{label}{SHAPE}{shape.replace('x', ' x ')} tokens" if shape else label

    if measure in TIMES.values():
        by_shape = ratios_by_round(path.with_name("samples.csv"), measure, compare)
        return [timed(named(shape), values, bound, source) for shape, values in by_shape.items()]
    values = ((summary.get(compare.one) or {}).get(f"to_{compare.other}") or {}).get(measure)
    values = {} if values is None else values if isinstance(values, dict) else {"": values}
    return [exact(named(shape), value, None, bound, source, "ratio") for shape, value in values.items()]


def ratios_by_round(path: Path, measure: str, compare: Compare) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Shape -> the ratio in each round; empty if the samples of a side were not kept."""
    if not path.exists():
        return {}
    times = by_round(pd.read_csv(path).to_dict("records"))
    kind = next(kind for kind, key in TIMES.items() if key == measure)
    one, other = times.get((kind, compare.one), {}), times.get((kind, compare.other), {})
    return {shape: one[shape] / other[shape] for shape in one if shape in other}


def count_ratios(claim: Claim, frame: pd.DataFrame) -> dict[str, list[Finding]]:
    """Model -> the claim's comparisons of trainable parameters. Models that lack a method of the claim are excluded.

    Args:
        frame: `load_frame` of a profile's records.
    """
    wanted, found = slugs_of(claim), {}
    counts = {GPT3: {slug: (gpt3_count(slug), "computed") for slug in wanted}} if claim.count == "gpt3" else {}
    if claim.count == "encoder":
        for model, runs in frame[frame["slug"].isin(wanted)].sort_values("run_id").groupby("model", sort=False):
            first = runs.drop_duplicates("slug").itertuples()
            counts[model] = {run.slug: (run.trainable_method, run.run_id) for run in first}
    for model, by_slug in counts.items():
        if set(wanted) <= set(by_slug):
            found[model] = []
            for compare in claim.compare:
                (one, of_one), (other, of_other) = by_slug[compare.one], by_slug[compare.other]
                names = " / ".join(slug_label(slug).replace("Full", "full") for slug in (compare.one, compare.other))
                label = f"trainable parameters, {names}, {encoder_title(model)}: {one:,} / {other:,}"
                runs = list(dict.fromkeys((of_one, of_other)))
                found[model].append(exact(label, one / other, None, compare.bound, runs, "ratio"))
    return found


def slugs_of(claim: Claim) -> list[str]:
    return list(dict.fromkeys(slug for compare in claim.compare for slug in (compare.one, compare.other)))


def checked(case: Mapping[str, Any]) -> Finding:
    """A case of an exact property: any failure refutes it."""
    return exact(case["label"], case["failures"], case["trials"], Bound("exactly", 0), case["runs"], "failures")
