"""Read a task's rows, the same from every source: embedded texts, official TSV, the hub's parquet, user's files."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from lora.data.embedded import embedded_rows
from lora.data.tasks import Task
from lora.errors import UserError
from lora.files import at_home
from lora.rng import shuffled


@dataclass(frozen=True)
class TaskData:
    """A task's rows and their origin.

    Args:
        splits: Split -> the task's text columns, `label` (class index or score; None in test splits) and `idx`, the
            row's index in the whole split. The hub has the same `idx`, except for MRPC, where it counts dev rows too.
        rows: Split -> number of rows.
        official_rows: Split -> number of rows of the official split.
        is_part: Whether any split's number of rows differs from the official one.
        skipped: File -> number of skipped torn lines, for files that have any.
        revision: The commit that the hub served; None for other sources.
        fingerprint: SHA-256 of the texts and labels: equal rows have equal fingerprints, from every source.
    """

    source: str
    splits: dict[str, datasets.Dataset]
    rows: dict[str, int]
    official_rows: dict[str, int]
    is_part: bool
    skipped: dict[str, int]
    revision: str | None
    fingerprint: str


def read(
    task: Task,
    source: str,
    path: str | Path | None = None,
    revision: str | None = None,
    train_rows: int | None = None,
    splits: tuple[str, ...] | None = None,
) -> TaskData:
    """Read splits of a task.

    Args:
        source: `embedded`, `tsv`, `parquet`, `hub`; `own` for a user-defined task, whose file locates its rows.
        path: The folder that holds the tasks' folders, for `tsv` and `parquet`.
        revision: Commit, tag or branch, for `hub`.
        train_rows: Size of a fixed subset of the train split, the same for every seed and contained in every larger
            subset, in the split's order. None uses all rows.
        splits: None reads train and validation.
    Raises: UserError: If a file is not available, or a row does not fit the task.
    """
    if task.is_definition_only:
        raise UserError(f"where the rows of {task.name} lie is not known here: name its file, task=path/to/task.yaml")
    if source in ("tsv", "parquet") and not path:
        raise UserError(f"source {source} needs a folder: set GLUE_DIR= (data.path in a single run)")
    read_rows, skipped, commit = {}, {}, None
    for split in task.training_splits if splits is None else splits:
        if source == "embedded":
            rows = embedded_rows(task.name)[split]
        elif source == "own":
            from lora.data.own_task import own_rows

            rows = own_rows(task.own, split)
        else:
            from lora.data import glue

            if source == "tsv":
                rows, left_out = glue.read_tsv(task, split, at_home(path))
                skipped |= left_out
            else:
                folder = at_home(path) if source == "parquet" else None
                rows, commit = glue.read_hub_layout(task, split, folder, revision)
        read_rows[split] = as_dataset(task, rows, subset(task, split, len(rows["label"]), train_rows))
    counts = {split: len(dataset) for split, dataset in read_rows.items()}
    official = {split: task.official_rows[split] for split in counts}
    return TaskData(
        source, read_rows, counts, official, counts != official, skipped, commit, fingerprint(task, read_rows)
    )


def as_dataset(task: Task, columns: dict[str, list], rows: np.ndarray) -> datasets.Dataset:
    """A data set of the chosen rows of a split, with their indices as column `idx`."""
    label = datasets.ClassLabel(names=list(task.labels)) if task.labels else datasets.Value("float32")
    texts = {name: datasets.Value("string") for name in task.columns}
    features = datasets.Features({**texts, "label": label, "idx": datasets.Value("int64")})
    picked = {name: [columns[name][row] for row in rows] for name in (*task.columns, "label")}
    return datasets.Dataset.from_dict({**picked, "idx": rows}, features=features)


def subset(task: Task, split: str, count: int, train_rows: int | None) -> np.ndarray:
    """Indices of the rows to use: all, or the first `train_rows` of the train split's fixed shuffle, in split order."""
    if split != task.train_split or train_rows is None or train_rows >= count:
        return np.arange(count)
    return np.sort(shuffled(count, "train rows", task.name)[:train_rows])


def fingerprint(task: Task, splits: dict[str, datasets.Dataset]) -> str:
    """SHA-256 over every text and label, by split and column. Each text is hashed together with its length in bytes."""
    digest = hashlib.sha256(json.dumps([task.name, task.columns, task.labels]).encode())
    for split in sorted(splits):
        digest.update(json.dumps([split, len(splits[split])]).encode())
        # [:] makes a list at once; iterating over a column decodes it row by row, which is 20 times slower.
        for name in task.columns:
            texts = [text.encode() for text in splits[split][name][:]]
            digest.update(np.array([len(text) for text in texts], "<i8").tobytes())
            digest.update(b"".join(texts))
        absent = -1 if task.labels else np.nan
        labels = [absent if label is None else label for label in splits[split]["label"][:]]
        digest.update(np.array(labels, "<i4" if task.labels else "<f4").tobytes())
    return digest.hexdigest()
