"""User-defined tasks: each is read from its file and added to TASKS.

A folder of results keeps the definition of each task of its records in `tasks/`. That is all that reports need.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora.checks import SettingsError, build
from lora.data.definition import OWN_NAME, Definition, name_of, read_definition
from lora.data.own_rows import own_rows
from lora.data.tasks import TASKS, OwnRows, Task
from lora.errors import UserError, first_line
from lora.files import read_object, write_atomically

FOLDER = "tasks"  # below a folder of results


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
        if path.stem.endswith(f"-{kept.definition.unscaled_digits}") and digits != kept.definition.unscaled_digits:
            raise UserError(
                f"{path} and the runs of {path.stem} are of an earlier version, which trained on scores as they are, "
                f"not scaled by their range: they cannot be compared with new runs. Move them to another folder"
            )
        if not OWN_NAME.fullmatch(path.stem) or not path.stem.endswith(f"-{digits}"):
            raise UserError(f"{path} holds another definition than its name says: the digits of its hash are {digits}")
        if set(kept.rows) != set(kept.definition.places):
            raise UserError(f"{path}: rows must be stated for {', '.join(kept.definition.places)}")
        names.append(path.stem)
        if path.stem not in TASKS:
            put(path.stem, kept, OwnRows(kept.definition, None))
    return names
