"""Read the official GLUE files: tab-separated, UTF-8, no quoting. Every line is checked."""

import os
from pathlib import Path

from lora.data.labels import label_reader
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, excerpt, listed
from lora.files import listing

BOM = b"\xef\xbb\xbf"


def read_tsv(task: Task, split: str, folder: Path) -> tuple[dict[str, list], dict[str, int]]:
    """Read one split. Texts stay byte for byte as in the file; "NA" and "null" are text.

    Returns: The text columns and `label` (class indices or scores; None in every row of a test split); and
        file -> number of skipped torn lines, empty if there are none (only QQP has any).
    Raises: UserError: If the folder or file is missing, or a line breaks the layout; the message names file and line. A
        last line without a line end does so unless the split has all official rows.
    """
    layout = task.tsv
    path = find_file(folder, layout.folder, layout.files[split])
    torn_allowed = layout.broken and split not in task.test_splits
    lines, ended = read_lines(path, torn_allowed)
    headed = split in task.test_splits or not layout.bare
    header = lines.pop(0).split("\t") if headed else list(layout.bare)
    labelled = split not in task.test_splits
    wanted = [*layout.texts, layout.label] if labelled else list(layout.texts)
    absent = [name for name in wanted if name not in header]
    if absent:
        raise UserError(f"{path}:1: the header has no column {', '.join(absent)}; it has {', '.join(header)}")
    places = [header.index(name) for name in wanted]

    columns: dict[str, list] = {name: [] for name in (*task.columns, "label")}
    targets = list(columns.values())[: len(places)]
    torn: list[int] = []
    read = label_reader(layout.words or task.labels, task.label_range)
    last = len(lines) + headed if not ended else None
    for number, line in enumerate(lines, start=2 if headed else 1):
        cells = line.split("\t")
        if len(cells) != len(header):
            if number == last:
                raise UserError(cut_short(path, number, line))
            if torn_allowed:
                torn.append(number)
                continue
            rule = f"{len(header)} ({', '.join(header)})"
            raise UserError(f"{path}:{number}: {len(cells)} columns, must be {rule}: {excerpt(line)}")
        values = [cells[place] for place in places]
        if labelled:
            try:
                values[-1] = read(values[-1])
            except ValueError as error:
                if number == last:
                    raise UserError(cut_short(path, number, line)) from None
                raise UserError(f"{path}:{number}: {values[-1]!r} in column {layout.label}: {error}") from None
        for target, value in zip(targets, values, strict=True):
            target.append(value)

    count = len(columns[task.columns[0]])
    if torn and count != task.official_rows[split]:
        raise UserError(
            f"{path}: {len(torn)} lines do not have the header's {len(header)} columns: lines {listed(torn)}. "
            f"They can be left out only if the official {task.official_rows[split]} rows remain, but {count} remain"
        )
    if not count:
        raise UserError(f"{path}: a header but no rows")
    if not ended and count != task.official_rows[split]:
        raise UserError(cut_short(path, last, lines[-1]))
    if not labelled:
        columns["label"] = [None] * count
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


def cut_short(path: Path, number: int, line: str) -> str:
    """The message for a last line without a line end, which is accepted only if the split has all official rows."""
    return f"{path}:{number}: the last line has no line end, so the file was cut short: {excerpt(line)}"


def read_lines(path: Path, torn_allowed: bool = False) -> tuple[list[str], bool]:
    """The lines of a file, and whether the last one has a line end.

    All lines end with LF or, as in some copies, all with CRLF.

    Args:
        torn_allowed: Split lines as Python's text files do, also at a lone CR. QQP's official size comes from loaders
            that read it this way.
    Raises: UserError: If the file is empty, a line is not UTF-8, or the last line ends within a character.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    data = data.removeprefix(BOM)
    if not data:
        raise UserError(f"{path}: empty file")
    if torn_allowed:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    elif data.partition(b"\n")[0].endswith(b"\r"):
        data = data.replace(b"\r\n", b"\n").removesuffix(b"\r")
    ended = data.endswith(b"\n")
    try:
        lines = data.decode("utf-8").split("\n")
        return lines[:-1] if ended else lines, ended
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        if not ended and b"\n" not in data[error.start :]:
            raise UserError(cut_short(path, number, data.rpartition(b"\n")[2].decode(errors="replace"))) from None
        raise UserError(f"{path}:{number}: not UTF-8: byte 0x{data[error.start]:02x} ({error.reason})") from None


def layout_folders() -> str:
    return ", ".join(sorted(task.tsv.folder for task in TASKS.values() if task.tsv))
