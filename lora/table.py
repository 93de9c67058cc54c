"""A table of values, written in Markdown and CSV. `lora.report.page` and `lora.report.terminal` show it too."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

MARK = "<!-- {name} {edge} -->"  # around a generated text in a page


@dataclass(frozen=True)
class Value:
    """A cell that shows a number.

    Args:
        number: What a page sorts by.
        text: The number as it is shown.
        remarks: What follows it in brackets, such as an interval; small on a page.
        aside: The first remark, which a terminal leaves out.
        cell: The cell of which it is the score, by the columns `lora.report.runs.CELL`.
    """

    number: float | int
    text: str
    remarks: tuple[str, ...] = ()
    aside: str = ""
    cell: str = ""

    @property
    def bracketed(self) -> str:
        return " ".join(f"({remark})" for remark in (self.aside, *self.remarks) if remark)

    def __str__(self) -> str:
        return f"{self.text} {self.bracketed}".rstrip()


Cell = Value | int | str


def number(value: float | int, form: str = ".1f", *remarks: str) -> Cell:
    """A number with these remarks; `-` if it was not measured."""
    return "-" if math.isnan(value) else Value(value, f"{value:{form}}", remarks)


@dataclass(frozen=True)
class Table:
    """A table, which each place formats for itself.

    Args:
        name: Name of its files in tables/.
        title: Includes the paper's name for it, if any.
        values: Columns of `Cell`: words, counts, values; `-` if nothing was measured.
        words: Number of leading columns that hold words, which are aligned left.
        notes: Lines below it, in Markdown without links.
        banner: A notice to read before the numbers; shown above the table.
        above: A line below the banner that states how the runs were trained.
        figures: Name -> data of the figures that the page shows next to it.
        folded: Whether it is shown on the page alone, on request: it may hold a user's texts.
        experiment: The one whose runs it shows, if it is a table of one.
        units: Text of a head or of a word -> the same without its unit, and the unit: `CoLA (Matthews)`.
    """

    name: str
    title: str
    values: pd.DataFrame
    words: int = 1
    notes: tuple[str, ...] = ()
    banner: str = ""
    above: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    folded: bool = False
    experiment: str = ""
    units: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The whole texts of the values."""
        return self.values.map(str)

    def files(self) -> dict[str, bytes]:
        """Path below results/<name>/ -> content."""
        return {
            f"tables/{self.name}.md": self.markdown().encode(),
            f"tables/{self.name}.csv": self.cells.to_csv(index=False, lineterminator="\n").encode(),
        }

    def markdown(self) -> str:
        return f"# {self.title}\n\n{self.untitled()}"

    def untitled(self) -> str:
        """The table in Markdown, for a page that has its own heading."""
        above = [line for text in (self.banner, self.above) if text for line in (text, "")]
        return "\n".join([*above, markdown(self.cells, self.words), *self.notes]).rstrip() + "\n"


def markdown(cells: pd.DataFrame, words: int = 1) -> str:
    """A table in GitHub's syntax. Columns after the first `words` are aligned right."""
    lines = ["| " + " | ".join(cells.columns) + " |"]
    lines.append("|" + "|".join(" --- " if i < words else " ---: " for i in range(len(cells.columns))) + "|")
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows(cells)]
    return "\n".join(lines) + "\n"


def markdown_text(text: object) -> str:
    """A cell, in which only `**` is markup: a single `*`, as in `targets=*.query+*.value`, is a character."""
    return re.sub(r"\||(?<!\*)\*(?!\*)", lambda match: f"\\{match[0]}", str(text))


def in_page(page: str, name: str, text: str) -> str:
    """A Markdown page with a text between the marks of this name; unchanged if it has no such marks."""
    begin, end = (MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    if begin not in page or end not in page:
        return page
    return f"{page.partition(begin)[0]}{begin}{text}{end}{page.partition(end)[2]}"


def rows(cells: pd.DataFrame) -> list[tuple]:
    return list(cells.itertuples(index=False, name=None))
