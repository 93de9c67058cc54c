"""What commands print of a report: on a terminal, tables that fit its width; in a pipe or a file, Markdown."""

import re
import sys
from dataclasses import replace
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from lora.config.plan import LEARNING_RATE
from lora.report.build import Report
from lora.report.claims.shown import ours, verdict_table, word_text, worst_word
from lora.report.comparisons import REPEATED
from lora.report.page import SYMBOLS, verdict
from lora.report.runs import METRIC_SHORT, OWN
from lora.table import Table, rows

# In the files and the page alone. The paper's claims are not judged on user-defined tasks, so their pairs are printed.
NOT_PRINTED = ("table2_paper", "table2_paper_part", "pairs", "pairs_part", REPEATED, "reference")
METRICS = re.compile(rf" \((?:{'|'.join(map(re.escape, METRIC_SHORT.values()))})\)(?=$|,)")
MEANS = re.compile(r" \(mean [^)]*\)")
SIZES = ("Trainable", "Seeds", "Pairs", "Layer", "Median over layers")  # columns that a narrow terminal can do without
COLOURS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def show(report: Report, of_sweep: bool = False, plain: bool = False) -> None:
    """Print a report: `of_sweep` without the runs that the sweep did not ask for, `plain` as Markdown in any case."""
    if plain or not sys.stdout.isatty():
        print(markdown(report, of_sweep))
        return
    console, tables = Console(highlight=False), printed(report, of_sweep)
    for banner in dict.fromkeys(table.banner for table in tables if table.banner):
        console.print(escape(banner.replace("*", "")), style="bold")
    for line in report.answers:
        console.print(escape(f"• {line}"))
    notes: list[str] = []
    for table in tables:
        if table.name not in ("claims", LEARNING_RATE):  # the page has them
            console.print(grid(table, console.width))
            new = [note for note in table.notes[:1] if note not in notes]
            notes += new
            console.print(*(f"{escape(note.replace('`', ''))}\n" for note in new), style="dim")
    measured = [each for each in report.verdicts if each.is_measured]
    for _, of_claim in groupby(measured, key=lambda each: each.claim.id):
        judged = list(of_claim)
        word = worst_word([word_text(each) for each in judged], "devices")
        claim = escape(judged[0].claim.headline.removesuffix("."))
        start = f"[{COLOURS[verdict(word)]}]{SYMBOLS[verdict(word)]} {word:<13}[/]"
        fits = len(word) + len(ours(judged)) + 20 < console.width  # the claim may be cut, the interval not
        console.print(f"{start}  {escape(ours(judged))}  [dim]{claim}[/]", no_wrap=fits, overflow="ellipsis")
    for line in (*compared(report), *report.status):
        console.print(escape(line.replace("`", "")))


def compared(report: Report) -> list[str]:
    """A line in place of the table that sets the user's runs beside the reference's, if there is one."""
    lines, runs = [], report.gathered.every["device"].count()
    for title, cells in ((table.title, table.cells) for table in report.tables if table.name == "reference"):
        first, second = (pd.to_numeric(cells[side], errors="coerce").fillna(0) for side in ("First", "Second"))
        cell = cells.loc[(second - first).abs().idxmax()]
        largest = f"{cell['Change']}, {cell['Method']} on {cell['Task']}, SD {cell['SD of the change']}"
        same = cells["Seeds"].astype(int).sum()
        lines.append(f"{title}: {same} of {runs} runs; largest change of a cell {largest}; table on the page")
    return lines


def printed(report: Report, of_sweep: bool) -> list[Table]:
    """The tables that commands print; the verdicts last."""
    tables = [t for t in report.tables if len(t.cells) and t.name not in NOT_PRINTED]
    tables = [t for t in tables if not (of_sweep and t.name.startswith(OWN))]
    return sorted(tables, key=lambda table: table.name == "claims")


def grid(table: Table, width: int) -> Grid:
    """A table without the size of the head, columns in which nothing is measured, the names of metrics, and means."""
    cells = table.cells.drop(columns="Head", errors="ignore")
    cells = cells.replace(METRICS, "", regex=True).replace(MEANS, "", regex=True)
    cells = cells.loc[:, [not (column == "-").all() for _, column in cells.items()]]
    names = {name: METRICS.sub("", name) for name in cells.columns}
    texts = {name: [title, *map(str, cells[name])] for name, title in names.items()}
    least = {name: max(len(word) for text in column for word in text.split()) for name, column in texts.items()}
    for name in (*SIZES, *reversed(cells.columns[table.words + 1 :])):  # the last ones, where even words do not fit
        if name in cells and sum(least[column] + 2 for column in cells) >= width:
            cells = cells.drop(columns=name)
    sizes = {name: max(map(len, texts[name])) for name in cells.columns}
    floor = {name: least[name] for name in sizes}
    while sum(size + 2 for size in sizes.values()) >= width and sizes != floor:  # texts go on in another line
        sizes[max(sizes, key=lambda name: sizes[name] - floor[name])] -= 1
    look = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    hidden = ", ".join(name for title, name in names.items() if title not in cells)
    found = Grid(title=escape(f"{table.title}{f'; on the page: {hidden}' if hidden else ''}"), **look)
    for name, size in sizes.items():
        justify = "left" if name in table.cells.columns[: table.words] else "right"
        found.add_column(escape(names[name]), justify=justify, width=size)
    for row in rows(cells):
        found.add_row(*(escape(str(text)) for text in row))
    return found


def markdown(report: Report, of_sweep: bool = False) -> str:
    """The tables, the verdicts that stand on a measured comparison, and the runs that no table has."""
    measured = verdict_table([each for each in report.verdicts if each.is_measured])
    tables = [replace(t, cells=measured) if t.name == "claims" else t for t in printed(report, of_sweep)]
    shown = [table.markdown() for table in tables]
    if report.answers:
        shown.insert(0, "\n".join(["# Which method is better\n", *(f"- {line}" for line in report.answers), ""]))
    shown += [f"{line}\n" for line in compared(report)]
    if report.status:
        shown += ["## Not in the tables\n", *(f"- {line}" for line in report.status), ""]
    return "\n".join(shown)
