"""Read a task's rows, the same from every source: embedded texts, official TSV, the hub's parquet, user's files."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora.data.embedded import embedded_rows
from lora.data.tables import read_labels
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, first_line
from lora.files import at_home, listing
from lora.rng import shuffled

BOM = b"\xef\xbb\xbf"
TRAIN_ROWS = "train_rows"  # as train.selection, and as the name of a split
STRATA = 5  # of scores, in a draw that keeps their spread
HUB_ID = "nyu-mll/glue"
Rows = dict[str, list]  # column -> its values


@dataclass(frozen=True)
class TaskData:
    """A task's rows and their origin.

    Args:
        splits: Split -> column -> its values: the task's texts, `label` (class index or score; None in test splits) and
            `idx`, the row's index in the whole split. The hub has the same `idx`, except for MRPC, where it counts dev
            rows too.
        rows, official_rows: Split -> number of rows, here and in the official split.
        is_part: Whether these differ.
        skipped: File -> number of skipped torn lines, for files that have any.
        fingerprint: SHA-256 of the texts and labels: equal rows have equal fingerprints, from every source.
        dev_fingerprint: That of the validation splits alone, which every part of the train rows shares.
        train_fingerprint: That of a user-defined task's whole train split, of which the rows may be a part.
    """

    source: str
    splits: dict[str, Rows]
    rows: dict[str, int]
    official_rows: dict[str, int]
    is_part: bool
    skipped: dict[str, int]
    fingerprint: str
    dev_fingerprint: str
    train_fingerprint: str | None = None


def read(
    task: Task,
    source: str,
    path: str | Path | None = None,
    revision: str | None = None,
    train_rows: int | None = None,
    splits: tuple[str, ...] | None = None,
    draw: int | None = None,
    left: bool = False,
) -> TaskData:
    """Read splits of a task.

    Args:
        source: `embedded`, `tsv`, `parquet`, `hub`; `own` for a user-defined task, whose file locates its rows.
        path: The folder that holds the tasks' folders, for `tsv` and `parquet`.
        revision: Commit, tag or branch, for `hub`.
        train_rows: Size of a subset of the train split, contained in every larger one, in the split's order. None uses
            all rows.
        splits: None reads train and validation.
        draw: None takes the same subset for every seed. A number draws one of its own (`stratified`).
        left: Take as many train rows from those that are left, the next ones of the same order.
    Raises: UserError: If a file is not available, or a row does not fit the task.
    """
    if task.is_definition_only:
        raise UserError(f"where the rows of {task.name} lie is not known here: name its file, task=path/to/task.yaml")
    if source in ("tsv", "parquet") and not path:
        raise UserError(f"source {source} needs a folder: set GLUE_DIR= (data.path in a single run)")
    read_rows, skipped, whole = {}, {}, None
    for split in task.training_splits if splits is None else splits:
        if source == "embedded":
            rows = embedded_rows(task.name)[split]
        elif source == "own":
            from lora.data.own_task import own_rows

            rows = own_rows(task.own, task.folder, split)
            if split == "train":
                whole = fingerprint(task, {split: choose_rows(task, rows, np.arange(len(rows["label"])))})
        elif source == "tsv":
            rows, left_out = read_tsv(task, split, at_home(path))
            skipped |= left_out
        else:
            folder = at_home(path) if source == "parquet" else None
            rows = read_hub_layout(task, split, folder, revision)
        read_rows[split] = choose_rows(task, rows, subset(task, split, rows["label"], train_rows, draw, left))
    counts = {split: len(rows["idx"]) for split, rows in read_rows.items()}
    official = {split: task.official_rows[split] for split in counts}
    dev = {split: read_rows[split] for split in task.validation_splits if split in read_rows}
    prints = fingerprint(task, read_rows), fingerprint(task, dev), whole
    return TaskData(source, read_rows, counts, official, counts != official, skipped, *prints)


def choose_rows(task: Task, columns: Rows, rows: np.ndarray) -> Rows:
    """The chosen rows of a split, with scores in `Task.score_type` and their indices as column `idx`."""
    chosen = {name: [columns[name][row] for row in rows] for name in (*task.columns, "label")}
    if not task.labels and None not in chosen["label"]:
        chosen["label"] = np.array(chosen["label"], task.score_type).tolist()
    return chosen | {"idx": rows.tolist()}


RunRows = tuple[TaskData, dict[str, TaskData]]  # train and validation, and further splits by name


def read_for_run(task: Task, rows: Mapping[str, Any], selection: str) -> RunRows:
    """The train and validation rows of a run, and by name those of further splits: `test`, of a user-defined task whose
    test rows have labels, and `train_rows`, those that choose the epoch where train.selection says so.

    Args:
        rows: The arguments of `read` (`lora.config.run.RunConfig.rows`).
    """
    more = {}
    if task.own is not None and task.test_splits:
        more["test"] = read(task, rows["source"], splits=task.test_splits)
        if None in more["test"].splits["test"]["label"]:
            del more["test"]
    if selection == TRAIN_ROWS:
        more[TRAIN_ROWS] = read(task, **rows, splits=("train",), left=True)
    return read(task, **rows), more


def subset(
    task: Task, split: str, labels: Sequence, train_rows: int | None, draw: int | None, left: bool = False
) -> np.ndarray:
    """Indices of the rows to use, in split order: all, or the first `train_rows` of an order of the train split (or the
    next ones), which is one fixed shuffle or, with `draw`, `stratified`."""
    count = len(labels)
    if split != "train" or train_rows is None or train_rows >= count:
        return np.arange(count)
    order = shuffled(count, "train rows", task.name) if draw is None else stratified(task, np.asarray(labels), draw)
    return np.sort(order[train_rows : 2 * train_rows] if left else order[:train_rows])


def stratified(task: Task, labels: np.ndarray, draw: int) -> np.ndarray:
    """An order of rows that depends on task and draw alone: first one row of each class, and then, up to every place,
    the classes in nearly the shares of the whole split. Scores are divided into fifths of their order, as classes."""
    order = shuffled(len(labels), "train draw", task.name, draw)
    if not task.labels:
        places = np.empty(len(labels), int)
        places[np.argsort(labels, kind="stable")] = np.arange(len(labels))
        labels = places * STRATA // len(labels)
    keys = np.empty(len(labels))
    for value in np.unique(labels):
        of_class = order[labels[order] == value]
        keys[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
        keys[of_class[0]] = 0.0
    return order[np.argsort(keys[order], kind="stable")]


def fingerprint(task: Task, splits: Mapping[str, Rows]) -> str:
    """SHA-256 over every text and label, by split and column. Each text is hashed together with its length in bytes."""
    digest = hashlib.sha256(json.dumps([task.name, task.columns, task.labels]).encode())
    low, high = task.label_range or (0.0, 1.0)
    too_fine = max(-low, high) * np.finfo("f4").eps > (high - low) / 1000  # scores that differ may be equal in float32
    for split in sorted(splits):
        digest.update(json.dumps([split, len(splits[split]["label"])]).encode())
        for name in task.columns:
            texts = [text.encode() for text in splits[split][name]]
            digest.update(np.array([len(text) for text in texts], "<i8").tobytes())
            digest.update(b"".join(texts))
        absent = -1 if task.labels else np.nan
        labels = [absent if label is None else label for label in splits[split]["label"]]
        digest.update(np.array(labels, "<i4" if task.labels else "<f8" if too_fine else "<f4").tobytes())
    return digest.hexdigest()


# The official files.


def read_tsv(task: Task, split: str, folder: Path) -> tuple[dict[str, list], dict[str, int]]:
    """Read one split. Texts stay byte for byte as in the file; "NA" and "null" are text.

    Returns: The text columns and `label` (class indices or scores; None in every row of a test split); and
        file -> number of skipped torn lines, empty if there are none (only QQP has any).
    Raises: UserError: If the file is missing, or a line breaks the layout; the message names file and line.
    """
    layout, labelled = task.tsv, split not in task.test_splits
    path = folder / task.title / layout.files[split]
    if not os.path.isfile(path):  # False where pathlib raises, as for a name that is too long
        folders = ", ".join(sorted(task.title for task in TASKS.values() if task.tsv))
        raise UserError(
            f"{path} does not exist (found in its folder: {listing(path.parent)}); GLUE_DIR= sets the folder that "
            f"holds {folders}"
        )
    torn_allowed, headed = layout.broken and labelled, not (layout.bare and labelled)
    lines = read_lines(path, torn_allowed)
    header = lines.pop(0).split("\t") if headed else list(layout.bare)
    wanted = [*layout.texts, layout.label] if labelled else list(layout.texts)
    absent = [name for name in wanted if name not in header]
    if absent:
        raise UserError(f"{path}:1: the header has no column {', '.join(absent)}; it has {', '.join(header)}")
    places = [header.index(name) for name in wanted]
    rows: dict[int, list[str]] = {}  # by line number
    for number, line in enumerate(lines, start=2 if headed else 1):
        cells = line.split("\t")
        if len(cells) == len(header):
            rows[number] = [cells[place] for place in places]
        elif not torn_allowed:
            rule = f"{len(header)} ({', '.join(header)})"
            raise UserError(f"{path}:{number}: {len(cells)} columns, must be {rule}: {line[:60]!r}")
    torn, numbers = len(lines) - len(rows), list(rows)
    if torn and len(rows) != task.official_rows[split]:
        raise UserError(
            f"{path}: {torn} lines do not have the header's {len(header)} columns. They can be left out only if the "
            f"official {task.official_rows[split]} rows remain, but {len(rows)} remain"
        )
    if not rows:
        raise UserError(f"{path}: a header but no rows")
    columns: dict[str, list] = dict(
        zip((*task.columns, "label"), map(list, zip(*rows.values(), strict=True)), strict=False)
    )
    if labelled:
        words = layout.words or task.labels
        columns["label"] = read_labels(
            layout.label, columns["label"], words, task.label_range, lambda i: f"{path}:{numbers[i]}"
        )
    columns.setdefault("label", [None] * len(rows))
    return columns, {f"{task.title}/{path.name}": torn} if torn else {}


def read_lines(path: Path, torn_allowed: bool = False) -> list[str]:
    """The lines of a file. All end with LF or, as in some copies, all with CRLF.

    Args:
        torn_allowed: Split lines as Python's text files do, also at a lone CR. QQP's official size comes from loaders
            that read it this way.
    Raises: UserError: If the file is empty, or a line is not UTF-8.
    """
    try:
        data = path.read_bytes().removeprefix(BOM)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise UserError(f"{path}: empty file")
    if torn_allowed:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    elif data.partition(b"\n")[0].endswith(b"\r"):
        data = data.replace(b"\r\n", b"\n").removesuffix(b"\r")
    try:
        return data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number}: not UTF-8: byte 0x{data[error.start]:02x} ({error.reason})") from None


# The hub's layout.


def read_hub_layout(task: Task, split: str, folder: Path | None, revision: str | None) -> Rows:
    """Read one split from the hub or from a folder of parquet files, `<task>/<split>-00000-of-00001.parquet`.

    Raises: UserError: If the split cannot be read, or its columns or labels are not the task's.
    """
    if folder is not None:
        where = f"{split} of {folder / task.name}"
        files = f"{folder / task.name}/{split}-*.parquet"
        named: tuple[str, ...] = ("parquet",)
        options: dict[str, Any] = {"data_files": {split: files}}
        advice = f"GLUE_DIR= sets the folder that holds {task.name}/{split}-00000-of-00001.parquet"
    else:
        where = f"{split} of {HUB_ID} ({task.name}, revision {revision})"
        named, options = (HUB_ID, task.name), {"revision": revision}
        advice = "to read a local folder instead, set GLUE_DIR="
    import datasets  # a second, which other sources do without

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(*named, **options)
        builder.download_and_prepare()
        dataset = builder.as_dataset(split)
    except Exception as error:  # from a dozen libraries: no network, no such revision or split, not a parquet file
        cause = error.__cause__ or error
        raise UserError(f"cannot read {where}: {type(cause).__name__}: {first_line(cause)}; {advice}") from error
    absent = [name for name in (*task.columns, "label") if name not in dataset.column_names]
    if absent:
        raise UserError(f"{where} has no column {', '.join(absent)}; it has {', '.join(dataset.column_names)}")
    names = getattr(dataset.features["label"], "names", None)
    if names is not None and tuple(names) != task.labels:
        expected = ", ".join(task.labels) or "scores"
        raise UserError(f"the labels of {where} are {', '.join(names)}; expected, in this order: {expected}")
    columns = {name: dataset[name][:] for name in (*task.columns, "label")}
    if any(not isinstance(text, str) for name in task.columns for text in columns[name]):
        raise UserError(f"{where}: {' and '.join(task.columns)} must be text in every row")
    if split in task.test_splits:  # the hub has -1 or, for MRPC, the labels, which must not be seen
        columns["label"] = [None] * len(dataset)
    else:
        indices = [str(index) for index in range(len(task.labels))]
        columns["label"] = read_labels(
            "label", columns["label"], indices, task.label_range, lambda i: f"{where}: row {i}"
        )
    return columns
