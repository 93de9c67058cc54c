"""One judged comparison of a claim (`Finding`), and those of times, sizes, counts and exact properties."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.cost.efficiency.summary import TIMES, by_round
from lora.cost.timing import median_interval, sign_p
from lora.methods.titles import METHOD_TITLES
from lora.models.sizes import gpt3_count
from lora.report.claims.statements import Bound, Claim
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


def tested(label: str, unit: Unit, n: int, bound: Bound, p: float, needed: str, **numbers: Any) -> Finding:
    """A comparison judged by its interval. `needed`: the number of seeds that would decide, as a part of the reason."""
    holds = bound.holds(numbers["low"], numbers["high"])
    reason = f"the interval includes the bound{needed}" if holds is None else ""
    return Finding(label, unit, n, bound, holds, p_against=p, reason=reason, **numbers)


def exact(label: str, unit: Unit, n: int | None, bound: Bound, value: float, runs: tuple[str, ...]) -> Finding:
    """A comparison of counts. They have no error, so they keep or break the bound."""
    holds = bound.holds(value, value)
    return Finding(label, unit, n, bound, holds, value, value, value, 0.0 if holds is False else 1.0, runs=runs)


def smallest_p(values: Float[np.ndarray, " n"], bound: Bound, test: Callable[..., float]) -> float:
    """The one-sided p-value against a bound: the smallest over its ends."""
    return min(test(values, edge, side) for edge, side in bound.edges)


def ratios(claim: Claim, path: Path, summary: Mapping[str, Any], folder: Path) -> list[Finding]:
    """The ratios of one measure, per shape (batch x tokens) if it depends on that; [] if a method was not measured.

    Times are judged by the sign test on the ratios of the rounds, whose median is shown.

    Args:
        path, summary: A summary of `python -m lora efficiency`, whose samples of times are in samples.csv next to it.
        folder: The folder of all measurements.
    """
    source, samples, found = (str(path.relative_to(folder.parent)),), path.with_name("samples.csv"), []
    kind = next((kind for kind, key in TIMES.items() if key == claim.measure), None)
    times = by_round(pd.read_csv(samples).to_dict("records")) if kind and samples.exists() else {}
    served = {"lora": "unmerged LoRA"} if claim.measure == "latency_ms" else {}
    for compare in claim.compare:
        one, other, bound = compare.one, compare.other, compare.bound
        values = ((summary.get(one) or {}).get(f"to_{other}") or {}).get(claim.measure)
        by_shape = {} if values is None else values if isinstance(values, dict) else {"": values}
        if kind:
            sides = [times.get((kind, side), {}) for side in (one, other)]
            by_shape = {shape: sides[0][shape] / sides[1][shape] for shape in sides[0] if shape in sides[1]}
        for shape, value in by_shape.items():
            label = f"{MEASURES[claim.measure]}, {(SIDES | served)[one]} / {(SIDES | served)[other]}"
            label += f"{SHAPE}{shape.replace('x', ' x ')} tokens" if shape else ""
            if not kind:
                found.append(exact(label, "ratio", None, bound, value, source))
                continue
            n, mean, interval = len(value), float(np.median(value)), median_interval(value)
            if interval is None:
                reason = f"{n} rounds: an interval of their median needs more"
                found.append(Finding(label, "ratio", n, bound, mean=mean, reason=reason, runs=source))
            else:
                numbers = {"mean": mean, "low": interval[0], "high": interval[1], "runs": source}
                found.append(tested(label, "ratio", n, bound, smallest_p(value, bound, sign_p), "", **numbers))
    return found


def count_ratios(claim: Claim, frame: pd.DataFrame) -> dict[str, list[Finding]]:
    """Model -> the claim's comparisons of trainable parameters. Models that lack a method of the claim are excluded.

    Args:
        frame: `load_frame` of a profile's records.
    """
    wanted = {slug for compare in claim.compare for slug in (compare.one, compare.other)}
    counts = {GPT3: {slug: (gpt3_count(slug), "computed") for slug in wanted}} if claim.count == "gpt3" else {}
    if claim.count == "encoder":
        for model, runs in frame[frame["slug"].isin(wanted)].sort_values("run_id").groupby("model", sort=False):
            first = runs.drop_duplicates("slug").itertuples()
            counts[model] = {run.slug: (run.trainable_method, run.run_id) for run in first}
    found: dict[str, list[Finding]] = {}
    for model, by_slug in counts.items():
        for compare in claim.compare if wanted <= set(by_slug) else ():
            (one, of_one), (other, of_other) = by_slug[compare.one], by_slug[compare.other]
            names = " / ".join(slug_label(slug).replace("Full", "full") for slug in (compare.one, compare.other))
            label = f"trainable parameters, {names}, {encoder_title(model)}: {one:,} / {other:,}"
            runs = tuple(dict.fromkeys((of_one, of_other)))
            found.setdefault(model, []).append(exact(label, "ratio", None, compare.bound, one / other, runs))
    return found


def checked(case: Mapping[str, Any]) -> Finding:
    """A case of an exact property: any failure refutes it."""
    bound, runs = Bound(-math.inf, 1, "exactly 0"), tuple(case["runs"])
    return exact(case["label"], "failures", case["trials"], bound, case["failures"], runs)
