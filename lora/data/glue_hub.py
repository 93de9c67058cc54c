"""Read GLUE in the hub's layout, from the hub itself or from a copy's parquet files."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from lora.data.tasks import Task
from lora.errors import UserError, first_line
from lora.files import listing

HUB_ID = "nyu-mll/glue"


def parquet_files(task: Task, split: str, folder: Path) -> list[str]:
    """All shards of a split, laid out as on the hub: `<task>/<split>-00000-of-00001.parquet`.

    Raises: UserError: If the folder or a shard is missing.
    """
    if not os.path.isdir(folder):  # False where pathlib raises, as for a name that is too long
        raise UserError(f"data folder {folder} does not exist; set GLUE_DIR= to a folder laid out like {HUB_ID}")
    below = folder / task.name
    if not below.is_dir():
        raise UserError(f"data folder {folder} has no sub-folder {task.name} (found: {listing(folder)})")
    pattern = re.compile(re.escape(split) + r"-(\d{5})-of-(\d{5})\.parquet")
    shards = [match for match in map(pattern.fullmatch, sorted(path.name for path in below.iterdir())) if match]
    expected = [f"{number:05}" for number in range(int(shards[0].group(2)))] if shards else []
    if not shards or [shard.group(1) for shard in shards] != expected:
        raise UserError(
            f"{below} must hold every shard of {split}, named {split}-00000-of-00001.parquet if there is one "
            f"(found: {listing(below)})"
        )
    return [str(below / shard.group(0)) for shard in shards]


def read_hub_layout(
    task: Task, split: str, files: list[str], revision: str | None
) -> tuple[dict[str, list], str | None]:
    """Read one split from local parquet files or, if there are none, from the hub.

    Returns: The columns, and the commit that the hub served (None for local files).
    Raises: UserError: If the split cannot be read, or its columns or labels are not the task's.
    """
    if files:
        where, served = f"{split} of {Path(files[0]).parent}", None
        dataset, _ = load(where, "is every file a whole parquet file?", split, "parquet", data_files={split: files})
    else:
        where = f"{split} of {HUB_ID} ({task.name}, revision {revision})"
        advice = "to read a local folder instead, set GLUE_DIR="
        dataset, served = load(where, advice, split, HUB_ID, task.name, revision=revision)
    absent = [name for name in (*task.columns, "label") if name not in dataset.column_names]
    if absent:
        raise UserError(f"{where} has no column {', '.join(absent)}; it has {', '.join(dataset.column_names)}")
    names = getattr(dataset.features["label"], "names", None)
    if names is not None and tuple(names) != task.labels:
        expected = ", ".join(task.labels) or "scores"
        raise UserError(f"the labels of {where} are {', '.join(names)}; expected, in this order: {expected}")
    columns = {name: dataset[name][:] for name in task.columns}
    if any(not isinstance(text, str) for texts in columns.values() for text in texts):
        raise UserError(f"{where}: {' and '.join(task.columns)} must be text in every row")
    if split in task.test_splits:  # the hub has -1 or, for MRPC, the labels, which must not be seen
        columns["label"] = [None] * len(dataset)
    else:
        columns["label"] = check_labels(task, dataset["label"][:], where)
    return columns, served


def load(where: str, advice: str, split: str, *named: Any, **options: Any) -> tuple[datasets.Dataset, str | None]:
    """A split as `load_dataset_builder` names it, and the commit that the hub served, if any.

    Args:
        where: The split and its source, for a message.
        advice: The end of that message.
    Raises: UserError: If it cannot be read.
    """
    try:
        with quiet():
            builder = datasets.load_dataset_builder(*named, **options)
            builder.download_and_prepare()
            dataset = builder.as_dataset(split)
    except Exception as error:  # from a dozen libraries: no network, no such revision or split, not a parquet file
        cause = error.__cause__ or error
        raise UserError(f"cannot read {where}: {type(cause).__name__}: {first_line(cause)}; {advice}") from error
    return dataset, builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None


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
