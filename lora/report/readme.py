"""The README's generated blocks: the main table, the verdicts and a figure of a profile."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from lora.report.claims.costs import SHAPE
from lora.report.claims.findings import Finding
from lora.report.claims.shown import about_text, commit_text, short, value_text, word_text
from lora.report.claims.verdicts import Verdict
from lora.report.stats import LEVEL
from lora.table import Table, in_page, markdown


def block(name: str, main: Table, verdicts: Sequence[Verdict], figures: Sequence[str], progress: str = "") -> str:
    """The main table, for real GLUE the verdicts and the figure too, and the path of the full report.

    Args:
        progress: How many of the expected runs are trained; empty if all are.
    """
    lines = [line for text in (main.banner, main.above, progress) if text for line in (text, "")]
    lines += [markdown(main.cells, main.words), *main.notes, ""]
    if not any(each.not_glue for each in verdicts):
        lines += [f"| Verdict | The paper's sentence | Here, with {LEVEL:.0%} intervals |", "| --- | --- | --- |"]
        lines += [f"| {word} | {sentence} | {found} |" for word, sentence, found in verdict_rows(verdicts)]
        lines.append("")
        figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
        if figure in figures:
            lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    lines.append(f"All tables, figures and runs: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def verdict_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Verdict, claim and comparisons, in a line per claim and encoder. The devices of a claim share a line."""
    rows = []
    for claim, of_claim in groupby(verdicts, key=lambda each: each.claim):
        group = tuple(of_claim)
        if claim.measure and len(group) > 1:
            verdict = "<br>".join(f"{verdict_text(each)}, {each.about}" for each in group)
            found = "<br>".join(f"{each.about}:<br>{comparisons(each)}" for each in group)
            rows.append((verdict, claim.headline, found))
        else:
            rows += [(verdict_text(each), claim.headline + about_text(each), comparisons(each)) for each in group]
    return rows


def verdict_text(each: Verdict) -> str:
    return f"**{word_text(each)}** ({commit_text(each)})"


def comparisons(each: Verdict) -> str:
    """A line per comparison. Those of costs that differ in the batch alone share one: the page has them all."""
    lines = []
    for what, of_shapes in groupby(each.findings, key=lambda found: found.label.partition(SHAPE)[0]):
        found = list(of_shapes)
        ranged = each.claim.measure and len(found) > 1 and not any(math.isnan(one.mean) for one in found)
        lines += [over_shapes(what, found)] if ranged else map(comparison, found)
    return "<br>".join(lines) or each.reason


def over_shapes(what: str, found: Sequence[Finding]) -> str:
    """The range of a ratio over several batches, and of its intervals."""
    lowest, highest = (end(found, key=lambda one: one.mean) for end in (min, max))
    values = f"{value_text(lowest, lowest.mean)} to {value_text(highest, highest.mean)}"
    timed = [one for one in found if one.low < one.high]
    if timed:
        low, high = min(timed, key=lambda one: one.low), max(timed, key=lambda one: one.high)
        values += f" (intervals within {value_text(low, low.low)} to {value_text(high, high.high)})"
    rounds = "" if found[0].n is None else f"n = {found[0].n}"
    reasons = Counter(one.reason for one in found if one.reason)
    undecided = "".join(f"; {count} of {len(found)}: {reason}" for reason, count in reasons.items())
    return f"{what}, {len(found)} batch shapes: {', '.join(filter(None, (values, rounds)))}{undecided}"


def comparison(found: Finding) -> str:
    n = "" if found.n is None else f", n = {found.n}"
    value = "" if found.n == 0 else f"{value_text(found, found.mean)}{short(found)}{n}"
    return f"{found.label}: {'; '.join(filter(None, (value, found.reason)))}"


def in_readme(readme: str, name: str, text: str) -> str:
    """The page with a profile's block between its marks; unchanged if it has no marks for this profile."""
    return in_page(readme, f"results:{name}", f"\n{text.rstrip()}\n")
