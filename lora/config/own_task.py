"""Find the task that `task=` names: one of TASKS, a user's file, or a task that a folder of results keeps."""

import difflib
import os
from pathlib import Path

from omegaconf import DictConfig, open_dict

from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.files import ROOT, at_home

TASK_FILES = ROOT / "conf" / "tasks"  # not conf/task: that folder would make `task` a group of Hydra
DEFAULT = "default"  # the row of tasks without their own


def task_file(given: str) -> Path | None:
    """The file that `task=` names, by path or by its name in conf/tasks/; None for anything else."""
    if given.endswith((".yaml", ".yml")) or "/" in given:
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
        known = [*TASKS, *sorted(path.stem for path in TASK_FILES.glob("*.yaml"))]
        near = difflib.get_close_matches(given, known, 1, 0.7)
        raise UserError(
            f"task must be one of {', '.join(known)}, or a file of your own such as task=my_task.yaml, got {given!r}"
            f"{f' (the nearest is {near[0]})' if near else ''}"
        )
    return TASKS[given]


def fill_in_task(config: DictConfig, name: str | None) -> str:
    """Fill in a configuration's task, its row of hyperparameters and its data source.

    Args:
        name: The task; None for that of the configuration.
    Returns: `conf` if there is a row for this task, else `default`.
    Raises: UserError: If there is no such task, its file is invalid, or a user-defined task is needed.
    """
    name, profile = config.task if name is None else name, config.profile
    if name is None:
        raise UserError(
            f"profile {profile.name} needs a task of your own: task=my_task.yaml (TASK=my_task.yaml with make); "
            f'README.md says what the file holds, under "Your own task"'
        )
    task = find_task(str(name), config.runtime.results)
    if task.own is None and config.data.source == "own":
        raise UserError(
            f"task {task.name} is not one of your own; data.source=own needs a file such as task=my_task.yaml"
        )
    row = "conf" if task.name in config.hparams else DEFAULT
    with open_dict(config):
        config.task = task.name
        if row == DEFAULT and DEFAULT in config.hparams:
            config.hparams[task.name] = config.hparams[DEFAULT]
        if task.own is not None and config.data.source == profile.source:  # else it was set, and is checked
            config.data.source, config.data.revision = "own", None
    return row
