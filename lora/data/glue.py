"""Read GLUE: the official files, tab-separated without quoting, or the hub's layout, from the hub or parquet files.

Every line and label is checked.
"""

import os
import re
from pathlib import Path
from typing import Any

import datasets

from lora.data.tables import label_reader
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, excerpt, first_line
from lora.files import listing

BOM = b"\xef\xbb\xbf"
HUB_ID = "nyu-mll/glue"

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
    rows: list[list[Any]] = []
    torn = 0
    read = label_reader(layout.words or task.labels, task.label_range)
    for number, line in enumerate(lines, start=2 if headed else 1):
        cells = line.split("\t")
        if len(cells) != len(header):
            torn += 1
            if torn_allowed:
                continue
            rule = f"{len(header)} ({', '.join(header)})"
            raise UserError(f"{path}:{number}: {len(cells)} columns, must be {rule}: {excerpt(line)}")
        values: list[Any] = [cells[place] for place in places]
        if labelled:
            try:
                values[-1] = read(values[-1])
            except ValueError as error:
                raise UserError(f"{path}:{number}: {values[-1]!r} in column {layout.label}: {error}") from None
        rows.append(values)
    if torn and len(rows) != task.official_rows[split]:
        raise UserError(
            f"{path}: {torn} lines do not have the header's {len(header)} columns. They can be left out only if the "
            f"official {task.official_rows[split]} rows remain, but {len(rows)} remain"
        )
    if not rows:
        raise UserError(f"{path}: a header but no rows")
    columns = dict(zip((*task.columns, "label"), map(list, zip(*rows, strict=True)), strict=False))
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


def read_hub_layout(
    task: Task, split: str, folder: Path | None, revision: str | None
) -> tuple[dict[str, list], str | None]:
    """Read one split from the hub or from a folder of parquet files, `<task>/<split>-00000-of-00001.parquet`.

    Returns: The columns, and the commit that the hub served (None for local files).
    Raises: UserError: If the split cannot be read, or its columns or labels are not the task's.
    """
    if folder is not None:
        where, files = f"{split} of {folder / task.name}", f"{folder / task.name}/{split}-*.parquet"
        named: tuple[str, ...] = ("parquet",)
        options: dict[str, Any] = {"data_files": {split: files}}
        advice = f"GLUE_DIR= sets the folder that holds {task.name}/{split}-00000-of-00001.parquet"
    else:
        where = f"{split} of {HUB_ID} ({task.name}, revision {revision})"
        named, options = (HUB_ID, task.name), {"revision": revision}
        advice = "to read a local folder instead, set GLUE_DIR="
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
    indices = [str(index) for index in range(len(task.labels))]
    read, kind = label_reader(indices, task.label_range), int if task.labels else float
    for row, label in enumerate(columns["label"] if split not in task.test_splits else ()):
        try:
            read(label if type(label) is kind else None)
        except ValueError as error:
            raise UserError(f"{where}: row {row} has label {label!r}: {error}") from None
    return columns, builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
