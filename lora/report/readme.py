"""The README's generated blocks: the main table, the verdicts and a figure of a profile."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from lora.report.claims.costs import SHAPE
from lora.report.claims.findings import Finding
from lora.report.claims.shown import about_text, commit_text, short, value_text, word_text
from lora.report.claims.verdicts import Verdict
from lora.report.stats import LEVEL, pairs_text
from lora.table import Table, in_page, markdown


def block(name: str, main: Table, verdicts: Sequence[Verdict], figures: Sequence[str], progress: str = "") -> str:
    """The main table, for real GLUE the verdicts and the figure too, and the path of the full report.

    Args:
        progress: How many of the expected runs are trained; empty if all are.
    """
    lines = [line for text in (main.banner, main.above, progress) if text for line in (text, "")]
    lines += [markdown(main.cells, main.words), *main.notes, ""]
    if not any(each.not_glue for each in verdicts):
        of_paper = [each for each in verdicts if not each.claim.ours]
        lines += [f"| Verdict | The paper's sentence | Here, with {LEVEL:.0%} intervals |", "| --- | --- | --- |"]
        lines += [f"| {word} | {sentence} | {found} |" for word, sentence, found in verdict_rows(of_paper)]
        lines.append("")
        figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
        if figure in figures:
            lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    ours = "" if any(each.not_glue for each in verdicts) else ", and the verdicts on sentences of this project's own"
    lines.append(f"All tables, figures and runs{ours}: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def verdict_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Verdict, claim and comparisons, in a line per claim and encoder. The devices of a claim share a line.

    If all runs have one encoder, its name is left out: it stands above the main table.
    """
    encoders = {each.about for each in verdicts if each.claim.metric and each.about}
    rows = []
    for claim, of_claim in groupby(verdicts, key=lambda each: each.claim):
        group = tuple(of_claim)
        if claim.measure and len(group) > 1:
            rows.append((device_words(group), claim.headline, device_comparisons(group)))
            continue
        for each in group:
            about = "" if encoders == {each.about} and not each.not_glue else about_text(each)
            rows.append((verdict_text(each), claim.headline + about, comparisons(each.findings) or each.reason))
    return rows


def verdict_text(each: Verdict) -> str:
    return f"**{word_text(each)}** ({commit_text(each)})"


def device_words(group: Sequence[Verdict]) -> str:
    """The verdict on a measured claim; if its devices differ, that of each."""
    words = [verdict_text(each) for each in group]
    if len(set(words)) == 1:
        return f"{words[0]}, {len(group)} devices"
    return "<br>".join(f"{word}, {each.about}" for word, each in zip(words, group, strict=True))


def device_comparisons(group: Sequence[Verdict]) -> str:
    """The comparisons over all devices; if their verdicts differ, those of each."""
    if len({each.word for each in group}) == 1:
        return comparisons([found for each in group for found in each.findings])
    return "<br>".join(f"{each.about}:<br>{comparisons(each.findings)}" for each in group)


def comparisons(findings: Sequence[Finding]) -> str:
    """A line per comparison, or per ratio over its measurements. What all differences lack is said once."""
    of_ratio: dict[str, list[Finding]] = {}
    for found in findings:
        of_ratio.setdefault(found.label.partition(SHAPE)[0], []).append(found)
    reasons = {found.reason.partition("; ")[0] for found in findings if found.unit == "points"}
    lacking = reasons.pop() if len(findings) > 1 and len(reasons) == 1 else ""
    lines = []
    for what, same in of_ratio.items():
        ranged = len(same) > 1 and same[0].unit == "ratio" and not any(math.isnan(one.mean) for one in same)
        lines += [measurements(what, same)] if ranged else [comparison(one, lacking) for one in same]
    return "<br>".join(filter(None, (*lines, lacking)))


def measurements(what: str, found: Sequence[Finding]) -> str:
    """The range of a ratio over batches and devices, and of its intervals."""
    lowest, highest = (end(found, key=lambda one: one.mean) for end in (min, max))
    values = " to ".join(dict.fromkeys(value_text(one, one.mean) for one in (lowest, highest)))
    timed = [one for one in found if one.low < one.high]
    if timed:
        low, high = min(timed, key=lambda one: one.low), max(timed, key=lambda one: one.high)
        values += f" (intervals within {value_text(low, low.low)} to {value_text(high, high.high)})"
    rounds = {one.n for one in found}
    parts = [values] if rounds == {None} or len(rounds) > 1 else [values, f"n = {rounds.pop()}"]
    reasons = Counter(one.reason for one in found if one.reason)
    parts[-1] += "".join(f"; {count} of {len(found)}: {reason}" for reason, count in reasons.items())
    shapes = len({one.label for one in found})
    return f"{what}{f', {shapes} batch shapes' if shapes > 1 else ''}: {', '.join(parts)}"


def comparison(found: Finding, lacking: str = "") -> str:
    """
    Args:
        lacking: The part of the reason that is said elsewhere.
    """
    n = "" if found.n is None else f", n = {pairs_text(found.n, found.across)}"
    value = "" if found.n == 0 else f"{value_text(found, found.mean)}{short(found)}{n}"
    reason = found.reason.removeprefix(lacking).removeprefix("; ")
    return ": ".join(filter(None, (found.label, "; ".join(filter(None, (value, reason))))))


def in_readme(readme: str, name: str, text: str) -> str:
    """The page with a profile's block between its marks; unchanged if it has no marks for this profile."""
    return in_page(readme, f"results:{name}", f"\n{text.rstrip()}\n")
