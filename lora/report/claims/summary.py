"""The project's findings (experiments/findings.yaml): a line per claim of the paper, in a table and in a figure."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from lora.files import ROOT
from lora.report.claims.findings import SHAPE, Finding
from lora.report.claims.shown import short, word_text
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict
from lora.report.figures import BOUNDED, Figure, beside, figure
from lora.report.stats import LEVEL

FINDINGS = ROOT / "experiments" / "findings.yaml"
FEW = 2  # comparisons that fit in one cell


def findings(verdicts: Sequence[Verdict]) -> list[tuple[dict[str, Any], list[Verdict]]]:
    """The lines of `FINDINGS` whose claims have a measured comparison, each with the claim's verdicts."""
    lines = yaml.safe_load(FINDINGS.read_text())
    judged = [(line, [each for each in verdicts if each.claim.id == line["claim"]]) for line in lines]
    return [(line, of_claim) for line, of_claim in judged if any(each.is_measured for each in of_claim)]


def finding_row(line: Mapping[str, Any], judged: Sequence[Verdict]) -> dict[str, str]:
    """One of the paper's claims: the paper's figure, ours, and the verdict."""
    start = {"The paper says": line["says"], "Paper": paper_figure(judged[0].claim, line)}
    return start | {f"Ours ({LEVEL:.0%} interval)": ours(judged, line.get("form")), "Verdict": words(judged)}


def findings_block(verdicts: Sequence[Verdict]) -> str:
    """The README's table, and what its first line is without the choice of each run's best epoch."""
    lines = findings(verdicts)
    rows = [finding_row(*found) for found in lines]
    cells = [list(rows[0]), ["---", "---:", "---:", "---"]]
    for row in rows:
        word, on, devices = row["Verdict"].partition(" on ")
        cells.append([*(row | {"Verdict": f"**{word}**{on}{devices}"}).values()])
    first = lines[0][1][0]
    last, unselected = (short(other.findings[0], 1) for other in (first.on_last, first.unselected))
    other_rules = (
        f"Scored at the last epoch in place of each run's best, the first line is {last}; scored at the epoch that is "
        f"best for the other seeds, {unselected}."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in cells), "", other_rules])


def findings_figure(verdicts: Sequence[Verdict]) -> Figure | None:
    """The findings that are differences in points: every comparison, and the paper's, on one axis."""
    names: list[str] = []
    bounds: list[float] = []
    found: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    printed: dict[str, list[float]] = {"x": [], "y": []}
    for line, judged in findings(verdicts):
        if "gaps" not in line:
            continue
        measured = [one for each in judged for one in each.findings if one.n]
        found["x"] += [len(names) + beside(place, len(measured)) for place in range(len(measured))]
        for key, name in (("y", "mean"), ("low", "low"), ("high", "high")):
            found[key] += [getattr(one, name) for one in measured]
        gaps = paper_gaps(judged[0].claim, line)
        printed["x"] += [len(names)] * len(gaps)
        printed["y"] += gaps
        bounds.append(measured[0].bound.edges[0][0])
        names.append(line["says"])
    series = [{"label": f"here, with its {LEVEL:.0%} interval", **found}, {"label": "the paper", **printed}]
    panels = [{"title": "", "names": names, "bounds": bounds, "series": series}] if names else []
    note = f"{BOUNDED} Right of 0, the first that a line names is better."
    return figure("What the paper found, and what was found here", note, "intervals", "points", panels)


def paper_gaps(claim: Claim, line: Mapping[str, Any]) -> list[float]:
    return [float(claim.paper[one]["value"]) - float(claim.paper[other]["value"]) for one, other in line["gaps"]]


def paper_figure(claim: Claim, line: Mapping[str, Any]) -> str:
    """The paper's figure, from the claim's published cells: at most `FEW` differences, else their range."""
    if "word" in line:
        return line["word"]
    values = paper_gaps(claim, line)
    few = len(values) <= FEW
    texts = [f"{value:+.1f}" for value in (values if few else (min(values), max(values)))]
    return f"{('; ' if few else ' to ').join(texts)} ({claim.paper[line['gaps'][0][0]]['model']})"


def ours(judged: Sequence[Verdict], form: str | None = None) -> str:
    """The comparisons that are nearest to their bounds: all if there are few of them, else the nearest.

    Args:
        form: How ratios are shown (`lora.report.claims.shown.FORMS`); None for themselves.
    """

    def room(one: Finding) -> float:
        return one.bound.room(one.low, one.high)

    found = [one for each in judged for one in each.findings]
    if all(one.unit == "failures" for one in found):
        return f"{sum(one.mean for one in found):.0f} failures in {sum(one.n for one in found):,} trials"
    nearest = [min(same, key=room) for _, same in groupby(found, key=lambda one: one.label.partition(SHAPE)[0])]
    if len(nearest) <= FEW:
        return "; ".join(short(one, 1, form) for one in nearest)
    return f"{short(min(nearest, key=room), 1, form)}, nearest of {len(nearest)}"


def words(judged: Sequence[Verdict]) -> str:
    """The verdict; if devices differ, one that is not `supported`, and on how many of them."""
    texts = [word_text(each) for each in judged]
    worst = next((text for text in texts if text != "supported"), "supported")
    return worst if len(set(texts)) == 1 else f"{worst} on {texts.count(worst)} of {len(texts)} devices"
