"""Judge claims on the measurements: supported, contradicted, or undecided, with the numbers behind the verdict.

A claim is a list of comparisons that must all hold. Each compares a difference or a ratio with a stated bound.

    supported      Every comparison's 95% interval is inside its bound. All of them must be, so no correction is needed
                   (intersection-union test): the probability of a wrong "supported" is at most 2.5%, the one-sided
                   level of a 95% interval, for any number of comparisons.
    contradicted   Some comparison breaks its bound. Any one of m suffices, so an error becomes likelier with m, and
                   Holm's correction is applied within the claim. Each comparison has the p-value of a one-sided test:
                   the null hypothesis is that its bound holds, and the value tested is the bound itself. `within` has
                   two ends, and the smaller of their p-values counts. The bound is broken if the p-value after Holm's
                   correction over the claim's m comparisons is at most 2.5%. For m = 1 that is the same as a 95%
                   interval beyond the bound. A comparison that cannot be tested yet still counts in m.
    undecided      Neither.

The tests match the intervals: Student's t over seeds (`lora.report.stats`), the sign test over rounds for ratios of
times. Counts have no error: they keep or break their bound.
A family is a claim about one encoder or one device, under one rule. Nothing is corrected between claims, since each was
stated on its own. The table of all pairs, which invites a search for differences, is corrected as a whole.

Fewer than 5 pairs of seeds decide nothing, either way: a convention of this project. A claim about each run's best
epoch is also judged on the last epoch, because the best one is chosen on the dev set that is reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import pandas as pd

from lora.cost.efficiency.summary import read_summaries
from lora.records.analysis import Analyses
from lora.records.record import RunRecord
from lora.report.claims.findings import Finding, count_ratios, judge_check, on_runs, ratios
from lora.report.claims.statements import Claim
from lora.report.stats import LEVEL, ON_ROWS, holm

SCORES = ("best", "last", "unselected")  # of a run
LATER = "stated later"
VERDICTS = {True: "supported", False: "contradicted", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, for one model, device or check.

    Args:
        about: The model, the device or the check.
        not_glue: Whether it is judged on tasks other than GLUE's.
        others: For a claim about scores, the verdicts on the other `SCORES`: score -> verdict.
        stated_later: `stated later` if the claim was stated after both runs of some pair, or after some other run or
            file, had begun; else the sides whose runs were known; "" if none was. None without runs or a date.
    """

    claim: Claim
    about: str
    findings: tuple[Finding, ...]
    word: Literal["supported", "contradicted", "undecided"]
    reason: str = ""
    not_glue: bool = False
    others: "Mapping[str, Verdict]" = field(default_factory=dict)
    stated_later: str | None = None

    @property
    def qualified(self) -> str:
        """The word, and whether it is known for these dev rows alone: *supported* needs all comparisons, *contradicted*
        one of those that break their bound."""
        others = [one.for_other_rows for one in self.findings if self.word == "supported" or one.holds is False]
        is_doubted = False in others and (self.word == "supported" or True not in others)
        return f"{self.word}{ON_ROWS}" if is_doubted else self.word

    @property
    def is_measured(self) -> bool:
        """Whether it stands on a measured comparison."""
        return any(finding.n != 0 for finding in self.findings)

    @property
    def records(self) -> list[str]:
        """The runs or files that it is based on, each once."""
        return list(dict.fromkeys(run for finding in self.findings for run in finding.records))


