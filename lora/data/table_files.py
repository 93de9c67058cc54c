"""Read columns of a table from CSV, TSV, JSON lines or parquet, strictly. Every message has file and line."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.data.glue_tsv import BOM, contents, shown
from lora.errors import UserError, first_line

Row = tuple[int, list[Any]]  # its line, and its values in the requested order
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Columns:
    """Columns of a file.

    Args:
        values: Column -> its values as in the file: text in CSV and TSV.
        lines: The line of each row or, in a file without lines, the number of the row.
        unit: `line` or `row`, accordingly.
    """

    path: Path
    values: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        return f"{self.path}:{self.lines[row]}" if self.unit == "line" else f"{self.path}, row {self.lines[row]}"


def read_columns(path: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Read columns of a file, in the format of its extension.

    CSV follows RFC 4180 and has a header. TSV has a header and, as in GLUE, no quoting. JSON lines has an object in
    each line.

    Args:
        wanted: Columns that the file must have.
        optional: Columns to read if the file has them.
    Raises: UserError: If the file is absent, of an unknown format or not UTF-8, lacks a column or has one twice, or has
        a ragged row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; a file of rows is {', '.join(READERS)}")
    if not path.is_file():
        found = contents(path.parent) if path.parent.is_dir() else "no such folder"
        raise UserError(f"{path} does not exist (found in its folder: {found})")
    return reader(path, wanted, optional)


def places_of(header: Sequence[str], wanted: Sequence[str], optional: Sequence[str], where: str) -> list[str]:
    """The columns to read. Raises: UserError: If one is absent, or the header has a column twice."""
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise UserError(f"{where}: the column {twice[0]!r} occurs {header.count(twice[0])} times")
    absent = [name for name in wanted if name not in header]
    if absent:
        raise UserError(f"{where}: no column {', '.join(absent)}; the columns are {', '.join(header) or 'none'}")
    return [*wanted, *(name for name in optional if name in header)]


def decoded(path: Path) -> str:
    """The text of a file. Raises: UserError: If it cannot be read, is empty, or is not UTF-8, with the line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(UTF16):
        raise UserError(f"{path}:1: UTF-16; save it as UTF-8")
    data = data.removeprefix(BOM)
    if not data.strip():
        raise UserError(f"{path}: empty file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} ({error.reason})"
        raise UserError(f"{path}:{line}: not UTF-8: {byte}; save it as UTF-8") from None


def csv_lines(path: Path) -> Iterator[Row]:
    """Each record, with the number of its first line. A quoted cell may span several lines."""
    reader = csv.reader(io.StringIO(decoded(path), newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV: {error}") from None


def tsv_lines(path: Path) -> Iterator[Row]:
    text = decoded(path)
    ending = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    for line, content in enumerate(text.removesuffix(ending).split(ending), start=1):
        yield line, content.split("\t") if content else []


def delimited(records: Callable[[Path], Iterator[Row]]) -> Callable[..., Columns]:
    """A reader for rows of cells below a header."""

    def read(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> Columns:
        rows = records(path)
        start, header = next(rows)
        names = places_of(header, wanted, optional, f"{path}:{start}")
        places = [header.index(name) for name in names]
        return collected(path, names, picked(path, header, places, rows))

    return read


def picked(path: Path, header: Sequence[str], places: Sequence[int], rows: Iterable[Row]) -> Iterator[Row]:
    """The cells at `places` of each row. Empty lines at the end are ignored."""
    empty = None
    for line, cells in rows:
        if not cells:
            empty = line if empty is None else empty
            continue
        if empty is not None:
            raise UserError(f"{path}:{empty}: an empty line between rows")
        if len(cells) != len(header):
            rule = f"{len(header)} ({', '.join(header)})"
            raise UserError(f"{path}:{line}: {len(cells)} columns, must be {rule}: {shown(', '.join(cells))}")
        yield line, [cells[place] for place in places]


def read_json_lines(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> Columns:
    rows, names = [], None
    for line, text in enumerate(decoded(path).rstrip("\r\n").split("\n"), start=1):
        try:
            pairs = json.loads(text, object_pairs_hook=Pairs)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: not JSON: {first_line(error)}: {shown(text)}") from None
        if not isinstance(pairs, Pairs):
            raise UserError(f"{path}:{line}: must be a JSON object, got {shown(text)}")
        found = places_of([key for key, _ in pairs], wanted, optional, f"{path}:{line}")
        names = found if names is None else names
        if found != names:
            raise UserError(f"{path}:{line}: columns {', '.join(found)}, but line 1 has {', '.join(names)}")
        values = dict(pairs)
        rows.append((line, [values[name] for name in names]))
    return collected(path, names, rows)


class Pairs(list):
    """A JSON object as pairs of key and value, so that a duplicate key is detected."""


def read_parquet(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> Columns:
    import pandas as pd  # imported late, because it takes a second to load

    try:
        table = pd.read_parquet(path, engine="pyarrow", dtype_backend="pyarrow")
    except Exception as error:  # pyarrow's own exceptions
        raise UserError(f"cannot read {path}: {first_line(error)}; is it a whole parquet file?") from error
    names = places_of([str(name) for name in table.columns], wanted, optional, f"{path}")
    values = {name: [None if value is pd.NA else value for value in table[name].tolist()] for name in names}
    return Columns(path, values, range(1, len(table) + 1), "row")


def collected(path: Path, names: Sequence[str], rows: Iterable[Row]) -> Columns:
    values: dict[str, list[Any]] = {name: [] for name in names}
    lines = []
    for line, cells in rows:
        lines.append(line)
        for column, cell in zip(values.values(), cells, strict=True):
            column.append(cell)
    return Columns(path, values, lines)


READERS: dict[str, Callable[..., Columns]] = {
    ".csv": delimited(csv_lines),
    ".tsv": delimited(tsv_lines),
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
