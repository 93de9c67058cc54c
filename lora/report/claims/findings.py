"""One judged comparison of a claim (`Finding`): of times, sizes, counts and exact properties, and of cells by seeds."""

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
from lora.methods.configs import METHOD_TITLES
from lora.models.sizes import gpt3_count
from lora.report import stats
from lora.report.claims.statements import Bound, Claim, Compare, Side
from lora.report.labels import setting
from lora.report.rates import best_rates
from lora.report.runs import START_TITLES, encoder_title, method_label, task_title, tasks_of

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
COUNT_TITLES = dict.fromkeys(("gpt3", "encoder"), MEASURES["trainable"]) | {"rate": "best learning rate"}
SIDE_TITLES = METHOD_TITLES | {"full": "full fine-tuning", "lora_merged": "merged LoRA", "base": "untouched encoder"}


@dataclass(frozen=True)
class Finding:
    """One comparison, judged.

    Args:
        n: Number of seeds that have every task on both sides, of rounds, or of trials; None for exact counts.
        holds: Whether the bound holds; None if that cannot be decided, for the `reason`.
        mean, low, high: The difference in points, the ratio or the failures, and the interval; NaN if unknown.
        p_against: One-sided p-value against the bound, before Holm's correction; NaN if untested.
        rows_low, rows_high: The interval for other seeds and other dev rows (`lora.report.stats.seeds_and_rows`); NaN
            if it was not computed.
        runs: What it is based on: a pair of run_ids for each difference, or single run_ids or a file.
        sides: The labels of the two sides of a difference.
        place: Its task, or `average of` its tasks.
        edges: The sides whose rate is at an edge of those that were tried.
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
    runs: tuple[tuple[str, ...], ...] = ()
    sides: tuple[str, ...] = ()
    place: str = ""
    edges: tuple[str, ...] = ()
    rows_low: float = math.nan
    rows_high: float = math.nan

    @property
    def for_other_rows(self) -> bool | None:
        """Whether the second interval decides the same; None if nothing is decided or it was not computed."""
        if self.holds is None or math.isnan(self.rows_low):
            return None
        return self.bound.holds(self.rows_low, self.rows_high) is self.holds

    @property
    def room(self) -> float:
        """The distance of the interval from the nearest end of the bound; negative if part of it lies outside."""
        return min(self.low - self.bound.low, self.bound.high - self.high)

    @property
    def records(self) -> list[str]:
        """The run_ids of one side, then those of the other; or the file."""
        return [run for side in zip(*self.runs, strict=True) for run in side]


def judge_interval(p: float, needed: str, **about: Any) -> Finding:
    """A comparison judged by its interval. `needed`: the number of seeds that would decide, as a part of the reason."""
    holds = about["bound"].holds(about["low"], about["high"])
    reason = f"the interval includes the bound{needed}" if holds is None else ""
    return Finding(**about, holds=holds, p_against=p, reason=reason)


def judge_count(label: str, unit: Unit, n: int | None, bound: Bound, value: float, runs: tuple[str, ...]) -> Finding:
    """A comparison of counts. They have no error, so they keep or break the bound."""
    holds, pairs = bound.holds(value, value), tuple((run,) for run in runs)
    return Finding(label, unit, n, bound, holds, value, value, value, 0.0 if holds is False else 1.0, runs=pairs)


def smallest_p(values: Float[np.ndarray, " n"], bound: Bound, test: Callable[..., float]) -> float:
    """The one-sided p-value against a bound: the smallest over its ends."""
    return min(test(values, edge, side) for edge, side in bound.edges)


def ratios(claim: Claim, path: Path, summary: Mapping[str, Any], folder: Path) -> list[Finding]:
    """The ratios of one measure, per shape (batch x tokens) if it depends on that; [] if a method was not measured.

    Times are judged by the sign test on the ratios of the rounds, whose median is shown. Their samples are in
    samples.csv next to the summary of `python -m lora efficiency`.
    """
    source = (str(path.relative_to(folder.parent)),)
    samples = path.with_name("samples.csv")
    findings = []
    kind = next((kind for kind, key in TIMES.items() if key == claim.measure), None)
    times = by_round(pd.read_csv(samples)) if kind and samples.exists() else {}
    served = {"lora": "unmerged LoRA"} if claim.measure == "latency_ms" else {}
    for compare in claim.compare:
        one, other, bound = compare.one, compare.other, compare.bound
        values = ((summary.get(one) or {}).get(f"to_{other}") or {}).get(claim.measure)
        by_shape = {} if values is None else values if isinstance(values, dict) else {"": values}
        if kind:
            sides = [times.get((kind, side), {}) for side in (one, other)]
            by_shape = {shape: sides[0][shape] / sides[1][shape] for shape in sides[0] if shape in sides[1]}
        for shape, value in by_shape.items():
            label = f"{MEASURES[claim.measure]}, {(SIDE_TITLES | served)[one]} / {(SIDE_TITLES | served)[other]}"
            label += f"{SHAPE}{shape.replace('x', ' x ')} tokens" if shape else ""
            if not kind:
                findings.append(judge_count(label, "ratio", None, bound, value, source))
                continue
            about = {"label": label, "unit": "ratio", "n": len(value), "bound": bound, "runs": (source,)}
            about["mean"] = float(np.median(value))
            if (ends := median_interval(value)) is None:
                findings.append(Finding(**about, reason=f"{len(value)} rounds: an interval of their median needs more"))
            else:
                findings.append(
                    judge_interval(smallest_p(value, bound, sign_p), "", low=ends[0], high=ends[1], **about)
                )
    return findings


def count_ratios(claim: Claim, frame: pd.DataFrame, tried: pd.DataFrame) -> dict[str, list[Finding]]:
    """Model -> the claim's comparisons of trainable parameters, or of the best of the learning rates tried. Models that
    lack a method of the claim are excluded."""
    wanted = {slug for compare in claim.compare for slug in (compare.one, compare.other)}
    counts = {GPT3: {slug: (gpt3_count(slug), "computed") for slug in wanted}} if claim.count == "gpt3" else {}
    if claim.count != "gpt3":
        table, column = (best_rates(tried), "lr") if claim.count == "rate" else (frame, "trainable_method")
        for model, runs in table[table["slug"].isin(wanted)].sort_values("run_id").groupby("model", sort=False):
            first = runs.drop_duplicates("slug").set_index("slug")
            counts[model] = {slug: (first.at[slug, column], first.at[slug, "run_id"]) for slug in first.index}
    by_model: dict[str, list[Finding]] = {}
    for model, by_slug in counts.items():
        for compare in claim.compare if wanted <= set(by_slug) else ():
            (one, of_one), (other, of_other) = by_slug[compare.one], by_slug[compare.other]
            names = " / ".join(method_label(slug).replace("Full", "full") for slug in (compare.one, compare.other))
            form = "g" if claim.count == "rate" else ","
            label = f"{COUNT_TITLES[claim.count]}, {names}, {encoder_title(model)}: {one:{form}} / {other:{form}}"
            runs = tuple(dict.fromkeys((of_one, of_other)))
            one_ratio = judge_count(label, "ratio", None, compare.bound, one / other, runs)
            if claim.count == "rate":
                one_ratio = replace(one_ratio, holds=None, reason="the best of a coarse grid of rates has no interval")
            by_model.setdefault(model, []).append(one_ratio)
    return by_model


def judge_check(case: Mapping[str, Any]) -> Finding:
    """A case of an exact property: any failure refutes it."""
    bound, runs = Bound(-math.inf, 1, "exactly 0"), tuple(case["runs"])
    return judge_count(case["label"], "failures", case["trials"], bound, case["failures"], runs)


def on_runs(claim: Claim, runs: pd.DataFrame, scores: Sequence[str]) -> dict[str, dict[str, list[Finding]]]:
    """Score -> encoder -> findings, for each encoder that has both sides of some comparison of the claim."""
    by_score: dict[str, dict[str, list[Finding]]] = {score: {} for score in scores}
    for model in runs["model"].unique():
        sides = [[side_runs(runs, claim, side, model) for side in (c.one, c.other)] for c in claim.compare]
        if any(len(one) and len(other) for one, other in sides):
            for compare, both in zip(claim.compare, sides, strict=True):
                for score, findings in compare_sides(claim, compare, both, scores).items():
                    by_score[score].setdefault(model, []).extend(findings)
    return by_score


def side_runs(runs: pd.DataFrame, claim: Claim, side: Side, model: str) -> pd.DataFrame:
    """The runs of an encoder that meet all conditions of a side; none if no cell has the first start that it names."""
    experiments = side.get("experiment", (claim.experiment,))
    starts = side.get("start", ())
    chosen = runs["experiment"].isin(experiments) & (runs["model"] == model)
    for key, values in side.items():
        if key != "experiment":
            chosen &= setting(runs, key).isin(values)
    runs = runs[chosen].drop_duplicates("run_id")
    if not starts or starts[0] not in set(runs["start"]):
        return runs[: 0 if starts else None]
    place = runs["start"].map(starts.index)
    return runs[place == place.groupby(runs["task"]).transform("min")]


def compare_sides(
    claim: Claim, compare: Compare, sides: Sequence[pd.DataFrame], scores: Sequence[str]
) -> dict[str, list[Finding]]:
    """Score -> the findings of a comparison: on the average over the common tasks, or on each task that the claim
    names."""
    one, other = sides
    named = zip(sides, (compare.one, compare.other), strict=True)
    names = [describe_side(side) if runs.empty else side_labels([runs])[0] for runs, side in named]
    lacking = [name for name, runs in zip(names, sides, strict=True) if runs.empty]
    reason = f"no runs of {' and '.join(lacking)} are planned here" if lacking else why_mixed(one) or why_mixed(other)
    if reason:
        return {score: [Finding(" - ".join(names), "points", 0, compare.bound, reason=reason)] for score in scores}
    tasks = [task for task in tasks_of(one) if task in set(other["task"])]
    groups = [[task] for task in claim.tasks]
    if claim.tasks == "average":  # tasks trained on parts of their rows are averaged only if all are
        groups = [[task for task in tasks if task not in set(one.loc[one["kind"] == "part", "task"])] or tasks]
    trained = pd.concat(sides).dropna(subset=["best"])
    unselected = "others_epoch" if trained["split_half"].isna().any() else "split_half"  # one estimator on both sides
    ordered = [side.sort_values("run_id") for side in sides]
    columns = [unselected if score == "unselected" else score for score in scores]
    pairs = [stats.paired_differences(*ordered, column) for column in columns]
    by_score: dict[str, list[Finding]] = {score: [] for score in scores}
    for group in groups:
        on_group = [side[side["task"].isin(group)] for side in sides]
        names = side_labels([side if here.empty else here for here, side in zip(on_group, sides, strict=True)])
        for findings, of_score in zip(by_score.values(), pairs, strict=True):
            finding = judge_difference(compare.bound, names, group, of_score, len(claim.compare) * len(groups))
            edges = (name for name, side in zip(names, on_group, strict=True) if side["edge"].any())
            finding = replace(finding, edges=tuple(edges))
            if not set(group) <= set(tasks):
                finding = replace(finding, reason=f"this profile has no such runs on {task_title(group[0])}")
            findings.append(finding)
    return by_score


def judge_difference(
    bound: Bound, names: Sequence[str], tasks: Sequence[str], pairs: pd.DataFrame, comparisons: int = 1
) -> Finding:
    """The finding on one task or average. `comparisons`: how many the claim has."""
    titles = ", ".join(map(task_title, tasks))
    place = f"average of {titles}" if len(tasks) > 1 else titles
    label = f"{names[0]} - {names[1]}, {place}"
    here = pairs[pairs["task"].isin(tasks)]
    here = here[here.groupby("seed")["task"].transform("nunique") == len(tasks)]  # as `by_seed` does
    values = stats.by_seed(here, tasks).to_numpy(float)
    interval = stats.mean_interval(values)
    needed = stats.needed_text(stats.seeds_needed(values, bound.edges, comparisons), "decide it")
    if absent := [task_title(task) for task in tasks if task not in set(pairs["task"])]:
        reason = f"no pair of seeds on {', '.join(absent)}"
    elif not interval.n:
        reason = "no seed has a pair on every task"
    elif interval.n < stats.ENOUGH_SEEDS:
        s = "s" if interval.n > 1 else ""
        seeds = f"pair{s} of seeds" if len(tasks) == 1 else f"seed{s} with a pair on every task"
        reason = f"{interval.n} {seeds}, and this project's convention is at least {stats.ENOUGH_SEEDS}{needed}"
    else:
        reason = "all differences are equal, so there is no interval" if math.isnan(interval.low) else ""
    about = {"label": label, "unit": "points", "bound": bound, "sides": tuple(names), "place": place}
    about |= {"runs": tuple(zip(here["run_id"], here["run_id_other"], strict=True)), **vars(interval)}
    if reason:
        return Finding(**about, reason=reason)
    return judge_interval(p=smallest_p(values, bound, stats.mean_p), needed=needed, **about)


def why_mixed(side: pd.DataFrame) -> str:
    """Why runs are not one side of a comparison; ""  if they are."""
    if side.duplicated(["task", "seed"]).any() or side["slug"].nunique() > 1 or side["protocol"].nunique() > 1:
        rows = dict.fromkeys(f"{run.label} ({run.protocol})" for run in side.itertuples())
        return f"one side has {' and '.join(rows)}, and a comparison is of one"
    return ""


def side_labels(sides: Sequence[pd.DataFrame]) -> list[str]:
    """The labels of sides. They name the starts if any side has a cell from MNLI: `from MNLI (RTE)`."""
    names = [side["label"].iloc[0] for side in sides]
    if not any(side["start"].eq("mnli").any() for side in sides):
        return names
    for i, side in enumerate(sides):
        start = f"from {START_TITLES[side['start'].iloc[0]]}"
        if side["start"].nunique() > 1:
            started = tasks_of(side[side["start"] == "mnli"])
            start = f"from {START_TITLES['mnli']} ({', '.join(map(task_title, started))})"
        names[i] = names[i] if names[i].endswith(f", {start}") else f"{names[i]} {start}"
    return names


def describe_side(side: Side) -> str:
    """The label of a side without cells, from its conditions: `LoRA (qkvoif, r1)`, `Full fine-tuning from MNLI`."""
    named = [method_label(slug) for slug in side.get("slug", ())]
    named = named or [METHOD_TITLES.get(name, name) for name in side.get("method", ("any method",))]
    start = [f"from {START_TITLES.get(name, name)}" for name in side.get("start", ())[:1]]
    return " ".join([" or ".join(named), *start])
