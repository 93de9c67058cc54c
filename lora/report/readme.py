"""Generated blocks of the README and of experiments/VERDICTS.md: findings, verdicts, the main table of a profile."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from lora.files import ROOT
from lora.report.claims.findings import SHAPE, Finding
from lora.report.claims.shown import interval_text, value_text, verdict_table, word_text
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict
from lora.report.stats import LEVEL
from lora.table import Table, markdown

FINDINGS = ROOT / "experiments" / "findings.yaml"
FEW = 2  # comparisons that fit in one cell


def block(name: str, main: Table, verdicts: Sequence[Verdict], figures: Sequence[str], progress: str = "") -> str:
    """The main table, for real GLUE a figure too, and the path of the full report.

    Args:
        progress: How many of the expected runs are trained; empty if all are.
    """
    lines = [line for text in (main.banner, main.above, progress) if text for line in (text, "")]
    lines += [markdown(main.cells, main.words), *main.notes, ""]
    figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
    if figure in figures and not any(each.not_glue for each in verdicts):
        lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    lines.append(f"All tables, figures and runs: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def findings_block(verdicts: Sequence[Verdict]) -> str:
    """At most ten of the paper's claims: the paper's figure, ours, and the verdict."""
    lines = [f"| The paper says | Paper | Ours ({LEVEL:.0%} interval) | Verdict |", "| --- | ---: | ---: | --- |"]
    for line in yaml.safe_load(FINDINGS.read_text()):
        judged = [each for each in verdicts if each.claim.id == line["claim"]]
        paper = paper_figure(judged[0].claim, line)
        lines.append(f"| {line['says']} | {paper} | {ours(judged)} | {words(judged)} |")
    return "\n".join(lines)


def paper_figure(claim: Claim, line: Mapping[str, Any]) -> str:
    """The paper's figure, from the claim's published cells: at most `FEW` differences, else their range."""
    if "word" in line:
        return line["word"]
    if "printed" in line:
        texts, first = [claim.paper[place]["value"] for place in line["printed"]], line["printed"][0]
    else:
        values = [float(claim.paper[one]["value"]) - float(claim.paper[other]["value"]) for one, other in line["gaps"]]
        few = len(values) <= FEW
        texts = [f"{value:+.1f}" for value in (values if few else (min(values), max(values)))]
        texts, first = texts if few else [" to ".join(texts)], line["gaps"][0][0]
    return f"{', '.join(texts)} ({claim.paper[first]['model']})"


def ours(judged: Sequence[Verdict]) -> str:
    """The comparisons that are nearest to their bounds: all if there are few of them, else the nearest."""
    found = [one for each in judged for one in each.findings]
    if all(one.unit == "failures" for one in found):
        return f"{sum(one.mean for one in found):.0f} failures in {sum(one.n for one in found):,} trials"
    nearest = [min(same, key=room) for _, same in groupby(found, key=lambda one: one.label.partition(SHAPE)[0])]
    if len(nearest) <= FEW:
        return ", ".join(map(figure_text, nearest))
    return f"{figure_text(min(nearest, key=room))}, nearest of {len(nearest)}"


def room(found: Finding) -> float:
    return found.bound.room(found.low, found.high)


def figure_text(found: Finding) -> str:
    """`-1.4 (-3.0 to +0.3)`, or the value alone if it has no error."""
    digits = 1 if found.unit == "points" else 2
    interval = interval_text(found, digits)
    return value_text(found, found.mean, digits) + ("" if interval == "-" else f" ({interval})")


def words(judged: Sequence[Verdict]) -> str:
    """The verdict, or on how many devices a claim is supported if they differ."""
    texts = [word_text(each) for each in judged]
    if len(set(texts)) == 1:
        return f"**{texts[0]}**"
    return f"**supported** on {texts.count('supported')} of {len(texts)} devices"


def verdicts_block(verdicts: Sequence[Verdict]) -> str:
    """Every verdict with its comparisons and bounds, and the reason for the bounds of each claim."""
    reasons = dict.fromkeys(f"- *{each.claim.sentence}* {each.claim.margin}" for each in verdicts)
    return "\n".join([markdown(verdict_table(verdicts), 3), "The bounds:", "", *reasons])
