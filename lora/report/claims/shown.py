"""Verdicts as text and as JSON."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import pandas as pd

from lora.files import rounded
from lora.report.claims.findings import SHAPE, Finding
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict
from lora.report.runs import encoder_title
from lora.report.stats import LEVEL

SHORT = 8  # digits of a commit
SCORE_TITLES = {"best": "Best epoch", "last": "Last epoch", "unselected": "Unselected"}
SCORE_KEYS = {"best": "on_best", "last": "on_last", "unselected": "unselected"}  # in verdicts.json
ABOUT = {"swap": "trained adapters"}  # check -> its subject
RATIO_FORMS: dict[str, tuple[Callable[[float], str], str]] = {
    "less": (lambda ratio: f"{1 - ratio:.0%}", " less"),
    "more": (lambda ratio: f"{ratio - 1:+.1%}", ""),
    "part": (lambda ratio: f"1/{1 / ratio:.0f}", ""),
}


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One line per comparison, with the reason if it is undecided. The first line of a claim also has its verdict,
    sentence and commit. Where some claim is not judged by the best epoch, a column names the score that was found."""
    lines = []
    level = f"{LEVEL:.0%} interval"
    mixed = any(verdict.claim.metric == "unselected" for verdict in verdicts)
    shown = [score for score in SCORE_TITLES if mixed or score != "best"]
    for verdict in verdicts:
        stated = [word_text(verdict), verdict.claim.headline + about_text(verdict), commit_text(verdict)]
        for place, finding in enumerate(verdict.findings):
            line = {"Verdict": stated[0], "Claim": stated[1], "Compared": finding.label}
            line |= {"Score": SCORE_TITLES.get(verdict.claim.metric, "-")} if mixed else {}
            line["Found"] = value_text(finding, finding.mean)
            line[level] = interval_text(finding, finding.low, finding.high)
            line["Seeds and rows"] = interval_text(finding, finding.rows_low, finding.rows_high)
            line["Other rows"] = other_rows_text(finding)
            for score in shown:
                other = verdict.others.get(score)
                line[SCORE_TITLES[score]] = brief(other.findings[place]) if other else "-"
            line |= {"n": "-" if finding.n is None else str(finding.n), "Bound": finding.bound.text}
            lines.append(line | {"Undecided because": finding.reason or "-", "Claim's commit": stated[2]})
            stated = [""] * 3
    return pd.DataFrame(lines)


def about_text(verdict: Verdict) -> str:
    """The encoder, the device or the subject of the check that a claim is judged on, in brackets."""
    glue = ", not GLUE" if verdict.not_glue else ""
    return f" ({ABOUT.get(verdict.about) or encoder_title(verdict.about)}{glue})"


def word_text(verdict: Verdict) -> str:
    """The verdict, what is known of other dev rows, and the verdict on the last epoch if it differs; or on the best, if
    that is not what judges."""
    score = "best" if verdict.claim.metric == "unselected" else "last"
    other = verdict.others.get(score, verdict)
    differs = f" ({SCORE_TITLES[score].lower()}: {other.word})" if other.word != verdict.word else ""
    return verdict.qualified + differs + edges_text(verdict.findings)


def edges_text(findings: Sequence[Finding]) -> str:
    """The end of a verdict on sides whose rate is at an edge of those tried: a better one may lie beyond."""
    names = list(dict.fromkeys(name for finding in findings for name in finding.edges))
    return f"; rate at the edge of those tried: {', '.join(names)}" if names else ""


def commit_text(verdict: Verdict) -> str:
    """The commit in which the claim last changed, and what was known of its runs."""
    return f"{verdict.claim.stated[:SHORT] or '-'}{f', {verdict.stated_later}' if verdict.stated_later else ''}"


def finding_text(finding: Finding) -> str:
    """A comparison as a sentence: `LoRA - Full, RTE: +0.50 (95% interval -0.20 to +1.20, n = 5); bound: above -1`."""
    interval = interval_text(finding, finding.low, finding.high)
    parts = [] if interval == "-" else [f"{LEVEL:.0%} interval {interval}"]
    if finding.n is not None:
        parts.append(f"n = {finding.n}")
    about = f" ({', '.join(parts)})" if parts else ""
    reason = f"; {finding.reason}" if finding.reason else ""
    return f"{finding.label}: {value_text(finding, finding.mean)}{about}; bound: {finding.bound.text}{reason}"


