"""The README's generated blocks: the main table, the verdicts and a figure of a profile."""

from collections.abc import Sequence
from itertools import groupby

from lora.report.claims.findings import SHAPE, Finding
from lora.report.claims.shown import about_text, commit_text, short, value_text, word_text
from lora.report.claims.verdicts import Verdict
from lora.report.stats import LEVEL, pairs_text
from lora.table import Table, markdown


def block(name: str, main: Table, verdicts: Sequence[Verdict], figures: Sequence[str], progress: str = "") -> str:
    """The main table, for real GLUE the verdicts and the figure too, and the path of the full report.

    Args:
        progress: How many of the expected runs are trained; empty if all are.
    """
    lines = [line for text in (main.banner, main.above, progress) if text for line in (text, "")]
    lines += [markdown(main.cells, main.words), *main.notes, ""]
    ours = ""
    if not any(each.not_glue for each in verdicts):
        lines += [f"| Verdict | The paper's sentence | Here, with {LEVEL:.0%} intervals |", "| --- | --- | --- |"]
        lines += [verdict_row(each) for each in verdicts if not each.claim.ours] + [""]
        ours = ", and the verdicts on sentences of this project's own"
        figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
        if figure in figures:
            lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    lines.append(f"All tables, figures and runs{ours}: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def verdict_row(each: Verdict) -> str:
    """A verdict, its sentence, and its comparisons: of several batch shapes, the one that is nearest to its bound."""
    lines = []
    for _, same in groupby(each.findings, key=lambda found: found.label.partition(SHAPE)[0]):
        found = sorted(same, key=lambda one: one.bound.room(one.low, one.high))
        lines.append(
            finding_line(found[0]) + f" (nearest to the bound of {len(found)} batch shapes)" * (len(found) > 1)
        )
    shown = "<br>".join(lines) or each.reason
    return f"| **{word_text(each)}** ({commit_text(each)}) | {each.claim.headline}{about_text(each)} | {shown} |"


def finding_line(found: Finding) -> str:
    """`LoRA - full, RTE: +0.50 (-0.20 to +1.20), n = 5; the bound lies inside the interval`."""
    n = "" if found.n is None else f", n = {pairs_text(found.n, found.across_devices)}"
    value = "" if found.n == 0 else f"{value_text(found, found.mean)}{short(found)}{n}"
    return f"{found.label}: {'; '.join(filter(None, (value, found.reason)))}"
