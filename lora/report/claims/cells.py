"""Claims about cells: differences between two sets of runs, in pairs of one seed, each against its bound."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lora.data.tasks import TASKS
from lora.methods.titles import METHOD_TITLES
from lora.report.claims.findings import Finding, smallest_p, tested
from lora.report.claims.statements import Bound, Claim, Compare, Side
from lora.report.stats import (
    ENOUGH_SEEDS,
    MOST_SEEDS,
    POWER,
    by_seed,
    mean_interval,
    mean_p,
    paired_differences,
    seeds_needed,
)
from lora.report.titles import START_TITLES, slug_label


def on_runs(claim: Claim, runs: pd.DataFrame, column: str) -> dict[str, list[Finding]]:
    """Encoder -> the findings, for each that has both sides of some comparison of the claim.

    Args:
        column: The metric: `best`, `last` or `unselected`.
    """
    found = {}
    for model in runs["model"].unique():
        sides = [[select(runs, claim, side, model) for side in (c.one, c.other)] for c in claim.compare]
        if any(len(one) and len(other) for one, other in sides):
            pairs = zip(claim.compare, sides, strict=True)
            found[model] = [one for compare, both in pairs for one in differences(claim, compare, both, column)]
    return found


def select(runs: pd.DataFrame, claim: Claim, side: Side, model: str) -> pd.DataFrame:
    """The runs of an encoder that meet all conditions of a side, each once.

    Returns: Empty if no cell has the first start that the side names.
    """
    experiments, starts = side.get("experiment", (claim.experiment,)), side.get("start", ())
    found = runs[runs["experiment"].isin(experiments) & (runs["model"] == model)].drop_duplicates("run_id")
    for key, values in side.items():
        if "." in key:
            found = found.loc[[columns.get(key, "null") in values for columns in found["columns"]]]
        elif key != "experiment":
            found = found[found[key].isin(values)]
    if not starts or starts[0] not in set(found["start"]):
        return found[: 0 if starts else None]
    place = found["start"].map(starts.index)
    return found[place == place.groupby(found["task"]).transform("min")]


def differences(claim: Claim, compare: Compare, sides: Sequence[pd.DataFrame], column: str) -> list[Finding]:
    """The findings of a comparison: on the average over the common tasks, or on each task that the claim names."""
    one, other = sides
    lacking = [described(side) for runs, side in zip(sides, (compare.one, compare.other), strict=True) if runs.empty]
    reason = f"no runs of {' and '.join(lacking)} are planned here" if lacking else several(one) or several(other)
    if reason:
        named = zip(sides, (compare.one, compare.other), strict=True)
        names = [described(side) if runs.empty else labels([runs])[0] for runs, side in named]
        return [Finding(" - ".join(names), "points", 0, compare.bound, reason=reason)]
    tasks = [task for task in TASKS if task in {*one["task"]} & {*other["task"]}]
    groups = [[task] for task in claim.tasks]
    if claim.tasks == "average":  # tasks trained on parts of their rows are averaged only if all are
        groups = [[task for task in tasks if task not in set(one.loc[one["kind"] == "part", "task"])] or tasks]
    pairs, findings = paired_differences(*(side.sort_values("run_id") for side in sides), column), []
    for group in groups:
        there = [side[side["task"].isin(group)] for side in sides]
        names = labels([side if here.empty else here for here, side in zip(there, sides, strict=True)])
        found = difference(compare.bound, names, group, pairs, len(claim.compare) * len(groups))
        if not set(group) <= set(tasks):
            found = replace(found, reason=f"this profile has no such runs on {TASKS[group[0]].title}")
        findings.append(found)
    return findings


def difference(
    bound: Bound, names: Sequence[str], tasks: Sequence[str], pairs: pd.DataFrame, comparisons: int = 1
) -> Finding:
    """The finding on one task or average. `comparisons`: how many the claim has."""
    titles = ", ".join(TASKS[task].title for task in tasks)
    label = f"{names[0]} - {names[1]}, {f'average of {titles}' if len(tasks) > 1 else titles}"
    here = pairs[pairs["task"].isin(tasks)]
    here = here[here.groupby("seed")["task"].transform("nunique") == len(tasks)]  # as `by_seed` does
    values = by_seed(here, tasks).to_numpy(float)
    found, needed = mean_interval(values), ""
    if len(values) > 1 and np.ptp(values):
        count = seeds_needed(values, bound.edges, comparisons)
        seeds = f"more than {MOST_SEEDS}" if count is None else f"about {count}"
        needed = f"; {seeds} seeds would decide it with {POWER:.0%} power"
    if absent := [TASKS[task].title for task in tasks if task not in set(pairs["task"])]:
        reason = f"no pair of seeds on {', '.join(absent)}"
    elif not found.n:
        reason = "no seed has a pair on every task"
    elif found.n < ENOUGH_SEEDS:
        s = "s" if found.n > 1 else ""
        seeds = f"pair{s} of seeds" if len(tasks) == 1 else f"seed{s} with a pair on every task"
        reason = f"{found.n} {seeds}, and this project's convention is at least {ENOUGH_SEEDS}{needed}"
    else:
        reason = "all differences are equal, so there is no interval" if math.isnan(found.low) else ""
    numbers = {"mean": found.mean, "low": found.low, "high": found.high}
    runs = (*here["run_id"], *here["run_id_other"])
    if reason:
        return Finding(label, "points", found.n, bound, **numbers, reason=reason, runs=runs)
    return tested(label, "points", found.n, bound, smallest_p(values, bound, mean_p), needed, runs=runs, **numbers)


def several(side: pd.DataFrame) -> str:
    """Why runs are not one side of a comparison; ""  if they are."""
    if side.duplicated(["task", "seed"]).any() or side["slug"].nunique() > 1 or side["protocol"].nunique() > 1:
        rows = dict.fromkeys(f"{run.label} ({run.protocol})" for run in side.itertuples())
        return f"one side has {' and '.join(rows)}, and a comparison is of one"
    return ""


def labels(sides: Sequence[pd.DataFrame]) -> list[str]:
    """The labels of sides. They name the starts if any side has a cell from MNLI: `from MNLI (RTE)`."""
    names = [side["label"].iloc[0] for side in sides]
    if not any(side["start"].eq("mnli").any() for side in sides):
        return names
    for i, side in enumerate(sides):
        start = f"from {START_TITLES[side['start'].iloc[0]]}"
        if side["start"].nunique() > 1:
            started = set(side.loc[side["start"] == "mnli", "task"])
            start = f"from {START_TITLES['mnli']} ({', '.join(TASKS[task].title for task in TASKS if task in started)})"
        names[i] = names[i] if names[i].endswith(f", {start}") else f"{names[i]} {start}"
    return names


def described(side: Side) -> str:
    """The label of a side without cells, from its conditions: `LoRA (qkvoif, r1)`, `Full fine-tuning from MNLI`."""
    named = [slug_label(slug) for slug in side.get("slug", ())]
    named = named or [METHOD_TITLES.get(name, name) for name in side.get("method", ("any method",))]
    start = [f"from {START_TITLES.get(name, name)}" for name in side.get("start", ())[:1]]
    return " ".join([" or ".join(named), *start])
