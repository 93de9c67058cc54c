"""Claims judged on what was measured: supported, not supported, or cannot tell, with the numbers behind it.

A claim is a list of comparisons that must all hold, each a difference or a ratio against a bound that was stated.

    supported      Every comparison's 95% interval lies inside its bound. All of them must, so no correction is needed
                   (intersection-union test): the chance of a wrong "supported" is at most 2.5%, the one-sided level of
                   a 95% interval, however many comparisons there are.
    not supported  Some comparison breaks its bound. Any one of m does, so a wrong one becomes likelier with m, and its
                   level takes Holm's correction within the claim. Each comparison has the p-value of a one-sided test:
                   the null hypothesis is that its bound holds, and the value tested is the bound itself. `within` has
                   two ends, and the smaller of their p-values counts. The bound is broken if the p-value after Holm's
                   correction over the claim's m comparisons is at most 2.5%. For m = 1 that is the same as a 95%
                   interval beyond the bound. A comparison that cannot be tested yet counts in m all the same.
    cannot tell    Neither.

The tests are those that the intervals come from: Student's t over seeds (`lora.report.stats`), the sign test over
rounds for ratios of times. What is counted has no error: it keeps its bound or breaks it.
A family is a claim about one encoder or one device, by one rule. Between claims nothing is corrected, since each was
stated for itself; the table of all pairs, in which one may go looking, is corrected as a whole.

Nothing is decided on fewer than 5 pairs of seeds, either way: a convention of this project. A claim about each run's
best epoch is judged on the last epoch too: the best one is chosen on the dev set that is reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.data.tasks import TASKS
from lora.files import read_object
from lora.report.aggregate import Planned, kinds_of, slug_label
from lora.report.claims.costs import ratios
from lora.report.claims.counts import count_ratios, slugs_of
from lora.report.claims.findings import Finding, after_holm, exact, not_measured, smallest_p
from lora.report.claims.sides import described, labels, select
from lora.report.claims.statements import Bound, Claim, Compare
from lora.report.stats import (
    ENOUGH_SEEDS,
    MOST_SEEDS,
    mean_interval,
    mean_p,
    paired_differences,
    seed_averages,
    seeds_needed,
)

WORDS = {True: "supported", False: "not supported", None: "cannot tell"}


@dataclass(frozen=True)
class Verdict:
    """A claim about one encoder, or one device.

    Args:
        about: The encoder or the device; empty where there is nothing to judge on.
        not_glue: Judged on other tasks than GLUE's.
        on_last: The same claim on each run's last epoch, for claims about the best one; else None.
        stated: The commit in which the claim last changed, abbreviated; empty where that is not known.
        stated_later: Whether that is later than some of the runs; None where it is not known.
    """

    claim: Claim
    about: str
    findings: tuple[Finding, ...]
    word: Literal["supported", "not supported", "cannot tell"]
    reason: str
    not_glue: bool = False
    on_last: "Verdict | None" = None
    stated: str = ""
    stated_later: bool | None = None


def judge(
    claims: Sequence[Claim],
    planned: Mapping[str, Sequence[Planned]],
    frame: pd.DataFrame,
    efficiency: Path,
    checks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Verdict]:
    """All claims on one profile's records.

    Args:
        planned: Experiment -> the runs that it expects.
        frame: `load_frame` of those that are there.
        efficiency: The folder of what `python -m lora efficiency` measured.
        checks: Name of a check -> its cases (`lora.records.analysis`).
    Raises: UserError: If a file to judge on is broken, or a side of a comparison is several methods or protocols.
    """
    verdicts = []
    for claim in claims:
        if claim.metric is not None:
            verdicts += on_runs(claim, planned, frame)
        elif claim.measure is not None:
            verdicts += on_measurements(claim, efficiency)
        elif claim.count is not None:
            verdicts += on_counts(claim, frame)
        else:
            verdicts.append(on_check(claim, checks.get(claim.check, ())))
    return verdicts


def on_runs(claim: Claim, planned: Mapping[str, Sequence[Planned]], frame: pd.DataFrame) -> list[Verdict]:
    """One verdict for each encoder that has both sides of some comparison of the claim; one without, if none has."""
    verdicts = []
    for model in dict.fromkeys(p.model for found in planned.values() for p in found):
        compared = [[(c.one, c.where), (c.other, c.where)] for c in claim.compare]
        sides = [[select(planned, claim, side, model, where) for side, where in each] for each in compared]
        if any(one and other for one, other in sides):
            judged = on_model(claim, model, sides, frame)
            if claim.metric == "best":
                judged = replace(judged, on_last=on_model(replace(claim, metric="last"), model, sides, frame))
            verdicts.append(judged)
    asked = dict.fromkeys(described(side) for c in claim.compare for side in (c.one, c.other))
    nothing = f"no runs: this profile does not plan all of {'; '.join(asked)} for one encoder"
    return verdicts or [cannot_tell(claim, nothing)]


def on_model(claim: Claim, model: str, sides: Sequence[Sequence[Sequence[Planned]]], frame: pd.DataFrame) -> Verdict:
    pairs = zip(claim.compare, sides, strict=True)
    findings = [found for compare, (one, other) in pairs for found in differences(claim, compare, one, other, frame)]
    not_glue = any(TASKS[p.task].family != "glue" for one, _ in sides for p in one)
    return verdict(claim, model, findings, not_glue=not_glue)


def differences(
    claim: Claim, compare: Compare, one: Sequence[Planned], other: Sequence[Planned], frame: pd.DataFrame
) -> list[Finding]:
    """On the average over the common tasks, or on each of those that the claim names."""
    if not (one and other):
        return [without_runs(compare, one, other)]
    tasks = [task for task in TASKS if task in {p.task for p in one} & {p.task for p in other}]
    if claim.tasks == "average":
        kinds = kinds_of(tasks, frame)
        whole = [task for task in tasks if kinds[task] != "part"]
        groups = [whole or tasks]  # a task trained on a part of its rows is averaged with no whole one
    else:
        groups = [[task] for task in claim.tasks]
    sides = [frame[frame["run_id"].isin([p.run_id for p in side])] for side in (one, other)]
    pairs = paired_differences(*sides, claim.metric)
    return [difference(compare.bound, labels(one, other), group, pairs) for group in groups]


def without_runs(compare: Compare, one: Sequence[Planned], other: Sequence[Planned]) -> Finding:
    """A comparison of which a side has no cell in this profile."""
    sides = ((one, compare.one), (other, compare.other))
    names = [labels(found, found)[0] if found else described(side) for found, side in sides]
    lacking = [name for name, found in zip(names, (one, other), strict=True) if not found]
    reason = f"no runs of {' and '.join(lacking)} are planned here"
    return not_measured(" - ".join(names), compare.bound, reason, "points")


def difference(bound: Bound, names: Sequence[str], tasks: Sequence[str], pairs: pd.DataFrame) -> Finding:
    absent = [TASKS[task].title for task in tasks if task not in set(pairs["task"])]
    here = pairs[pairs["task"].isin(tasks)]
    here = here[here.groupby("seed")["task"].transform("nunique") == len(tasks)]  # as `seed_averages` takes them
    values = seed_averages(here, tasks)
    found, holds, p_against = mean_interval(values), None, math.nan
    if absent:
        reason = f"no pair of seeds on {', '.join(absent)}"
    elif not found.n:
        reason = "no seed has a pair on every task"
    elif found.n < ENOUGH_SEEDS:
        seeds = "pairs of seeds" if len(tasks) == 1 else "seeds with a pair on every task"
        reason = f"{found.n} {seeds}, and this project's convention is at least {ENOUGH_SEEDS}{needed(values, bound)}"
    elif math.isnan(found.low):
        reason = "all differences are equal, so there is no interval"
    else:
        holds, p_against = bound.holds(found.low, found.high), smallest_p(values, bound, mean_p)
        reason = "" if holds is not None else f"the bound lies inside the interval{needed(values, bound)}"
    titles = ", ".join(TASKS[task].title for task in tasks)
    label = f"{names[0]} - {names[1]}, {f'average of {titles}' if len(tasks) > 1 else titles}"
    runs = (*here["run_id"], *here["run_id_other"])
    numbers = (found.mean, found.low, found.high, found.n)
    return Finding(label, *numbers, bound, p_against, holds, reason, runs, "points")


def needed(values: Float[np.ndarray, " n"], bound: Bound) -> str:
    """How many seeds would decide, as a part of a reason; nothing where the values have no spread to go by."""
    if len(values) < 2 or not np.ptp(values):
        return ""
    count = seeds_needed(values, lambda low, high: bound.holds(low, high) is not None)
    seeds = f"more than {MOST_SEEDS} would be needed" if count is None else f"{count} would be enough"
    return f"; with this mean and spread, {seeds}"


def on_measurements(claim: Claim, folder: Path) -> list[Verdict]:
    """One verdict for every summary that `python -m lora efficiency` left."""
    verdicts = []
    for path in sorted([*folder.glob("*/summary.json"), *folder.glob("*/*/summary.json")]):
        summary, about = read_object(path), str(path.parent.relative_to(folder))
        findings = [found for compare in claim.compare for found in ratios(claim, compare, summary, path, folder)]
        if findings:
            verdicts.append(verdict(claim, about, findings))
    return verdicts or [
        Verdict(claim, "", (), "cannot tell", "nothing was measured: python -m lora efficiency has not run")
    ]


def on_counts(claim: Claim, frame: pd.DataFrame) -> list[Verdict]:
    """One verdict for every model that has all methods of the claim."""
    verdicts = [verdict(claim, model, findings) for model, findings in count_ratios(claim, frame).items()]
    names = map(slug_label, slugs_of(claim))
    nothing = f"no runs: no encoder has records of {' and '.join(names)}"
    return verdicts or [cannot_tell(claim, nothing)]


def on_check(claim: Claim, cases: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether something holds exactly, case by case: any failure refutes it."""
    if not cases:
        return cannot_tell(claim, f"nothing was measured: no analysis/{claim.check}.json is of these records")
    none = Bound("exactly", 0)
    findings = [
        exact(case["label"], case["failures"], case["trials"], none, tuple(case["runs"]), "failures")
        if case["trials"]
        else not_measured(case["label"], none, "it was never tried", "failures", tuple(case["runs"]))
        for case in cases
    ]
    return verdict(claim, claim.check, findings)


def cannot_tell(claim: Claim, reason: str) -> Verdict:
    return Verdict(claim, "", (), "cannot tell", reason)


def verdict(claim: Claim, about: str, findings: Sequence[Finding], not_glue: bool = False) -> Verdict:
    findings = after_holm(findings)
    holds = [found.holds for found in findings]
    word = WORDS[False if False in holds else None if None in holds else True]
    reasons = dict.fromkeys(found.reason for found in findings if found.holds is None)
    return Verdict(claim, about, tuple(findings), word, "; ".join(reasons) if word == "cannot tell" else "", not_glue)
