"""What commands print of a report: on a terminal, tables that fit its width; in a pipe or a file, Markdown."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from lora.config.plan import LEARNING_RATE
from lora.report.build import Report
from lora.report.claims.shown import closest, on_places, verdict_table, word_text, worst
from lora.report.claims.verdicts import Verdict
from lora.report.experiments import OWN, REPEATED
from lora.report.page import SYMBOLS
from lora.table import Cell, Table, Value, rows

# In the files and the page alone. The paper's claims are not judged on user-defined tasks, so their pairs are printed.
NOT_PRINTED = ("table2_paper", "table2_paper_part", "pairs", "pairs_part", REPEATED, "reference")
SPARE = ("Trainable", "Seeds", "Pairs", "Layer", "Median over layers")  # columns that a narrow terminal can do without
STATUS_SHOWN = 5  # lines on missing and failed runs at the end of a sweep, which fits 40 lines
WORD_COLOURS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def show(report: Report, experiments: Sequence[str] = ()) -> None:
    """Print a report.

    Args:
        experiments: After a sweep, those that it asked for. A terminal then shows one screen: their first table, what
            came out, and how many tables and claims the page has besides. Runs that no sweep asked for are left out.
    """
    if not sys.stdout.isatty():
        print(markdown_report(report, bool(experiments)))
        return
    console = Console(highlight=False)
    tables = [
        table for table in printed_tables(report, bool(experiments)) if table.name not in ("claims", LEARNING_RATE)
    ]
    judged = [verdict for verdict in report.verdicts if verdict.is_measured]
    status = report.status
    more = []
    if experiments:
        of_sweep = [table for table in tables if table.experiment in experiments] or tables
        claims = [verdict for verdict in judged if verdict.claim.experiment in experiments]
        other = {verdict.claim.id for verdict in judged} - {verdict.claim.id for verdict in claims}
        more = [(len(tables) - 1, "tables"), (len(other), "claims"), (len(status) - STATUS_SHOWN, "lines on runs")]
        tables = of_sweep[:1]
        judged = claims
        status = status[:STATUS_SHOWN]
    for banner in dict.fromkeys(table.banner for table in tables if table.banner):
        console.print(escape(banner.replace("*", "")), style="bold")
    notes: list[str] = []
    for table in tables:
        console.print(terminal_table(table, console.width))
        new = [note for note in table.notes[:1] if note not in notes]
        notes += new
        console.print(*(f"{escape(note.replace('`', ''))}\n" for note in new), style="dim")
    for line in report.answers:
        console.print(escape(f"• {line}"))
    for _, of_claim in groupby(judged, key=lambda verdict: verdict.claim.id):
        print_claim(console, list(of_claim), whole=bool(experiments))
    for line in (*reference_lines(report), *status):
        console.print(escape(line.replace("`", "")))
    if left := ", ".join(f"{count} {what}" for count, what in more if count > 0):
        console.print(f"More on the page: {left}")


def print_claim(console: Console, judged: Sequence[Verdict], whole: bool) -> None:
    """The verdict, what decides it, and the claim, which is cut to one line unless it is to be `whole`."""
    word = on_places(judged, [word_text(verdict) for verdict in judged], "devices")
    claim = escape(judged[0].claim.headline.removesuffix("."))
    shown = worst(judged).word
    start = f"[{WORD_COLOURS[shown]}]{SYMBOLS[shown]} {word:<13}[/]"
    fits = not whole and len(word) + len(closest(judged)) + 20 < console.width  # the claim may be cut, the interval not
    console.print(f"{start}  {escape(closest(judged))}  [dim]{claim}[/]", no_wrap=fits, overflow="ellipsis")


def reference_lines(report: Report) -> list[str]:
    """A line of at most 80 characters on the runs that the reference has too, in place of their table."""
    lines = []
    runs = report.gathered.every["device"].count()
    for table in (table for table in report.tables if table.name == "reference"):
        first, second = (pd.to_numeric(table.cells[side], errors="coerce").fillna(0) for side in ("First", "Second"))
        place = (second - first).abs().idxmax()
        cell = f"{table.cells.at[place, 'Method']}, {short_text(table, table.cells.at[place, 'Task'])}"
        same = table.values["Seeds"].sum()
        change = (second - first)[place]
        lines.append(f"Reference: {same} of {runs} runs, largest change {change:+.1f} ({cell})")
    return lines


def printed_tables(report: Report, of_sweep: bool) -> list[Table]:
    """The tables that commands print; the verdicts last."""
    tables = [
        table for table in report.tables if len(table.cells) and table.name not in NOT_PRINTED and not table.folded
    ]
    tables = [table for table in tables if not (of_sweep and table.name.startswith(OWN))]
    return sorted(tables, key=lambda table: table.name == "claims")


def short_text(table: Table, cell: Cell) -> str:
    """A cell or a head without the names of metrics, and means."""
    return str(replace(cell, aside="")) if isinstance(cell, Value) else table.units.get(cell, (str(cell),))[0]


def terminal_table(table: Table, width: int) -> Grid:
    """A table without the size of the head, columns in which nothing is measured, the names of metrics, and means."""
    cells = table.values.drop(columns="Head", errors="ignore").map(lambda cell: short_text(table, cell))
    cells = cells.loc[:, [not (column == "-").all() for _, column in cells.items()]]
    names = {name: short_text(table, name) for name in cells.columns}
    texts = {name: [title, *map(str, cells[name])] for name, title in names.items()}
    least = {name: max(len(word) for text in column for word in text.split()) for name, column in texts.items()}
    for name in (*SPARE, *reversed(cells.columns[table.words + 1 :])):  # the last ones, where even words do not fit
        if name in cells and sum(least[column] + 2 for column in cells) >= width:
            cells = cells.drop(columns=name)
    sizes = {name: max(map(len, texts[name])) for name in cells.columns}
    floor = {name: least[name] for name in sizes}
    while sum(size + 2 for size in sizes.values()) >= width and sizes != floor:  # texts go on in another line
        sizes[max(sizes, key=lambda name: sizes[name] - floor[name])] -= 1
    look = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    hidden = ", ".join(name for title, name in names.items() if title not in cells)
    grid = Grid(title=escape(f"{table.title}{f'; on the page: {hidden}' if hidden else ''}"), **look)
    for name, size in sizes.items():
        justify = "left" if name in table.cells.columns[: table.words] else "right"
        grid.add_column(escape(names[name]), justify=justify, width=size)
    for row in rows(cells):
        grid.add_row(*(escape(str(text)) for text in row))
    return grid


def markdown_report(report: Report, of_sweep: bool = False) -> str:
    """The tables, the verdicts that stand on a measured comparison, and the runs that no table has."""
    measured = verdict_table([verdict for verdict in report.verdicts if verdict.is_measured])
    tables = [replace(t, values=measured) if t.name == "claims" else t for t in printed_tables(report, of_sweep)]
    shown = [table.markdown() for table in tables]
    if report.answers:
        shown.insert(0, "\n".join(["# Which method is better\n", *(f"- {line}" for line in report.answers), ""]))
    shown += [f"{line}\n" for line in reference_lines(report)]
    if report.status:
        shown += ["## Not in the tables\n", *(f"- {line}" for line in report.status), ""]
    return "\n".join(shown)
