"""Verdicts as text for readers, and as JSON for claims/verdicts.json."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lora.files import rounded
from lora.report.claims.findings import Finding
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict
from lora.report.stats import LEVEL
from lora.report.titles import encoder_title

SHORT = 8  # digits of a commit
ABOUT = {"swap": "trained adapters"}  # check -> its subject


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One line per comparison, with the reason if it is undecided. The first line of a claim also has its verdict,
    sentence and commit."""
    lines, level = [], f"{LEVEL:.0%} interval"
    for each in verdicts:
        start = {"Verdict": word_text(each), "Claim": each.claim.headline + about_text(each)}
        end = {"Claim's commit": commit_text(each)}
        last, unselected = (iter(other.findings if other else ()) for other in (each.on_last, each.unselected))
        for found in each.findings:
            shown = {"Compared": found.label, "Found": value_text(found, found.mean), level: interval_text(found)}
            shown |= {"Last epoch": short(next(last, None)), "Unselected": short(next(unselected, None))}
            shown |= {"n": "-" if found.n is None else str(found.n)}
            shown |= {"Bound": found.bound.text, "Undecided because": found.reason or "-"}
            lines.append({**start, **shown, **end})
            start, end = {"Verdict": "", "Claim": ""}, {"Claim's commit": ""}
        if not each.findings:
            nothing = dict.fromkeys(("Compared", "Found", level, "Last epoch", "Unselected", "n", "Bound"), "-")
            lines.append({**start, **nothing, "Undecided because": each.reason, **end})
    return pd.DataFrame(lines)


def about_text(each: Verdict) -> str:
    """The encoder, the device or the subject of the check that a claim is judged on, in brackets."""
    glue = ", not GLUE" if each.not_glue else ""
    return f" ({ABOUT.get(each.about) or encoder_title(each.about)}{glue})" if each.about else ""


def word_text(each: Verdict) -> str:
    """The verdict, with that on the last epoch if it differs."""
    other = each.on_last is not None and each.on_last.word != each.word
    return f"{each.word} (last epoch: {each.on_last.word})" if other else each.word


def commit_text(each: Verdict) -> str:
    """The commit in which the claim last changed, and whether the runs are older."""
    return f"{each.claim.stated[:SHORT] or '-'}{', stated later' if each.stated_later else ''}"


def finding_text(found: Finding) -> str:
    """A comparison as a sentence: `LoRA - Full, RTE: +0.50 (95% interval -0.20 to +1.20, n = 5); bound: above -1`."""
    parts = [] if interval_text(found) == "-" else [f"{LEVEL:.0%} interval {interval_text(found)}"]
    parts += [] if found.n is None else [f"n = {found.n}"]
    about = f" ({', '.join(parts)})" if parts else ""
    reason = f"; {found.reason}" if found.reason else ""
    return f"{found.label}: {value_text(found, found.mean)}{about}; bound: {found.bound.text}{reason}"


def value_text(found: Finding, value: float, digits: int = 2) -> str:
    """
    Args:
        digits: Decimals of a difference in points; a ratio has two more significant digits than that.
    """
    if math.isnan(value):
        return "-"
    if found.unit == "failures":
        return f"{value:.0f}"
    text = f"{value:+.{digits}f}" if found.unit == "points" else f"{value:#.{digits + 2}g}".rstrip(".")
    return text if found.unit == "ratio" or float(text) else f"{0:+.{digits}f}"  # never -0.00


def interval_text(found: Finding, digits: int = 2) -> str:
    """The interval; `-` without one. `digits`: as in `value_text`."""
    if math.isnan(found.low) or found.low == found.high:
        return "-"
    return f"{value_text(found, found.low, digits)} to {value_text(found, found.high, digits)}"


def short(found: Finding | None) -> str:
    """`-0.89 (-2.33 to +0.55)`, the value alone without an interval, or `-`."""
    if found is None:
        return "-"
    interval = interval_text(found)
    return value_text(found, found.mean) + ("" if interval == "-" else f" ({interval})")


def paper_text(claim: Claim) -> str:
    """The published cells: `RoBERTa-large LoRA Avg: 89.0`."""
    cells = []
    for row in claim.paper:
        named = [row[key] for key in ("model", "method", "task", "quantity", "metric") if row.get(key)]
        if "task" in row:
            named = [row["model"], row["method"], row["task"]]
        cells.append(f"{' '.join(named)}: {row['value']}" + (f" ±{row['std']}" if row["std"] else ""))
    return "; ".join(cells)


def to_json(verdicts: Sequence[Verdict]) -> bytes:
    entries = []
    for each in verdicts:
        claim, last, unselected = each.claim, each.on_last, each.unselected
        about = {key: getattr(claim, key) for key in ("id", "experiment", "sentence", "ours", "source", "margin")}
        about |= {"about": each.about, "not_glue": each.not_glue, **judged_json(each)}
        about |= {"on_last": last and judged_json(last), "unselected": unselected and judged_json(unselected)}
        about |= {"stated": claim.stated[:SHORT] or None}
        entries.append({**about, "stated_later": each.stated_later, "paper": claim.paper})
    return (json.dumps(rounded(entries), indent=1, ensure_ascii=False) + "\n").encode()


def judged_json(each: Verdict) -> dict[str, Any]:
    findings = [{**vars(found), "bound": found.bound.text} for found in each.findings]
    return {"verdict": each.word, "reason": each.reason, "findings": findings}
