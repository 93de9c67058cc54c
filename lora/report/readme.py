"""The findings, and the generated blocks of the README and of experiments/VERDICTS.md."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd
import yaml

from lora.files import ROOT
from lora.report.claims.findings import SHAPE, Finding
from lora.report.claims.shown import interval_text, value_text, verdict_table, word_text
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict
from lora.report.figures import BOUNDED, Figure, beside, figure
from lora.report.stats import LEVEL
from lora.table import Table, markdown, rows

FINDINGS = ROOT / "experiments" / "findings.yaml"
FEW = 2  # comparisons that fit in one cell
FORMS: dict[str, Callable[[float], str]] = {
    "less": lambda ratio: f"{1 - ratio:.0%}",
    "more": lambda ratio: f"{ratio - 1:+.1%}",
    "times": lambda ratio: f"{1 / ratio:.0f}",
}


def block(name: str, tables: Mapping[str, Table], verdicts: Sequence[Verdict], progress: str = "") -> str:
    """The main table with the paper's rows, the figure of parameters for real GLUE, and the path of the full report.

    Args:
        tables: File name -> table.
        progress: How many of the expected runs are trained; empty if all are.
    """
    main = tables.get("table2") or tables.get("table2_part")
    if main is None:
        return ""
    lines = [line for text in (main.banner, main.above, progress) if text for line in (text, "")]
    cells = with_paper(main.cells, tables["table2_paper"].cells) if "table2_paper" in tables else main.cells
    lines += [markdown(cells, main.words), main.notes[0], ""]
    figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
    if figure in main.figures and not any(each.not_glue for each in verdicts):
        lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    lines.append(f"All tables, figures and runs: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def with_paper(cells: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """The table, with the published row of each method under ours.

    Args:
        beside: `lora.report.comparisons.beside_paper`.
    """
    lines = []
    for ours in rows(cells):
        lines.append(dict(zip(cells.columns, ours, strict=True)))
        printed = beside[beside["Method"] == lines[-1]["Method"]]
        if len(printed):
            values = printed.set_index("Task")["Published"].to_dict()
            row, _, trainable = printed["Published row"].iloc[0].rpartition(" ")
            values |= {"Method": f"the paper: {row}", "Trainable": trainable}
            lines.append({name: values.get(name, "") for name in cells.columns})
    return pd.DataFrame(lines)


def findings(verdicts: Sequence[Verdict]) -> list[tuple[dict[str, Any], list[Verdict]]]:
    """The lines of `FINDINGS` whose claims have a measured comparison, each with the claim's verdicts."""
    lines = yaml.safe_load(FINDINGS.read_text())
    judged = [(line, [each for each in verdicts if each.claim.id == line["claim"]]) for line in lines]
    return [(line, of_claim) for line, of_claim in judged if any(one.n != 0 for v in of_claim for one in v.findings)]


def finding_row(line: Mapping[str, Any], judged: Sequence[Verdict]) -> dict[str, str]:
    """One of the paper's claims: the paper's figure, ours, and the verdict."""
    start = {"The paper says": line["says"], "Paper": paper_figure(judged[0].claim, line)}
    return start | {f"Ours ({LEVEL:.0%} interval)": ours(judged, line.get("form")), "Verdict": words(judged)}


def findings_block(verdicts: Sequence[Verdict]) -> str:
    rows = [finding_row(*found) for found in findings(verdicts)]
    for row in rows:
        word, on, devices = row["Verdict"].partition(" on ")
        row["Verdict"] = f"**{word}**{on}{devices}"
    lines = [list(rows[0]), ["---", "---:", "---:", "---"], *(list(row.values()) for row in rows)]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", other_rules(verdicts)])


def other_rules(verdicts: Sequence[Verdict]) -> str:
    """What the first of the findings is without the choice of each run's best epoch."""
    ((_, (first, *_)), *_) = findings(verdicts)
    last, unselected = (figure_text(other.findings[0]) for other in (first.on_last, first.unselected) if other)
    return (
        f"Scored at the last epoch in place of each run's best, the first line is {last}; scored at the epoch that is "
        f"best for the other seeds, {unselected}."
    )


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
        bounds.append(measured[0].bound.value)
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
        form: How ratios are shown; None for themselves.
    """
    found = [one for each in judged for one in each.findings]
    if all(one.unit == "failures" for one in found):
        return f"{sum(one.mean for one in found):.0f} failures in {sum(one.n for one in found):,} trials"
    nearest = [min(same, key=room) for _, same in groupby(found, key=lambda one: one.label.partition(SHAPE)[0])]
    if len(nearest) <= FEW:
        return "; ".join(figure_text(one, form) for one in nearest)
    return f"{figure_text(min(nearest, key=room), form)}, nearest of {len(nearest)}"


def room(found: Finding) -> float:
    return found.bound.room(found.low, found.high)


def figure_text(found: Finding, form: str | None = None) -> str:
    """`-1.4 (-3.0 to +0.3)`, or the value alone if it has no error."""
    if form is not None:
        ends = (found.low, found.high) if form == "more" else (found.high, found.low)  # the others turn the order
        value, low, high = (FORMS[form](each) for each in (found.mean, *ends))
        unit = {"less": " less", "more": "", "times": " times less"}[form]
        return f"{value}{unit}" + ("" if low == high else f" ({low} to {high})")
    interval = interval_text(found, 1)
    return value_text(found, found.mean, 1) + ("" if interval == "-" else f" ({interval})")


def words(judged: Sequence[Verdict]) -> str:
    """The verdict; if devices differ, one that is not `supported`, and on how many of them."""
    texts = [word_text(each) for each in judged]
    worst = next((text for text in texts if text != "supported"), "supported")
    return worst if len(set(texts)) == 1 else f"{worst} on {texts.count(worst)} of {len(texts)} devices"


def verdicts_block(verdicts: Sequence[Verdict]) -> str:
    """Every verdict with its comparisons and bounds, and the reason for the bounds of each claim."""
    reasons = dict.fromkeys(f"- *{each.claim.sentence}* {each.claim.margin}" for each in verdicts)
    return "\n".join([markdown(verdict_table(verdicts), 3), "The bounds:", "", *reasons])
