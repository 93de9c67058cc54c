"""Read a task's rows, the same from every source: embedded texts, official TSV, the hub's parquet, user's files."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from lora.data.embedded_tasks import embedded_rows
from lora.data.glue_tsv import contents, find_file, read_tsv
from lora.data.own_rows import own_file, own_rows
from lora.data.tasks import MIN_TRAIN_ROWS, SOURCES_OF, Task, fitting_sources
from lora.errors import UserError, first_line
from lora.files import file_state
from lora.rng import shuffled

HUB_ID = "nyu-mll/glue"
SOURCES = ("embedded", "tsv", "parquet", "hub", "own")


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
    """Read splits of a task. Repeating the latest request returns the same object as long as no file has changed.

    Args:
        source: `embedded`, `tsv`, `parquet`, `hub`; `own` for a user-defined task, whose file locates its rows.
        path: The folder that holds the tasks' folders, for `tsv` and `parquet`.
        revision: Commit, tag or branch, for `hub`.
        train_rows: Size of a fixed subset of the train split, the same for every seed and contained in every larger
            subset, in the split's order. None uses all rows.
        splits: None reads train and validation.
    Raises: UserError: If a source, split or file is not available, or a row does not fit the task.
    """
    wanted = task.training_splits if splits is None else tuple(splits)
    folder = check_request(task, source, path, revision, train_rows, wanted)
    files = {split: files_of(task, source, split, folder) for split in wanted}
    states = [(file, file_state(file)) for split in wanted for file in files[split]]
    request = (task, source, revision, train_rows, wanted, states)
    if _latest and _latest[0][0] == request:
        return _latest[0][1]
    _latest.clear()  # frees memory before other rows are read
    rows, skipped, commit = {}, {}, None
    for split in wanted:
        if source == "embedded":
            rows[split] = embedded_rows(task.name, split)
        elif source == "own":
            rows[split] = own_rows(task.own, split)
        elif source == "tsv":
            rows[split], left_out = read_tsv(task, split, folder)
            skipped |= left_out
        else:
            rows[split], commit = read_hub_layout(task, split, files[split], revision)
    read_rows = {}
    for split, columns in rows.items():
        read_rows[split] = as_dataset(task, columns, subset(task, split, len(columns["label"]), train_rows))
    counts = {split: len(dataset) for split, dataset in read_rows.items()}
    official = {split: task.official_rows[split] for split in counts}
    data = TaskData(
        source, read_rows, counts, official, counts != official, skipped, commit, fingerprint(task, read_rows)
    )
    _latest.append((request, data))
    return data


# The latest request and its result: a run checks its rows before torch is loaded, then trains on the same rows.
_latest: list[tuple[tuple, TaskData]] = []


def files_of(task: Task, source: str, split: str, folder: Path | None) -> list[str]:
    """The local files that hold a split; none for embedded tasks and the hub. Raises: UserError: If one is absent."""
    if source == "own":
        return [] if task.own.definition.hub is not None else [str(own_file(task.own, split))]
    if source == "tsv":
        return [str(find_file(folder, task.tsv.folder, task.tsv.files[split]))]
    return parquet_files(task, split, folder) if source == "parquet" else []


def check_request(
    task: Task,
    source: str,
    path: str | Path | None,
    revision: str | None,
    train_rows: int | None,
    splits: tuple[str, ...],
) -> Path | None:
    """The folder to read; None for sources without one. Raises: UserError: If an argument does not fit the others."""
    if source not in SOURCES:
        raise UserError(f"unknown data source {source!r}; the sources are {', '.join(SOURCES)}")
    if source not in SOURCES_OF[task.family]:
        raise UserError(f"task {task.name} does not come from source {source}; use {fitting_sources(task)}")
    if task.is_definition_only:
        raise UserError(f"where the rows of {task.name} lie is not known here: name its file, task=path/to/task.yaml")
    unknown = [split for split in splits if split not in task.official_rows]
    if unknown or not splits:
        raise UserError(f"task {task.name} has no split {', '.join(unknown)!r}; it has {', '.join(task.official_rows)}")
    if train_rows is not None and train_rows < MIN_TRAIN_ROWS:
        raise UserError(f"train_rows must be null or >= {MIN_TRAIN_ROWS}, got {train_rows}")
    if source == "hub" and not revision:
        raise UserError(
            f"source hub needs a revision (commit, tag or branch) of {HUB_ID}, so that the rows stay the same"
        )
    if source in ("tsv", "parquet"):
        if not path:
            raise UserError(f"source {source} needs a folder: set GLUE_DIR= (data.path in a single run)")
        return Path(path).expanduser()
    return None


def parquet_files(task: Task, split: str, folder: Path) -> list[str]:
    """All shards of a split, laid out as on the hub: `<task>/<split>-00000-of-00001.parquet`.

    Raises: UserError: If the folder or a shard is missing.
    """
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist; set GLUE_DIR= to a folder laid out like {HUB_ID}")
    below = folder / task.name
    if not below.is_dir():
        raise UserError(f"data folder {folder} has no sub-folder {task.name} (found: {contents(folder)})")
    pattern = re.compile(re.escape(split) + r"-(\d{5})-of-(\d{5})\.parquet")
    shards = [match for match in map(pattern.fullmatch, sorted(path.name for path in below.iterdir())) if match]
    expected = [f"{number:05}" for number in range(int(shards[0].group(2)))] if shards else []
    if not shards or [shard.group(1) for shard in shards] != expected:
        raise UserError(
            f"{below} must hold every shard of {split}, named {split}-00000-of-00001.parquet if there is one "
            f"(found: {contents(below)})"
        )
    return [str(below / shard.group(0)) for shard in shards]


def read_hub_layout(
    task: Task, split: str, files: list[str], revision: str | None
) -> tuple[dict[str, list], str | None]:
    """Read one split from local parquet files or, if there are none, from the hub.

    Returns: The columns, and the commit that the hub served (None for local files).
    Raises: UserError: If the split cannot be read, or its columns or labels are not the task's.
    """
    where = str(Path(files[0]).parent) if files else f"{HUB_ID} ({task.name}, revision {revision})"
    try:
        with quiet():
            if files:
                builder = datasets.load_dataset_builder("parquet", data_files={split: files})
            else:
                builder = datasets.load_dataset_builder(HUB_ID, task.name, revision=revision)
            builder.download_and_prepare()
            dataset = builder.as_dataset(split)
    except Exception as error:  # from a dozen libraries: no network, no such revision, not a parquet file
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        mend = "is every file a whole parquet file?" if files else "to read a local folder instead, set GLUE_DIR="
        raise UserError(f"cannot read {split} of {where}: {reason}; {mend}") from error
    absent = [name for name in (*task.columns, "label") if name not in dataset.column_names]
    if absent:
        found = ", ".join(dataset.column_names)
        raise UserError(f"{split} of {where} has no column {', '.join(absent)}; it has {found}")
    names = getattr(dataset.features["label"], "names", None)
    if names is not None and tuple(names) != task.labels:
        expected = ", ".join(task.labels) or "scores"
        raise UserError(f"the labels of {where} are {', '.join(names)}; expected, in this order: {expected}")
    columns = {name: dataset[name][:] for name in task.columns}
    if any(not isinstance(text, str) for texts in columns.values() for text in texts):
        raise UserError(f"{split} of {where}: {' and '.join(task.columns)} must be text in every row")
    if split in task.test_splits:  # the hub has -1 or, for MRPC, the labels, which must not be seen
        columns["label"] = [None] * len(dataset)
    else:
        columns["label"] = check_labels(task, dataset["label"][:], f"{split} of {where}")
    served = builder.hash if not files and re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    return columns, served


def check_labels(task: Task, labels: list, where: str) -> list:
    """Check and return labels. Raises: UserError: If one is not a class index, or not a score within the range."""
    if task.labels:
        count, rule = len(task.labels), f"0 to {len(task.labels) - 1} ({', '.join(task.labels)})"
        broken = (row for row, label in enumerate(labels) if not (isinstance(label, int) and 0 <= label < count))
    else:
        low, high = task.label_range
        rule = f"a number from {low:g} to {high:g}"
        broken = (row for row, label in enumerate(labels) if not (isinstance(label, float) and low <= label <= high))
    row = next(broken, None)
    if row is not None:
        raise UserError(f"{where}: row {row} has label {labels[row]!r}, which must be {rule}")
    return labels


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of `datasets` within the block."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
