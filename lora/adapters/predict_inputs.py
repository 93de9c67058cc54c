"""The inputs of `predict`: adapters with their tasks, and rows of files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from lora.adapters.adapter import Adapter, Origin
from lora.adapters.folder import existing, read_adapter
from lora.config.own_task import task_file
from lora.data.definition import check_words, name_of, read_definition
from lora.data.read import as_dataset
from lora.data.tables import Table, read_table
from lora.data.tasks import TASKS, Task, get_task
from lora.errors import UserError
from lora.files import at_home

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

    Raises: UserError: If the file cannot be read, a column is missing, a text is empty, or a name is unknown.
    """
    table = read_table(path)
    if not len(table):
        raise UserError(f"{path}: a header but no rows")
    owners = np.zeros(len(table), int)
    if len(served) > 1:
        numbers = {each.name: number for number, each in enumerate(served)}
        for row, name in enumerate(table.column(NAMES)):
            if name not in numbers:
                raise UserError(
                    f"{table.row(row)}: no adapter {name!r} is loaded; the adapters are {', '.join(numbers)}"
                )
            owners[row] = numbers[name]
    work = []
    for number, each in enumerate(served):
        names, places = text_columns(each.task, table), np.flatnonzero(owners == number)
        if len(places):
            columns = {
                column: table.texts(name, places.tolist())
                for column, name in zip(each.task.columns, names, strict=True)
            }
            columns["label"] = [None] * len(places)
            work.append(Work(each, as_dataset(each.task, columns, np.arange(len(places))), places))
    return work


def text_columns(task: Task, table: Table) -> tuple[str, ...]:
    """The task's text columns, named as in the task or in the official files. Raises: UserError: If missing."""
    spellings = [task.columns, *([task.tsv.texts] if task.tsv else [])]
    for names in spellings:
        if set(names) <= set(table.columns):
            return names
    either = " or ".join(dict.fromkeys(", ".join(names) for names in spellings))
    raise UserError(f"{table.path}: {task.title} needs the columns {either}; it has {', '.join(table.columns)}")
