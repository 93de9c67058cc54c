"""User-defined tasks: each is read from its file, with its rows, and added to TASKS.

A folder of results keeps the definition of each task of its records in `tasks/`. That is all that reports need.
"""

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora.checks import SettingsError, build
from lora.data.definition import KEYS, OWN_NAME, Definition, name_of, read_definition
from lora.data.tables import Table, label_reader, read_table
from lora.data.tasks import TASKS, OwnRows, Task
from lora.errors import UserError, first_line
from lora.files import at_home, file_state, read_object, write_atomically

FOLDER = "tasks"  # below a folder of results
KEPT = 12  # splits whose rows stay in memory, for counting, comparing, hashing and training


@dataclass(frozen=True)
class Kept:
    """The facts of a task that a folder of results keeps.

    Args:
        rows: See `Task.official_rows`.
        label_std: See `Task`.
    """

    definition: Definition
    rows: dict[str, int]
    label_std: float | None = None


def add_task(path: Path) -> Task:
    """Read a task's file and its rows, and add the task to TASKS.

    Raises: UserError: If the file or a row is invalid.
    """
    definition = read_definition(path)
    own = OwnRows(definition, path.resolve().parent)
    rows = {split: len(own_rows(own, split)["label"]) for split in definition.places}
    scores = own_rows(own, "validation")["label"] if definition.labels is None else None
    kept = Kept(definition, rows, None if scores is None else float(np.std(scores)))
    return put(name_of(path, definition), kept, own)


def put(name: str, kept: Kept, own: OwnRows) -> Task:
    definition = kept.definition
    TASKS[name] = Task(
        name=name,
        title=name,
        columns=definition.columns,
        labels=definition.labels or (),
        metrics=(definition.metric,),
        official_rows=kept.rows,
        test_splits=("test",) if definition.test is not None else (),
        label_range=definition.range,
        label_std=kept.label_std,
        own=own,
    )
    return TASKS[name]


def keep_task(task: Task, results: str | Path) -> None:
    """Write the definition of a user-defined task into the results folder of its runs.

    Raises: UserError: If it cannot be written.
    """
    kept = Kept(task.own.definition, task.official_rows, task.label_std)
    content = f"{json.dumps(dataclasses.asdict(kept), indent=1)}\n".encode()
    path = Path(results) / FOLDER / f"{task.name}.json"
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def add_kept_tasks(results: str | Path) -> list[str]:
    """Add the tasks that a folder of results keeps to TASKS. A task already in TASKS stays, with its rows.

    Returns: Their names.
    Raises: UserError: If a file is not a valid definition, or its hash is not the one in its name.
    """
    names = []
    for path in sorted((Path(results) / FOLDER).glob("*.json")):
        try:
            kept = build(Kept, read_object(path))
        except (UserError, SettingsError) as error:
            raise UserError(
                f"{path} is not a task's definition: {first_line(error)}; the next run writes it"
            ) from error
        digits = kept.definition.digits
        if not OWN_NAME.fullmatch(path.stem) or not path.stem.endswith(f"-{digits}"):
            raise UserError(
                f"{path} holds another definition than its name says: the digits of its hash are {digits}. A "
                f"regression of an earlier version, whose scores were not scaled by their range, is refused too: move "
                f"the file and its runs to another folder"
            )
        if set(kept.rows) != set(kept.definition.places):
            raise UserError(f"{path}: rows must be stated for {', '.join(kept.definition.places)}")
        names.append(path.stem)
        if path.stem not in TASKS:
            put(path.stem, kept, OwnRows(kept.definition, None))
    return names


# The rows.


def own_rows(own: OwnRows, split: str) -> dict[str, list[Any]]:
    """Read one split of a user-defined task.

    Returns: The text columns and `label`: class indices or scores; None in every row of a test split without labels.
    Raises: UserError: If the file is absent or broken, or a row does not fit the definition (with file and row).
    """
    path = None if own.definition.hub is not None else own_file(own, split)
    state = file_state(path) if path is not None and os.path.isfile(path) else None
    return _rows(own.definition, path, split, state)


def own_file(own: OwnRows, split: str) -> Path:
    """The file of a split."""
    return own.folder / at_home(own.definition.places[split])


@functools.lru_cache(maxsize=KEPT)
def _rows(definition: Definition, path: Path | None, split: str, state: tuple[int, ...] | None) -> dict[str, list[Any]]:
    del state  # part of the cache's key, so that a changed file is read again
    return checked(definition, _hub_table(definition, split) if path is None else read_table(path), split)


def _hub_table(definition: Definition, split: str) -> Table:
    """A split on the hub. Labels that the hub stores as numbers with names become these names."""
    from lora.data.glue import load  # loads the library of data sets

    hub, place, label = definition.hub, definition.places[split], definition.label
    where = f"{place} of {hub.id} (revision {hub.revision})"
    dataset, _ = load(where, "is the hub within reach?", place, hub.id, hub.config, revision=hub.revision)
    columns = {name: dataset[name][:] for name in dataset.column_names if name in (*definition.columns, label)}
    names = getattr(dataset.features.get(label), "names", None)
    if names is not None and set(definition.labels or ()) <= set(names):
        columns[label] = [names[index] if 0 <= index < len(names) else None for index in columns[label]]
    return Table(Path(hub.id) / place, columns)


def checked(definition: Definition, table: Table, split: str) -> dict[str, list[Any]]:
    """Check a split, and return its texts and labels.

    Raises: UserError: If there are no rows, a text is empty, a label is missing, unknown or out of range, or, in train
        and dev, all labels are the same.
    """
    if not len(table):
        raise UserError(f"{table.path}: no rows; the {KEYS[split]} split needs some")
    texts = {name: table.texts(name) for name in definition.columns}
    withheld = split == "test" and not any(cell not in (None, "") for cell in table.columns.get(definition.label, ()))
    if withheld:
        return texts | {"label": [None] * len(table)}
    labels, read = [], label_reader(definition.labels, definition.range)
    for index, cell in enumerate(cells := table.column(definition.label)):
        try:
            labels.append(read(cell))
        except ValueError as error:
            what = "no label" if cell in (None, "") else f"{cell!r}"
            raise UserError(f"{table.row(index)}: {what} in column {definition.label}: {error}") from None
    if split != "test" and len(set(labels)) == 1:
        raise UserError(
            f"{table.path}: all {len(labels)} rows have {cells[0]!r} in column {definition.label}: there is nothing "
            f"to learn and nothing to measure"
        )
    return texts | {"label": labels}


def duplicates(task: Task) -> dict[str, int]:
    """Split -> number of its rows whose texts occur in train too, so that training sees them."""
    own = task.own
    seen = set(texts_of(own, own_rows(own, "train")))
    counts = {split: sum(row in seen for row in texts_of(own, own_rows(own, split))) for split in task.official_rows}
    return {split: count for split, count in counts.items() if split != "train"}


def most_frequent(task: Task, split: str) -> tuple[str, float]:
    """The most frequent label of a split and its share: the accuracy of always predicting it."""
    labels = own_rows(task.own, split)["label"]
    index, count = Counter(labels).most_common(1)[0]
    return task.labels[index], count / len(labels)


def texts_of(own: OwnRows, rows: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
    return list(zip(*(rows[name] for name in own.definition.columns), strict=True))
