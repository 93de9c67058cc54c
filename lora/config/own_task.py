"""From `task=` to a task: one of TASKS, a file of one's own, or a task that a folder of results keeps."""

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict

from lora.config.hparams_row import row_of
from lora.config.options import values_given
from lora.data.own_task import add_kept_tasks, add_task
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.files import ROOT

TASK_FILES = ROOT / "conf" / "tasks"  # not conf/task: a folder of that name would make `task` a group of Hydra's
ENDINGS = (".yaml", ".yml")


def task_file(given: str) -> Path | None:
    """The file that `task=` names: by its path, or as a file of conf/tasks/. None for anything else."""
    if given.endswith(ENDINGS) or "/" in given:
        return Path(given).expanduser()
    path = TASK_FILES / f"{given}.yaml"
    return path if given not in TASKS and path.is_file() else None


def find_task(given: str, results: str | Path) -> Task:
    """The task that `task=` names; a task of one's own is read now.

    Args:
        results: The folder of results whose tasks can be named as in its run ids.
    Raises: UserError: If there is none, or its file or a row of it is invalid.
    """
    path = task_file(given)
    if path is not None:
        return add_task(path)
    if given not in TASKS:
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
    """The tasks whose files overrides name: runs are called after what these say.

    Raises: UserError: As `find_task`.
    """
    files = [task_file(value) for value in values_given("task", overrides) if isinstance(value, str)]
    return [add_task(path) for path in files if path is not None]


def with_task(config: DictConfig) -> DictConfig:
    """The configuration with the name of its task, the row of its hyperparameters, and the source of its rows.

    Raises: UserError: If there is no such task, or a file of one's own is invalid.
    """
    if config.task is None:
        raise UserError(
            f"profile {config.profile.name} needs a task of your own: task=my_task.yaml (TASK=my_task.yaml with make); "
            f'README.md says what the file holds, under "Your own task"'
        )
    if not isinstance(config.task, str):
        return config
    task = find_task(config.task, config.runtime.results)
    if task.own is None and config.data.source == "own":
        raise UserError(
            f"task {task.name} is not one of your own; profile {config.profile.name} with data.source=own needs a file "
            f"such as task=my_task.yaml"
        )
    row, _ = row_of(config, task.name)
    if task.own is None and row is config.hparams.get(task.name):
        return config
    config = copy.deepcopy(config)
    with open_dict(config):
        config.task = task.name
        if row is not None:
            config.hparams[task.name] = row
        if task.own is not None and config.data.source == config.profile.source:  # else it was set: it is checked
            config.data.source, config.data.revision = "own", None
    return config