def value_text(finding: Finding, value: float, digits: int = 2) -> str:
    """A number. `digits`: decimals of a difference in points; a ratio has two more significant digits than that."""
    if math.isnan(value):
        return "-"
    if finding.unit == "failures":
        return f"{value:.0f}"
    text = f"{value:+.{digits}f}" if finding.unit == "points" else f"{value:#.{digits + 2}g}".rstrip(".")
    return text if finding.unit == "ratio" or float(text) else f"{0:+.{digits}f}"  # never -0.00


def interval_text(finding: Finding, low: float, high: float, digits: int = 2) -> str:
    """An interval of what was found; `-` without one. `digits`: as in `value_text`."""
    if math.isnan(low) or low == high:
        return "-"
    return f"{value_text(finding, low, digits)} to {value_text(finding, high, digits)}"


def other_rows_text(finding: Finding) -> str:
    """Whether what was found holds for other dev rows; `-` if nothing is decided, or it was not computed."""
    return {True: "yes", False: "not known", None: "-"}[finding.for_other_rows]


def brief(finding: Finding, digits: int = 2, form: str | None = None) -> str:
    """`-0.89 (-2.33 to +0.55)`, or the value alone without an interval. `form`: one of `RATIO_FORMS`, for a ratio."""
    interval = interval_text(finding, finding.low, finding.high, digits)
    value = value_text(finding, finding.mean, digits)
    if form is not None:
        show, unit = RATIO_FORMS[form]
        ends = sorted((finding.low, finding.high), reverse=form != "more")  # the others turn the order
        interval = interval if interval == "-" else " to ".join(map(show, ends))
        value = show(finding.mean) + unit
    return value if interval == "-" else f"{value} ({interval})"


def paper_text(claim: Claim) -> str:
    """The published cells: `RoBERTa-large LoRA Avg: 89.0`."""
    cells = []
    for row in claim.paper:
        keys = ("model", "method", "task") if "task" in row else ("model", "method", "quantity", "metric")
        named = " ".join(row[key] for key in keys if row.get(key))
        cells.append(f"{named}: {row['value']}" + (f" ±{row['std']}" if row["std"] else ""))
    return "; ".join(cells)


def verdicts_json(verdicts: Sequence[Verdict]) -> bytes:
    entries = []
    for verdict in verdicts:
        claim = verdict.claim
        about = {key: getattr(claim, key) for key in ("id", "experiment", "sentence", "ours", "source", "margin")}
        about |= {"about": verdict.about, "not_glue": verdict.not_glue, **judged_json(verdict)}
        for score, key in SCORE_KEYS.items():
            if score != (claim.metric or "best"):
                about[key] = judged_json(verdict.others[score]) if score in verdict.others else None
        about |= {"stated": claim.stated[:SHORT] or None}
        later = None if verdict.stated_later is None else bool(verdict.stated_later)
        entries.append({**about, "stated_later": later, "known": verdict.stated_later, "paper": claim.paper})
    return (json.dumps(rounded(entries), indent=1, ensure_ascii=False) + "\n").encode()


def judged_json(verdict: Verdict) -> dict[str, Any]:
    findings = [{**vars(finding), "bound": finding.bound.text, "runs": finding.records} for finding in verdict.findings]
    return {"verdict": verdict.word, "reason": verdict.reason, "findings": findings}


FEW = 2  # comparisons that fit in one cell


def closest(judged: Sequence[Verdict], form: str | None = None) -> str:
    """The comparisons that are nearest to their bounds: all if there are few of them, else the worst."""
    findings = [one for verdict in judged for one in verdict.findings]
    if all(one.unit == "failures" for one in findings):
        return f"{sum(one.mean for one in findings):.0f} failures in {sum(one.n for one in findings):,} trials"
    of_shapes = groupby(findings, key=lambda one: one.label.partition(SHAPE)[0])
    nearest = [min(same, key=attrgetter("room")) for _, same in of_shapes]
    if len(nearest) <= FEW:
        return "; ".join(brief(one, 1, form) for one in nearest)
    return f"{brief(min(nearest, key=attrgetter('room')), 1, form)}, smallest margin of {len(nearest)}"


def worst(judged: Sequence[Verdict]) -> Verdict:
    """One that is not `supported`, if there is one."""
    return next((verdict for verdict in judged if verdict.word != "supported"), judged[0])


def on_places(judged: Sequence[Verdict], texts: Sequence[str], places: str) -> str:
    """The text of the worst of these verdicts; if they differ, on how many of the `places`, and the others' texts."""
    text = texts[judged.index(worst(judged))]
    others = ", ".join(dict.fromkeys(other for other in texts if other != text))
    return f"{text} on {texts.count(text)} of {len(texts)} {places}, else {others}" if others else text
