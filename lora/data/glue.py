"""Read GLUE: the official files, tab-separated without quoting, or the hub's layout, from the hub or parquet files.

Every line and label is checked.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from lora.data.tables import label_reader
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, excerpt, first_line, listed
from lora.files import listing

BOM = b"\xef\xbb\xbf"
HUB_ID = "nyu-mll/glue"

# The official files.


def read_tsv(task: Task, split: str, folder: Path) -> tuple[dict[str, list], dict[str, int]]:
    """Read one split. Texts stay byte for byte as in the file; "NA" and "null" are text.

    Returns: The text columns and `label` (class indices or scores; None in every row of a test split); and
        file -> number of skipped torn lines, empty if there are none (only QQP has any).
    Raises: UserError: If the folder or file is missing, or a line breaks the layout; the message names file and line.
    """
    layout, labelled = task.tsv, split not in task.test_splits
    path = find_file(folder, layout.folder, layout.files[split])
    torn_allowed = layout.broken and labelled
    lines = read_lines(path, torn_allowed)
    headed = not (layout.bare and labelled)
    header = lines.pop(0).split("\t") if headed else list(layout.bare)
    wanted = [*layout.texts, layout.label] if labelled else list(layout.texts)
    absent = [name for name in wanted if name not in header]
    if absent:
        raise UserError(f"{path}:1: the header has no column {', '.join(absent)}; it has {', '.join(header)}")
    places = [header.index(name) for name in wanted]
    rows: list[list[Any]] = []
    torn: list[int] = []
    read = label_reader(layout.words or task.labels, task.label_range)
    for number, line in enumerate(lines, start=2 if headed else 1):
        cells = line.split("\t")
        if len(cells) != len(header):
            if torn_allowed:
                torn.append(number)
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
            f"{path}: {len(torn)} lines do not have the header's {len(header)} columns: lines {listed(torn)}. "
            f"They can be left out only if the official {task.official_rows[split]} rows remain, but {len(rows)} remain"
        )
    if not rows:
        raise UserError(f"{path}: a header but no rows")
    columns = dict(zip((*task.columns, "label"), map(list, zip(*rows, strict=True)), strict=False))
    if not labelled:
        columns["label"] = [None] * len(rows)
    return columns, {f"{layout.folder}/{path.name}": len(torn)} if torn else {}


def find_file(folder: Path, below: str, name: str) -> Path:
    """The path of one file. Raises: UserError: If it is missing; the message lists what was found on the way."""
    if not os.path.isdir(folder):  # False where pathlib raises, as for a name that is too long
        raise UserError(
            f"data folder {folder} does not exist; set GLUE_DIR= to the folder that holds {layout_folders()}"
        )
    if not (folder / below).is_dir():
        raise UserError(
            f"data folder {folder} has no sub-folder {below} (found: {listing(folder)}); "
            f"the official layout has {layout_folders()}"
        )
    path = folder / below / name
    if not path.is_file():
        raise UserError(f"{path} does not exist (found in {below}: {listing(path.parent)})")
    return path


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


def layout_folders() -> str:
    return ", ".join(sorted(task.tsv.folder for task in TASKS.values() if task.tsv))


# The hub's layout.


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
    indices = [str(index) for index in range(len(task.labels))]
    read, kind = label_reader(indices, task.label_range), int if task.labels else float
    for row, label in enumerate(labels):
        try:
            read(label if type(label) is kind else None)
        except ValueError as error:
            raise UserError(f"{where}: row {row} has label {label!r}: {error}") from None
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
