"""The README's findings: a row of experiments/findings.yaml per comparison, with its task and the paper's number."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from lora.report.claims.findings import Finding
from lora.report.claims.shown import FEW, brief, closest, edges_text, on_places, other_rows_text, worst
from lora.report.claims.statements import published_cell
from lora.report.claims.verdicts import VERDICTS, Verdict
from lora.report.experiments import FOLDERS
from lora.report.figures import Figure, figure, series_of
from lora.report.stats import LEVEL, ON_ROWS

FINDINGS = FOLDERS / "findings.yaml"
PAPER = "the paper"


@dataclass(frozen=True)
class Headline:
    """A row of the table: one comparison, or the worst of those of a claim.

    Args:
        line: Its entry in `FINDINGS`.
        judged: The verdicts on its claim: one per encoder, or one per device.
        others: Score -> the same comparison by another of a run's scores; {} for costs.
        gaps: Task of the paper -> the paper's difference.
    """

    number: int
    line: Mapping[str, Any]
    judged: Sequence[Verdict]
    finding: Finding
    others: Mapping[str, Finding]
    gaps: Mapping[str, float]

    @property
    def is_aside(self) -> bool:
        """Whether it stands in the text below the table: a count or an exact property."""
        return "aside" in self.line

    @property
    def verdict(self) -> str:
        """That of this comparison after Holm's correction over its claim, or the claim's."""
        return VERDICTS[self.finding.holds] if "comparison" in self.line else worst(self.judged).word

    @property
    def word(self) -> str:
        """The verdict, and what it is known for. Where the bound is not 0, a kept one says on which side of 0 the
        interval lies too; where the unselected score judges, the best epoch's word stands behind if it differs."""
        if "comparison" not in self.line:
            return on_places(self.judged, [verdict.qualified for verdict in self.judged], "CPUs") + self.side_of_zero
        doubt = ON_ROWS if self.finding.for_other_rows is False else ""
        best = VERDICTS[self.others["best"].holds] if "best" in self.others else self.verdict
        differs = "" if best == self.verdict else f" (best epoch: {best})"
        return f"{self.verdict}{doubt}{self.side_of_zero}{differs}{edges_text([self.finding])}"

    @property
    def side_of_zero(self) -> str:
        if self.verdict != "supported" or self.finding.unit != "points" or 0 in self.finding.bound[:2]:
            return ""
        side = "above" if self.finding.low > 0 else "below" if self.finding.high < 0 else "includes"
        return f", interval {side} 0"

    @property
    def cells(self) -> dict[str, str]:
        count = sum(len(verdict.findings) for verdict in self.judged)
        is_one = "comparison" in self.line or len(self.judged) > 1 or count == 1
        here = brief(self.finding, 1, self.line.get("form")) + ("" if is_one else f", smallest margin of {count}")
        where = self.finding.place or f"{len(self.judged)} CPUs"
        remarks = [self.line["remark"]] if "remark" in self.line else []
        remarks += ["unselected score"] if self.judged[0].claim.metric == "unselected" else []
        where += f" ({'; '.join(remarks)})" if remarks else ""
        start = {"#": str(self.number), "Finding": self.line["says"], "Task": where, "Paper": self.paper}
        last = brief(self.others["last"], 1) if self.others else "-"
        more = {"Last epoch": last, "Other dev rows": other_rows_text(self.finding), "Verdict": self.word}
        return start | {f"Here ({LEVEL:.0%} interval)": here} | more

    @property
    def paper(self) -> str:
        """The paper's differences, at most `FEW` with their tasks, else their range; and what they are of."""
        values = list(self.gaps.values())
        if len(values) > FEW:
            text = f"{min(values):+.1f} to {max(values):+.1f}"
        else:
            text = "; ".join(
                f"{gap:+.1f} {task}" if len(values) > 1 else f"{gap:+.1f}" for task, gap in self.gaps.items()
            )
        about = self.line["paper"]
        return f"{text} ({about['about']})" if self.gaps else about["word"]


