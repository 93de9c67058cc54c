"""The README's generated blocks: the main table, the verdicts and a figure of a profile."""

from collections.abc import Sequence
from itertools import groupby

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
    """Verdict, claim and all comparisons, in a line per claim and encoder. The devices of a claim share a line."""
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
    return "<br>".join(map(comparison, each.findings)) or each.reason


def comparison(found: Finding) -> str:
    n = "" if found.n is None else f", n = {found.n}"
    value = "" if found.n == 0 else f"{value_text(found, found.mean)}{short(found)}{n}"
    return f"{found.label}: {'; '.join(filter(None, (value, found.reason)))}"


def in_readme(readme: str, name: str, text: str) -> str:
    """The page with a profile's block between its marks; unchanged if it has no marks for this profile."""
    return in_page(readme, f"results:{name}", f"\n{text.rstrip()}\n")
