"""Find the task that `task=` names: one of TASKS, a user's file, or a task that a folder of results keeps."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict

from lora.config.options import values_given
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.files import ROOT, at_home

TASK_FILES = ROOT / "conf" / "tasks"  # not conf/task: that folder would make `task` a group of Hydra
ENDINGS = (".yaml", ".yml")
DEFAULT = "default"  # the row of tasks without their own


def task_file(given: str) -> Path | None:
    """The file that `task=` names, by path or by its name in conf/tasks/; None for anything else."""
    if given.endswith(ENDINGS) or "/" in given:
        return at_home(given)
    path = TASK_FILES / f"{given}.yaml"
    return path if given not in TASKS and os.path.isfile(path) else None


def find_task(given: str, results: str | Path) -> Task:
    """The task that `task=` names. The file of a user-defined task is read.

    Args:
        results: Folder of results, whose tasks can be named as in its run ids.
    Raises: UserError: If there is no such task, or its file or one of its rows is invalid.
    """
    path = task_file(given)
    if path is None and given in TASKS:
        return TASKS[given]
    from lora.data.own_task import add_kept_tasks, add_task

    if path is not None:
        return add_task(path)
    add_kept_tasks(results)
    if given not in TASKS:
        own = sorted(path.stem for path in TASK_FILES.glob("*.yaml"))
        near = difflib.get_close_matches(given, [*TASKS, *own], 1, 0.7)
        nearest = f" (the nearest is {near[0]})" if near else ""
        raise UserError(
            f"task must be one of {', '.join([*TASKS, *own])}, or a file of your own such as task=my_task.yaml, "
            f"got {given!r}{nearest}"
        )
    return TASKS[given]


def own_tasks(overrides: Sequence[str]) -> list[Task]:
    """The tasks whose files overrides name.

    Raises: UserError: If a file or one of its rows is invalid, or two files of equal name and content lie in different
        folders, as the folds of a cross-validation may: their runs would have the same names.
    """
    tasks: dict[str, Task] = {}
    for path in map(task_file, map(str, values_given("task", overrides))):
        if path is None:
            continue
        task = find_task(str(path), "")
        other = tasks.setdefault(task.name, task)
        if other.own.folder != task.own.folder:
            raise UserError(
                f"{other.own.folder} and {task.own.folder} both define the task {task.name}: give the two files "
                f"different names, such as {path.stem}_2{path.suffix}"
            )
    return list(tasks.values())


def fill_in_task(config: DictConfig, name: str | None) -> str:
    """Fill in a configuration's task, its row of hyperparameters and its data source.

    Args:
        name: The task; None for that of the configuration.
    Returns: `conf` if there is a row for this task, else `default`.
    Raises: UserError: If there is no such task, its file is invalid, or a user-defined task is needed.
    """
    name = config.task if name is None else name
    if name is None:
        raise UserError(
            f"profile {config.profile.name} needs a task of your own: task=my_task.yaml (TASK=my_task.yaml with make); "
            f'README.md says what the file holds, under "Your own task"'
        )
    task = find_task(str(name), config.runtime.results)
    if task.own is None and config.data.source == "own":
        raise UserError(
            f"task {task.name} is not one of your own; profile {config.profile.name} with data.source=own needs a file "
            f"such as task=my_task.yaml"
        )
    row = "conf" if task.name in config.hparams else DEFAULT
    with open_dict(config):
        config.task = task.name
        if row == DEFAULT and DEFAULT in config.hparams:
            config.hparams[task.name] = config.hparams[DEFAULT]
        if task.own is not None and config.data.source == config.profile.source:  # else it was set, and is checked
            config.data.source, config.data.revision = "own", None
    return row