def headlines(verdicts: Sequence[Verdict], others: Mapping[str, Sequence[Verdict]]) -> list[Headline]:
    """The rows whose comparison was measured. `others`: the verdicts of the profiles that rows name."""
    rows: list[Headline] = []
    for line in read_findings():
        profile = others.get(line.get("profile"), verdicts)
        judged = [verdict for verdict in profile if verdict.claim.id == line["claim"] and verdict.is_measured]
        places = [(verdict, place) for verdict in judged for place in range(len(verdict.findings))]
        if "comparison" in line:
            places = [(verdict, line["comparison"]) for verdict in judged]
        if all(verdict.findings[place].n == 0 for verdict, place in places):
            continue
        verdict, place = min(places, key=lambda one: one[0].findings[one[1]].room)
        scores = {score: other.findings[place] for score, other in verdict.others.items()}
        number = 1 + sum(not row.is_aside for row in rows)
        rows.append(Headline(number, line, judged, verdict.findings[place], scores, paper_gaps(line["paper"])))
    return rows


def read_findings() -> list[dict[str, Any]]:
    return yaml.safe_load(FINDINGS.read_text())


def paper_gaps(paper: Mapping[str, Any]) -> dict[str, float]:
    """Task -> the difference of two published cells, which a row of `FINDINGS` names by their keys.

    Where several pairs of cells are on one task, the keys are numbered: a range is shown.
    """
    gaps: dict[str, float] = {}
    if "gaps" in paper:
        path = FOLDERS / paper["of"] / "paper.csv"
        cells = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        for one, other in paper["gaps"]:
            sides = [published_cell(paper.get("model", {}) | keys, cells) for keys in (one, one | other)]
            task = sides[0]["task"] if sides[0]["task"] not in gaps else f"{sides[0]['task']} {len(gaps)}"
            gaps[task] = float(sides[0]["value"]) - float(sides[1]["value"])
    return gaps


def findings_block(rows: Sequence[Headline]) -> str:
    """The README's table, and a line of text for counts and exact properties."""
    shown = [row.cells for row in rows if not row.is_aside]
    lines = [list(shown[0]), ["---:", "---", "---", "---:", "---:", "---:", "---", "---"]]
    for cells in shown:
        word = re.sub(r"^\w+", r"**\g<0>**", cells["Verdict"])
        lines.append([*(cells | {"Verdict": word}).values()])
    asides = [row.line["aside"].format(closest(row.judged, row.line.get("form"))) for row in rows if row.is_aside]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", " ".join(asides)])


def findings_figure(rows: Sequence[Headline]) -> Figure | None:
    """The findings that are differences in points, and the paper's, on one axis; one that `FINDINGS` keeps out as
    `undrawn`, since its axis would squeeze the rest, stands in the note."""
    points = [row for row in rows if not row.is_aside and row.finding.unit == "points"]
    shown = [row for row in points if not row.line.get("undrawn")]
    series = []
    for word in VERDICTS.values():
        findings = [(place, row.finding) for place, row in enumerate(shown) if row.verdict == word]
        if findings:
            series.append(series_of(word, [(place, one.mean, one.low, one.high) for place, one in findings]))
    printed = [(place, gap) for place, row in enumerate(shown) for gap in row.gaps.values()]
    series += [series_of(PAPER, printed, keys=("x", "y"))] if printed else []
    names = [f"{row.number}. {row.line['says']} ({row.finding.place})" for row in shown]
    supports = [[end if math.isfinite(end) else None for end in row.finding.bound[:2]] for row in shown]
    panels = [{"title": "", "names": names, "supports": supports, "series": series}] if names else []
    note = (
        f"Mean paired differences with their {LEVEL:.0%} intervals over seeds; right of 0, the first that a row names "
    )
    note += "scores higher. Shaded: where the whole interval must lie to support the row."
    for row in points:
        note += f" Row {row.number} is off the scale: {brief(row.finding, 1)}." if row not in shown else ""
    return figure("What was found here, and what the paper found", note, "findings", "points", panels)
