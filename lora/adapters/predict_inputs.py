"""The inputs of `predict`: adapters with their tasks, and rows of files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from lora.adapters.adapter import Adapter, Origin
from lora.adapters.folder import at_home, existing, read_adapter
from lora.config.own_task import task_file
from lora.data.definition import check_words, name_of, read_definition
from lora.data.glue_tsv import cut_short, read_lines
from lora.data.read import as_dataset
from lora.data.table_files import Row, csv_lines, picked
from lora.data.tasks import TASKS, Task, get_task
from lora.errors import UserError

NAMES = "adapter"  # the column that names each row's adapter in an input for several


@dataclass(frozen=True)
class Served:
    """An adapter, the name that rows use for it, and its task."""

    name: str
    adapter: Adapter
    task: Task


@dataclass(frozen=True)
class Work:
    """The rows of one file for one adapter.

    Args:
        places: Indices of the rows in their file.
    """

    served: Served
    rows: datasets.Dataset
    places: np.ndarray


def named_folder(given: str) -> tuple[str, Path]:
    """The name and folder given as `NAME=FOLDER`, or as a folder alone, whose last part is then the name.

    An existing folder is taken as a whole, even if its path contains `=`: `runs/lr=0.1/a` is not `0.1/a` under the name
    `runs/lr`.

    Raises: UserError: If the folder does not exist, or the name cannot stand in a column.
    """
    whole = at_home(given)
    if os.path.isdir(whole):
        return named(whole.resolve().name), whole
    name, equals, folder = given.partition("=")
    if not equals:
        return name, existing(whole)
    place = at_home(folder)
    if not folder or not os.path.isdir(place):
        raise UserError(f"adapter folder {folder or '(none)'} does not exist, and neither does a folder {given}")
    return named(name), place


def named(name: str) -> str:
    """Return the name. Raises: UserError: If it is empty or cannot stand in a column."""
    if not name or set(name) & set("\t\n\r"):
        raise UserError(f"an adapter's name must not be empty or contain tabs or line ends, got {name!r}")
    return name


def serve(name_and_folder: str, task_name: str | None) -> Served:
    """Read an adapter as given on the command line. Raises: UserError: If its labels are not those of the task."""
    name, folder = named_folder(name_and_folder)
    adapter = read_adapter(folder)
    known = task_name or adapter.origin.task
    if known is None:
        raise UserError(f"{folder} does not say its task: name it with --task")
    task = task_called(known, adapter.origin, folder)
    if adapter.origin.labels is not None and adapter.origin.labels != task.labels:
        raise UserError(
            f"{folder} was trained on {adapter.origin.task} with {words(adapter.origin.labels)}, and task {task.name} "
            f"has {words(task.labels)}"
        )
    return Served(name, adapter, task)


def task_called(name: str, origin: Origin, folder: Path) -> Task:
    """The task of this name: one of TASKS, one of a file, or the one that an adapter was trained on.

    Raises: UserError: If there is none, or the adapter describes it with words that cannot stand in a table.
    """
    path = task_file(name)
    if path is not None and name not in TASKS:
        definition = read_definition(path)
        return foreign(name_of(path, definition), definition.columns, definition.labels or ())
    if name in TASKS or name != origin.task or not origin.columns or origin.labels is None:
        return get_task(name)
    problems = check_words(origin.columns, origin.labels)
    if problems:
        raise UserError(f"{folder} describes no task: {'; '.join(problems)}")
    return foreign(name, origin.columns, origin.labels)


def foreign(name: str, columns: tuple[str, ...], labels: tuple[str, ...]) -> Task:
    """A task of somebody's own, of which only what predictions need is known."""
    return Task(name, name, columns, labels, metrics=(), official_rows={}, test_splits=())


def words(labels: tuple[str, ...]) -> str:
    return f"labels {', '.join(labels)}" if labels else "scores"


def read_input(path: Path, served: Sequence[Served]) -> list[Work]:
    """Read a file's rows and group them by adapter. With several adapters, column `adapter` names each row's.

    Raises: UserError: If a column is missing, a line has another number of columns, or a name is unknown. The message
        names file and line.
    """
    header, records = read_cells(path)
    rows = [cells for _, cells in records]
    if not rows:
        raise UserError(f"{path}: a header but no rows")
    columns = [text_columns(each.task, header, path) for each in served]
    if len(served) == 1:
        owners = np.zeros(len(rows), int)
    else:
        if NAMES not in header:
            found = ", ".join(header)
            raise UserError(
                f"{path}:1: with several adapters, column {NAMES} must name each row's; the columns are {found}"
            )
        numbers = {each.name: number for number, each in enumerate(served)}
        names = [cells[header.index(NAMES)] for cells in rows]
        for (line, _), name in zip(records, names, strict=True):
            if name not in numbers:
                raise UserError(f"{path}:{line}: no adapter {name!r} is loaded; the adapters are {', '.join(numbers)}")
        owners = np.array([numbers[name] for name in names])
    work = []
    for number, each in enumerate(served):
        places = np.flatnonzero(owners == number)
        if len(places):
            texts = {
                name: [rows[row][column] for row in places]
                for name, column in zip(each.task.columns, columns[number], strict=True)
            }
            labelled = {**texts, "label": [None] * len(places)}
            work.append(Work(each, as_dataset(each.task, labelled, np.arange(len(places))), places))
    return work


def read_cells(path: Path) -> tuple[list[str], list[Row]]:
    """The header of a file, and its rows with their lines: CSV if it is called so, else tab-separated, as GLUE's files.

    Raises: UserError: If it cannot be read, or a row has another number of columns than the header.
    """
    if path.suffix.lower() == ".csv":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        records = csv_lines(path)
    else:
        lines, ended = read_lines(path)
        if not ended:
            raise UserError(cut_short(path, len(lines), lines[-1]))
        records = ((number, line.split("\t")) for number, line in enumerate(lines, start=1))
    _, header = next(records)
    return header, list(picked(path, header, range(len(header)), records))


def text_columns(task: Task, header: list[str], path: Path) -> list[int]:
    """Indices of the text columns, named as in the task or in the official files. Raises: UserError: If missing."""
    spellings = [task.columns, *([task.tsv.texts] if task.tsv else [])]
    for names in spellings:
        if set(names) <= set(header):
            return [header.index(name) for name in names]
    either = " or ".join(dict.fromkeys(", ".join(names) for names in spellings))
    raise UserError(f"{path}:1: {task.title} needs the columns {either}; the header has {', '.join(header)}")
