"""Judge claims on the measurements: supported, not supported, or inconclusive, with the numbers behind the verdict.

A claim is a list of comparisons that must all hold. Each compares a difference or a ratio with a stated bound.

    supported      Every comparison's 95% interval is inside its bound. All of them must be, so no correction is needed
                   (intersection-union test): the probability of a wrong "supported" is at most 2.5%, the one-sided
                   level of a 95% interval, for any number of comparisons.
    not supported  Some comparison breaks its bound. Any one of m suffices, so an error becomes likelier with m, and
                   Holm's correction is applied within the claim. Each comparison has the p-value of a one-sided test:
                   the null hypothesis is that its bound holds, and the value tested is the bound itself. `within` has
                   two ends, and the smaller of their p-values counts. The bound is broken if the p-value after Holm's
                   correction over the claim's m comparisons is at most 2.5%. For m = 1 that is the same as a 95%
                   interval beyond the bound. A comparison that cannot be tested yet still counts in m.
    inconclusive   Neither.

The tests match the intervals: Student's t over seeds (`lora.report.stats`), the sign test over rounds for ratios of
times. Counts have no error: they keep or break their bound.
A family is a claim about one encoder or one device, under one rule. Nothing is corrected between claims, since each was
stated on its own. The table of all pairs, which invites a search for differences, is corrected as a whole.

Fewer than 5 pairs of seeds decide nothing, either way: a convention of this project. A claim about each run's best
epoch is also judged on the last epoch, because the best one is chosen on the dev set that is reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.cost.efficiency.summary import read_summaries
from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.report.claims.findings import Finding, after_holm, checked, count_ratios, ratios, slugs_of, smallest_p
from lora.report.claims.sides import described, labels, select, several
from lora.report.claims.statements import Bound, Claim, Compare
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
from lora.report.titles import slug_label

WORDS = {True: "supported", False: "not supported", None: "inconclusive"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, for one model, device or check.

    Args:
        about: The model, the device or the check; empty if there is nothing to judge on.
        not_glue: Whether it is judged on tasks other than GLUE's.
        on_last, unselected: For claims about each run's best epoch, the verdicts on its last one and on its score
            without the gain from a choice (`lora.report.runs.with_unselected`); else None.
        stated_later: Whether the claim was stated later than some of the runs; None without runs or a date.
    """

    claim: Claim
    about: str
    findings: tuple[Finding, ...]
    word: Literal["supported", "not supported", "inconclusive"]
    reason: str = ""
    not_glue: bool = False
    on_last: "Verdict | None" = None
    unselected: "Verdict | None" = None
    stated_later: bool | None = None

    @property
    def records(self) -> list[str]:
        """The runs or files that it is based on, each once."""
        return list(dict.fromkeys(run for found in self.findings for run in found.runs))


def judge(
    claims: Sequence[Claim],
    runs: pd.DataFrame,
    frame: pd.DataFrame,
    folder: Path,
    checks: Mapping[str, Sequence[Mapping[str, Any]]],
    records: Mapping[str, RunRecord],
) -> list[Verdict]:
    """Judge all claims on one profile's records.

    Args:
        runs: The runs of the tables (`lora.report.runs`).
        frame: `load_frame` of the records.
        folder: The folder of the measurements of `python -m lora efficiency`.
        checks: Name of a check -> its cases (`lora.records.analysis`).
        records: run_id -> record.
    Raises: UserError: If a file to judge on is broken.
    """
    verdicts, summaries = [], read_summaries(folder)
    made_at = {run_id: record.started_at for run_id, record in records.items()}
    made_at |= {str(path.relative_to(folder.parent)): one["about"].get("started_at") for path, one in summaries.items()}
    not_glue = set(runs.loc[runs["kind"].isin(("embedded", "own")), "run_id"])
    for claim in claims:
        if claim.metric is not None:
            found = on_runs(claim, runs)
            asked = dict.fromkeys(described(side) for c in claim.compare for side in (c.one, c.other))
            nothing = f"no runs: this profile does not plan all of {'; '.join(asked)} for one encoder"
        elif claim.measure is not None:
            found = {
                str(path.parent.relative_to(folder)): [
                    one for compare in claim.compare for one in ratios(claim, compare, path, summary, folder)
                ]
                for path, summary in summaries.items()
            }
            nothing = "nothing was measured: python -m lora efficiency has not run"
        elif claim.count is not None:
            found = count_ratios(claim, frame)
            nothing = f"no runs: no encoder has records of {' and '.join(map(slug_label, slugs_of(claim)))}"
        else:
            found = {claim.check: list(map(checked, checks.get(claim.check, ())))}
            nothing = f"nothing was measured: no analysis/{claim.check}.json is of these records"
        judged = [verdict(claim, about, findings) for about, findings in found.items() if findings]
        if claim.metric == "best":
            last, unselected = (on_runs(replace(claim, metric=rule), runs) for rule in ("last", "unselected"))
            judged = [
                replace(
                    one,
                    on_last=verdict(claim, one.about, last[one.about]),
                    unselected=verdict(claim, one.about, unselected[one.about]),
                )
                for one in judged
            ]
        for one in judged or [Verdict(claim, "", (), "inconclusive", nothing)]:
            verdicts.append(
                replace(one, stated_later=stated_later(one, made_at), not_glue=not not_glue.isdisjoint(one.records))
            )
    return verdicts


