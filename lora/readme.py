"""The README's generated blocks: the main table, the verdicts and a figure of a profile."""

from collections.abc import Sequence

from lora.claims.shown import short_interval, value_text
from lora.claims.verdicts import Verdict
from lora.formats import Table, markdown

MARK = "<!-- results:{name} {edge} -->"


def block(
    name: str, tables: Sequence[Table], verdicts: Sequence[Verdict], figures: Sequence[str], progress: str = ""
) -> str:
    """The first table; for real GLUE the verdicts and the figure too; and where the rest is.

    Args:
        progress: How much of a profile that is not complete there is.
    """
    main = tables[0]
    lines = [line for text in (main.banner, progress) if text for line in (text, "")]
    lines += [markdown(main.cells, main.words), *main.notes, ""]
    if not any(each.not_glue for each in verdicts):
        lines += ["| Verdict | The paper's sentence | Here |", "| --- | --- | --- |"]
        lines += [f"| {word} | {sentence} | {found} |" for word, sentence, found in verdict_rows(verdicts)]
        lines.append("")
        figure = main.name.replace("table2", "parameters")  # of the same rows
        if figure in figures:
            lines += [f"![Trainable parameters against the average score](results/{name}/figures/{figure}.png)", ""]
    lines.append(f"All tables, figures and runs: `results/{name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def verdict_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """One line per claim and encoder or device: its verdict and the comparison that decides it."""
    rows = []
    for each in verdicts:
        found = each.reason
        if each.findings:
            worst = next((f for f in each.findings if f.holds is False), None)
            shown = worst or next((f for f in each.findings if f.holds is None), each.findings[0])
            n = "" if shown.n is None else f", n = {shown.n}"
            value = shown.reason if shown.n == 0 else f"{value_text(shown, shown.mean)}{short_interval(shown)}{n}"
            found = f"{shown.label}: {value}"
        about = f" ({each.about})" if each.about else ""
        rows.append((f"**{each.word}**", f"{each.claim.headline}{about}", found))
    return rows


def in_readme(readme: str, name: str, text: str) -> str:
    """The page with the block between its marks; unchanged where it has none for this profile."""
    begin, end = (MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    if begin not in readme or end not in readme:
        return readme
    return f"{readme.partition(begin)[0]}{begin}\n{text.rstrip()}\n{end}{readme.partition(end)[2]}"
