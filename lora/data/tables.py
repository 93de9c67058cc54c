"""Read a user's table, for training and for predictions: CSV and TSV by pandas, JSON lines, parquet; read labels."""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unicodedata import category

from lora.errors import UserError, first_line
from lora.files import listing

INVISIBLE = ("Cc", "Cf")  # Unicode's categories of control and format characters
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class InputTable:
    """A table.

    Args:
        columns: Name -> one value per row. CSV and TSV hold text; an absent value of the other formats is None.
    """

    path: Path
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises: UserError: If it is absent."""
        if name not in self.columns:
            wrong = "; the cells of a .csv file are separated by commas" if ";" in "".join(self.columns) else ""
            raise UserError(
                f"{self.path}: no column {name}; the columns are {', '.join(self.columns) or 'none'}{wrong}"
            )
        return self.columns[name]

    def texts(self, name: str, empty_allowed: bool = False) -> list[str | None]:
        """The texts of a column. Raises: UserError: If one is absent, empty or not text. Rows count from 1."""
        column = self.column(name)
        for number, text in enumerate(column, start=1):
            if is_empty(text):
                if not empty_allowed:
                    raise UserError(f"{self.path}, row {number}: an empty text in column {name}")
            elif not isinstance(text, str) or SURROGATE.search(text):  # JSON's \ud800 cannot stand alone
                raise UserError(f"{self.path}, row {number}: {text!r}, which is not text, in column {name}")
        return column


def is_empty(text: Any) -> bool:
    """Whether a text is absent, or has only spaces and characters without width, such as U+200B."""
    return text is None or (isinstance(text, str) and all(c.isspace() or category(c) in INVISIBLE for c in text))


def read_table(path: Path) -> InputTable:
    """Read a file in the format of its extension.

    CSV and TSV have a header; TSV has no quoting, as in GLUE. JSON lines has one object per line.

    Raises: UserError: If the file is absent, broken, not UTF-8, or of an unknown format, or names a column twice.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; a file of rows is {', '.join(READERS)}")
    if not os.path.isfile(path):  # False where pathlib raises, as for a name that is too long
        raise UserError(f"{path} does not exist (found in its folder: {listing(path.parent)})")
    try:
        names, columns = reader(path)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the column {twice[0]!r} occurs {names.count(twice[0])} times")
        return InputTable(path, dict(zip(names, columns, strict=True)))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: {first_line(error)}: save the file as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: pandas', pyarrow's and JSON's own are such
        reason = first_line(error).removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"cannot read {path}: {reason}") from error


def read_cells(path: Path, **form: Any) -> tuple[list[str], list[list[str]]]:
    import pandas as pd  # half a second, and only for a user's table

    text = path.read_bytes().decode("utf-8-sig")
    if form:  # TSV: no quotes, so every CR LF ends a row
        text = text.replace("\r\n", "\n")
    else:  # pandas takes a stray quote for the start of a cell of several rows
        csv.field_size_limit(2**31 - 1)
        checked: list[list[str]] = []
        try:
            checked.extend(csv.reader(StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            raise ValueError(f"row {len(checked)}: a quote opens a cell that it does not close: {error}") from error
    lines_end_with_lf = "\r\n" not in text and "\r" not in text.partition("\n")[0]
    if lines_end_with_lf:
        form["lineterminator"] = "\n"  # else pandas ends a row at a lone CR too
    text = text.rstrip("\n" if lines_end_with_lf else "\r\n")  # blank lines at the end
    # header=None, because pandas would rename a column that occurs twice, and lets rows be longer than a header
    cells = pd.read_csv(StringIO(text), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, **form)
    return cells.loc[0].tolist(), [cells[number].tolist()[1:] for number in cells]


def read_json_lines(path: Path) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig").rstrip().split("\n"), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} is not a JSON object: {first_line(error)}: {line[:60]!r}") from None
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return [*names], [[row.get(name) for row in rows] for name in names]


def read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path).read()
    return table.column_names, [column.to_pylist() for column in table.columns]


READERS: dict[str, Callable[[Path], tuple[list[str], list[list[Any]]]]] = {
    ".csv": read_cells,
    ".tsv": lambda path: read_cells(path, sep="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}


def read_labels(
    column: str,
    entries: Sequence[Any],
    words: Sequence[str] | None,
    score_range: tuple[float, ...] | None,
    place: Callable[[int], str],
) -> list[Any]:
    """The class indices or scores of a column's entries.

    Args:
        words: For classification: the labels as in the file, in the order of their indices. An integer matches the
            label with its digits, and a truth value `true` or `false`, since JSON and parquet hold such entries.
        score_range: For regression: the lowest and the highest score.
        place: The name of an entry's place, from its index.
    Raises: UserError: If an entry is none of them; the message states its place, and the valid entries.
    """
    known: dict[str, int] = {word: index for index, word in enumerate(words or ())}
    read: list[int | float] = []
    label: int | float | None
    for index, entry in enumerate(entries):
        word = str(entry).lower() if isinstance(entry, int) else entry
        if words:
            label = known.get(word) if isinstance(word, str) else None
            rule = f"the labels are {', '.join(known)}"
        else:
            low, high = score_range
            label = as_score(word, low, high)
            rule = f"a score is a number from {low:.15g} to {high:.15g}"
        if label is None:
            found = "no label" if entry in (None, "") else repr(entry)
            raise UserError(f"{place(index)}: {found} in column {column}: {rule}")
        read.append(label)
    return read


def as_score(entry: Any, low: float, high: float) -> float | None:
    if isinstance(entry, str) and ("_" in entry or not entry.isascii()):
        return None
    try:
        score = float(entry)
    except (TypeError, ValueError):
        return None
    return score if low <= score <= high else None