def stated_later(verdict: Verdict, made_at: Mapping[str, str | None]) -> bool | None:
    """Whether the claim was stated after some of its runs had begun. `made_at`: run or file -> its start; UTC."""
    times = [made_at[run] for run in verdict.records if made_at.get(run)]
    if not times or not verdict.claim.stated_at:
        return None
    return min(map(datetime.fromisoformat, times)) < datetime.fromisoformat(verdict.claim.stated_at)


def on_runs(claim: Claim, runs: pd.DataFrame) -> dict[str, list[Finding]]:
    """Encoder -> the findings, for each that has both sides of some comparison of the claim."""
    found = {}
    for model in runs["model"].unique():
        sides = [[select(runs, claim, side, model) for side in (c.one, c.other)] for c in claim.compare]
        if any(len(one) and len(other) for one, other in sides):
            pairs = zip(claim.compare, sides, strict=True)
            found[model] = [one for compare, both in pairs for one in differences(claim, compare, *both)]
    return found


def differences(claim: Claim, compare: Compare, one: pd.DataFrame, other: pd.DataFrame) -> list[Finding]:
    """The findings of a comparison: on the average over the common tasks, or on each task that the claim names."""
    sides, bound = ((one, compare.one), (other, compare.other)), compare.bound
    names = [labels(runs, runs, [])[0] if len(runs) else described(side) for runs, side in sides]
    if lacking := [name for name, (runs, _) in zip(names, sides, strict=True) if not len(runs)]:
        return [
            Finding(
                " - ".join(names), "points", 0, bound, reason=f"no runs of {' and '.join(lacking)} are planned here"
            )
        ]
    if reason := several(one) or several(other):
        return [Finding(" - ".join(names), "points", 0, bound, reason=reason)]
    tasks = [task for task in TASKS if task in {*one["task"]} & {*other["task"]}]
    groups = [[task] for task in claim.tasks]
    if claim.tasks == "average":  # tasks trained on parts of their rows are averaged only if all are
        groups = [[task for task in tasks if task not in set(one.loc[one["kind"] == "part", "task"])] or tasks]
    pairs, findings = paired_differences(*(side.sort_values("run_id") for side in (one, other)), claim.metric), []
    for group in groups:
        names = labels(one, other, group)
        if set(group) <= set(tasks):
            findings.append(difference(bound, names, group, pairs, len(claim.compare) * len(groups)))
        else:
            title = TASKS[group[0]].title
            reason = f"this profile has no such runs on {title}"
            findings.append(Finding(f"{names[0]} - {names[1]}, {title}", "points", 0, bound, reason=reason))
    return findings


def difference(
    bound: Bound, names: Sequence[str], tasks: Sequence[str], pairs: pd.DataFrame, comparisons: int = 1
) -> Finding:
    """The finding on one task or average. `comparisons`: how many the claim has."""
    absent = [TASKS[task].title for task in tasks if task not in set(pairs["task"])]
    here = pairs[pairs["task"].isin(tasks)]
    here = here[here.groupby("seed")["task"].transform("nunique") == len(tasks)]  # as `by_seed` does
    values = by_seed(here, tasks).to_numpy(float)
    found, holds, p_against = mean_interval(values), None, math.nan
    if absent:
        reason = f"no pair of seeds on {', '.join(absent)}"
    elif not found.n:
        reason = "no seed has a pair on every task"
    elif found.n < ENOUGH_SEEDS:
        s = "s" if found.n > 1 else ""
        seeds = f"pair{s} of seeds" if len(tasks) == 1 else f"seed{s} with a pair on every task"
        reason = f"{found.n} {seeds}, and this project's convention is at least {ENOUGH_SEEDS}"
        reason += needed(values, bound, comparisons)
    elif math.isnan(found.low):
        reason = "all differences are equal, so there is no interval"
    else:
        holds, p_against = bound.holds(found.low, found.high), smallest_p(values, bound, mean_p)
        reason = "" if holds is not None else f"the interval includes the bound{needed(values, bound, comparisons)}"
    titles = ", ".join(TASKS[task].title for task in tasks)
    label = f"{names[0]} - {names[1]}, {f'average of {titles}' if len(tasks) > 1 else titles}"
    runs = (*here["run_id"], *here["run_id_other"])
    numbers = (found.mean, found.low, found.high, p_against)
    return Finding(label, "points", found.n, bound, holds, *numbers, reason, runs)


def needed(values: Float[np.ndarray, " n"], bound: Bound, comparisons: int) -> str:
    """The number of seeds that would decide, as a part of a reason; empty if the values have no spread."""
    if len(values) < 2 or not np.ptp(values):
        return ""
    count = seeds_needed(values, bound.edges, comparisons)
    seeds = f"more than {MOST_SEEDS}" if count is None else f"about {count}"
    return f"; {seeds} seeds would decide it with {POWER:.0%} power"


def verdict(claim: Claim, about: str, findings: Sequence[Finding]) -> Verdict:
    findings = after_holm(findings)
    holds = [found.holds for found in findings]
    word = WORDS[False if False in holds else None if None in holds else True]
    reasons = dict.fromkeys(found.reason for found in findings if found.holds is None)
    return Verdict(claim, about, tuple(findings), word, "; ".join(reasons) if word == "inconclusive" else "")