def judge(
    claims: Sequence[Claim],
    runs: pd.DataFrame,
    frame: pd.DataFrame,
    tried: pd.DataFrame,
    folder: Path,
    analyses: Analyses,
    records: Mapping[str, RunRecord],
) -> list[Verdict]:
    """Judge claims on one profile's records, and the measurements of `python -m lora efficiency` in `folder`.

    A claim is left out if the profile plans none of its runs, or what it is about was not measured.

    Args:
        runs: The runs of the tables (`lora.report.runs`).
        frame: `load_frame` of the records.
        tried: The runs that tried learning rates.
        analyses: The cases of checks, and the intervals for other dev rows.
        records: run_id -> record.
    Raises: UserError: If a file to judge on is broken.
    """
    verdicts = []
    summaries = read_summaries(folder)
    made_at = {run_id: record.started_at for run_id, record in records.items()}
    made_at |= {str(path.relative_to(folder.parent)): one["about"].get("started_at") for path, one in summaries.items()}
    not_glue = {run for table in (runs, tried) for run in table.loc[table["kind"].isin(("embedded", "own")), "run_id"]}
    for claim in claims:
        others: dict[str, dict[str, list[Finding]]] = {}
        if claim.metric is not None:
            others = on_runs(claim, runs, SCORES)
            by_subject = others.pop(claim.metric)
            for about, findings in by_subject.items():
                ends = [analyses.over_rows(one.runs, claim.metric) for one in findings]
                by_subject[about] = [
                    replace(one, rows_low=low, rows_high=high) for one, (low, high) in zip(findings, ends, strict=True)
                ]
        elif claim.measure is not None:
            measured = {str(path.parent.relative_to(folder)): (path, summary) for path, summary in summaries.items()}
            by_subject = {device: ratios(claim, *files, folder) for device, files in measured.items()}
        elif claim.count is not None:
            by_subject = count_ratios(claim, frame, tried)
        else:
            by_subject = {claim.check: list(map(judge_check, analyses.checks.get(claim.check, ())))}
        for about, findings in by_subject.items():
            if findings:
                one = verdict_on(claim, about, findings)
                later = stated_later(one, made_at)
                glue = not_glue.isdisjoint(one.records)
                by_score = {score: verdict_on(claim, about, other[about]) for score, other in others.items()}
                verdicts.append(replace(one, stated_later=later, not_glue=not glue, others=by_score))
    return verdicts


def stated_later(verdict: Verdict, made_at: Mapping[str, str | None]) -> str | None:
    """What was known when the claim was stated, in words (`Verdict.stated_later`). `made_at`: run or file -> its start;
    UTC."""
    begun = {run: datetime.fromisoformat(at) for run in verdict.records if (at := made_at.get(run))}
    if not verdict.claim.stated_at or not begun:
        return None
    stated = datetime.fromisoformat(verdict.claim.stated_at)
    before = {run for run, at in begun.items() if at < stated}
    if any(before.issuperset(pair) for finding in verdict.findings for pair in finding.runs):
        return LATER
    known: dict[str, None] = {}
    for finding in verdict.findings:
        by_side = zip(finding.sides, zip(*finding.runs, strict=True), strict=False)  # costs and counts have no sides
        known |= {side: None for side, runs in by_side if before.intersection(runs)}
    return f"the runs of {' and '.join(known)} were known" if known else ""


def verdict_on(claim: Claim, about: str, findings: Sequence[Finding]) -> Verdict:
    findings = after_holm(findings)
    holds = [finding.holds for finding in findings]
    word = VERDICTS[False if False in holds else None if None in holds else True]
    reasons = dict.fromkeys(finding.reason for finding in findings if finding.holds is None)
    reason = "; ".join(reasons) if word == "undecided" else ""
    return Verdict(claim, about, tuple(findings), word, reason)


def after_holm(findings: Sequence[Finding]) -> list[Finding]:
    """Apply Holm's correction, since any broken bound refutes a claim. A bound broken only without it is undecided."""
    corrected = holm([1.0 if math.isnan(finding.p_against) else finding.p_against for finding in findings])
    reason = f"outside the bound, but not after correction for {len(findings)} comparisons"
    return [
        replace(finding, holds=None, reason=reason) if finding.holds is False and p > (1 - LEVEL) / 2 else finding
        for finding, p in zip(findings, corrected, strict=True)
    ]
