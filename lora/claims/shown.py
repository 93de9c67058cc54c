"""Verdicts as a reader sees them, and as claims/verdicts.json keeps them."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lora.claims.statements import Claim
from lora.claims.verdicts import Finding, Verdict
from lora.stats import LEVEL


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One line per comparison: the claim and its verdict in front of the first."""
    lines = []
    for each in verdicts:
        start = {"Verdict": each.word, "Claim": f"{each.claim.headline}{f' ({each.about})' if each.about else ''}"}
        empty = {"Compared": each.reason, "Found": "-", f"{LEVEL:.0%} interval": "-", "n": "-", "Stated": "-"}
        for found in each.findings:
            shown = {"Compared": found.label, "Found": value_text(found, found.mean)}
            shown |= {f"{LEVEL:.0%} interval": interval_text(found), "n": "-" if found.n is None else str(found.n)}
            lines.append({**start, **shown, "Stated": found.bound})
            start = {"Verdict": "", "Claim": ""}
        if not each.findings:
            lines.append({**start, **empty})
    return pd.DataFrame(lines)


def finding_text(found: Finding) -> str:
    n = "" if found.n is None else f", n = {found.n}"
    interval = interval_text(found)
    return (
        f"{found.label}: {value_text(found, found.mean)}"
        + (f" ({interval}{n})" if interval != "-" else f" ({n.removeprefix(', ')})" if n else "")
        + (f", {found.reason}" if found.reason else f"; stated: {found.bound}")
    )


def value_text(found: Finding, value: float) -> str:
    if math.isnan(value):
        return "-"
    value = value if round(value, 2) or found.unit != "points" else 0.0  # never -0.00
    return f"{value:+.2f}" if found.unit == "points" else f"{value:.3g}" if found.unit == "ratio" else f"{value:.0f}"


def interval_text(found: Finding) -> str:
    if math.isnan(found.low) or found.low == found.high:
        return "-"
    return f"{value_text(found, found.low)} to {value_text(found, found.high)}"


def short_interval(found: Finding) -> str:
    return "" if interval_text(found) == "-" else f" ({interval_text(found)})"


def paper_text(claim: Claim) -> str:
    """The paper's own cells: `RoBERTa-large LoRA Avg 89.0`."""
    cells = []
    for row in claim.paper:
        named = [row[key] for key in ("model", "method", "task", "quantity", "metric") if row.get(key)]
        if "task" in row:
            named = [row["model"], row["method"], row["task"]]
        cells.append(f"{' '.join(named)}: {row['value']}" + (f" ±{row['std']}" if row["std"] else ""))
    return "; ".join(cells)


def text(verdicts: Sequence[Verdict]) -> str:
    """All of it, for the terminal: the claim, its verdict, each comparison, the paper's cells, the records."""
    lines = []
    for each in verdicts:
        about = f" ({each.about}{', embedded tasks: not GLUE' if each.not_glue else ''})" if each.about else ""
        lines += [f"{each.word.upper()}{about}: {each.claim.headline}", f"    source: {each.claim.source}"]
        lines += [f"    {finding_text(found)}" for found in each.findings]
        if each.reason:
            lines.append(f"    because: {each.reason}")
        lines += [f"    margin: {each.claim.margin}", f"    paper: {paper_text(each.claim) or '-'}"]
        runs = dict.fromkeys(run for found in each.findings for run in found.runs)
        lines += [f"    records: {', '.join(runs)}" if runs else "    records: none", ""]
    return "\n".join(lines)


def to_json(verdicts: Sequence[Verdict]) -> bytes:
    entries = [
        {
            "id": each.claim.id,
            "experiment": each.claim.experiment,
            "sentence": each.claim.sentence,
            "ours": each.claim.ours,
            "source": each.claim.source,
            "margin": each.claim.margin,
            "about": each.about,
            "not_glue": each.not_glue,
            "verdict": each.word,
            "reason": each.reason,
            "findings": [finding_json(found) for found in each.findings],
            "paper": [dict(row) for row in each.claim.paper],
        }
        for each in verdicts
    ]
    return (json.dumps(entries, indent=1, ensure_ascii=False) + "\n").encode()


def finding_json(found: Finding) -> dict[str, Any]:
    def rounded(value: float) -> float | None:
        return None if math.isnan(value) else float(f"{value:.6g}")

    entry = {"label": found.label, "unit": found.unit, "n": found.n, "stated": found.bound, "holds": found.holds}
    entry |= {key: rounded(getattr(found, key)) for key in ("mean", "low", "high")}
    return entry | {"reason": found.reason, "runs": list(dict.fromkeys(found.runs))}
