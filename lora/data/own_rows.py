"""Read the rows of a user-defined task from its definition's files or from the hub, and check each row."""

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora.data.definition import KEYS, Definition
from lora.data.labels import label_reader
from lora.data.tables import Table, read_table
from lora.data.tasks import OwnRows, Task
from lora.errors import UserError
from lora.files import at_home, file_state

KEPT = 12  # splits whose rows stay in memory, for counting, comparing, hashing and training


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
    from lora.data.glue_hub import load  # loads the library of data sets

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
