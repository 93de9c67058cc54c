"""Read the rows of a user-defined task from its definition's files or from the hub, and check each row."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora.data.definition import KEYS, Definition, HubRows
from lora.data.labels import label_reader
from lora.data.table_files import Columns, read_columns
from lora.data.tasks import OwnRows, Task
from lora.errors import UserError, first_line
from lora.files import file_state

KEPT = 12  # splits whose rows stay in memory, for counting, comparing, hashing and training


def own_rows(own: OwnRows, split: str) -> dict[str, list[Any]]:
    """Read one split of a user-defined task.

    Returns: The text columns and `label`: class indices or scores; None in every row of a test split without labels.
    Raises: UserError: If the file is absent or broken, or a row does not fit the definition (with file and line).
    """
    if own.definition.hub is not None:
        return _hub_rows(own.definition, split)
    path = own_file(own, split)
    return _file_rows(own.definition, path, split, file_state(path) if path.is_file() else None)


def own_file(own: OwnRows, split: str) -> Path:
    """The file of a split."""
    return own.folder / Path(own.definition.places[split]).expanduser()


@functools.lru_cache(maxsize=KEPT)
def _file_rows(definition: Definition, path: Path, split: str, state: tuple[int, ...] | None) -> dict[str, list[Any]]:
    del state  # part of the cache's key, so that a changed file is read again
    label = [definition.label]
    required, optional = ([], label) if split == "test" else (label, [])
    found = read_columns(path, [*definition.columns, *required], optional)
    return checked(definition, found, split)


@functools.lru_cache(maxsize=KEPT)
def _hub_rows(definition: Definition, split: str) -> dict[str, list[Any]]:
    hub, place = definition.hub, definition.places[split]
    dataset = load_hub(hub, place)
    where = Path(hub.id) / place
    label = definition.label
    wanted = [*definition.columns, *([label] if label in dataset.column_names or split != "test" else [])]
    absent = [name for name in wanted if name not in dataset.column_names]
    if absent:
        raise UserError(f"{where}: no column {', '.join(absent)}; the columns are {', '.join(dataset.column_names)}")
    values = {name: dataset[name][:] for name in wanted}
    names = getattr(dataset.features[label], "names", None) if label in values else None
    if names is not None and set(definition.labels or ()) <= set(names):
        values[label] = [names[index] if 0 <= index < len(names) else None for index in values[label]]
        if split == "test" and not any(values[label]):
            del values[label]  # -1 in every row: the hub withholds the labels
    return checked(definition, Columns(where, values, range(1, len(dataset) + 1), "row"), split)


def load_hub(hub: HubRows, split: str) -> Any:
    """Load a split of a data set on the hub. Raises: UserError: If it cannot be loaded."""
    from datasets import load_dataset

    from lora.data.read import quiet

    try:
        with quiet():
            return load_dataset(hub.id, hub.config, revision=hub.revision, split=split)
    except Exception as error:  # from a dozen libraries: no network, no such revision or split
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise UserError(f"cannot read {split} of {hub.id} (revision {hub.revision}) from the hub: {reason}") from error


def checked(definition: Definition, found: Columns, split: str) -> dict[str, list[Any]]:
    """Check a split, and return its texts and labels.

    Raises: UserError: If there are no rows, a text is empty, a label is missing, unknown or out of range, or, in train
        and dev, all labels are the same.
    """
    if not len(found):
        raise UserError(f"{found.path}: no rows; the {KEYS[split]} split needs some")
    texts = {name: found.values[name] for name in definition.columns}
    for name, column in texts.items():
        for row, text in enumerate(column):
            if not isinstance(text, str) or not text.strip():
                what = "an empty text" if text is None or isinstance(text, str) else f"{text!r}, which is not text,"
                raise UserError(f"{found.where(row)}: {what} in column {name}")
    if definition.label not in found.values:  # a test split without labels
        return texts | {"label": [None] * len(found)}
    cells, read = found.values[definition.label], label_reader(definition.labels, definition.range)
    if split == "test" and all(cell is None or cell == "" for cell in cells):
        return texts | {"label": [None] * len(found)}
    labels = []
    for row, cell in enumerate(cells):
        try:
            labels.append(read(cell))
        except ValueError as error:
            what = "no label" if cell is None or cell == "" else f"{cell!r}"
            raise UserError(f"{found.where(row)}: {what} in column {definition.label}: {error}") from None
    if split != "test" and len(set(labels)) == 1:
        raise UserError(
            f"{found.path}: all {len(labels)} rows have {cells[0]!r} in column {definition.label}: there is nothing "
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
