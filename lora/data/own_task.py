"""User-defined tasks: each is defined in a YAML file, and read with its rows.

A definition states columns, label, metric, and the files of the splits, which may lie anywhere on the disk. The plan of
a folder of results keeps the definitions of its tasks. Reports need the definition alone.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from lora.checks import Problems, SettingsError, build
from lora.data.own_metric import OwnMetric
from lora.data.tables import read_labels, read_table
from lora.data.tasks import KEYS, TASKS, Task
from lora.errors import UserError, first_line
from lora.files import ROOT, at_home, read_object

OF_CLASSES = ("accuracy", "f1", "macro_f1", "matthews")
OF_SCORES = ("pearson", "spearman")
SMALLEST, LARGEST = float(np.finfo("f4").tiny), float(np.finfo("f4").max)  # of float32
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
FOLDER = "tasks"  # below a folder of results
TASK_FILES = ROOT / "conf" / "tasks"  # not conf/task: that folder would make `task` a group of Hydra


@dataclass(frozen=True)
class Definition:
    """The content of a task's file.

    Args:
        columns: One or two text columns.
        label: The column of labels or scores.
        metric: The metric in tables, which also selects the best epoch. f1 is that of the second label.
        train, dev, test: Files relative to the folder of the definition.
        labels: Label words, in the order of the class indices; None for regression.
        range: Lowest and highest score of a regression; None for classification.
    """

    columns: tuple[str, ...]
    label: str
    metric: Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"] | OwnMetric
    train: str
    dev: str
    labels: tuple[str, ...] | None = None
    range: tuple[float, ...] | None = None
    test: str | None = None

    def __post_init__(self):
        problems = Problems()
        problems += check_words(self.columns, self.labels or ())
        apart = self.label and self.label not in self.columns
        problems.check(apart, "label", "the name of a column that is no text column", self.label)
        labels, metric = self.labels, self.metric
        if own := isinstance(metric, OwnMetric):
            problems.check(metric.trust, "metric.trust", "true, because runs execute the module's code", metric.trust)
            is_commit = metric.revision is None or bool(re.fullmatch("[0-9a-f]{40}", metric.revision))
            problems.check(is_commit, "metric.revision", "a commit of 40 hexadecimal digits", metric.revision)
            problems.check(not UNPRINTABLE.search(metric.name), "metric", "printable", metric.name)
        if (labels is None) == (self.range is None):
            both = "neither" if labels is None else "both"
            problems.append(f"labels (of a classification) or range (of a regression) must be stated, got {both}")
        elif labels is None:
            width = self.range[1] - self.range[0] if len(self.range) == 2 else math.nan
            holds = width >= SMALLEST and max(width, *map(abs, self.range)) <= LARGEST
            problems.check(holds, "range", "[lowest, highest], numbers that float32 can hold", self.range)
            problems.check(own or metric in OF_SCORES, "metric", f"{' or '.join(OF_SCORES)} with a range", metric)
        else:
            problems.check(len(labels) >= 2, "labels", "two or more words", labels)
            problems.check(own or metric in OF_CLASSES, "metric", f"one of {', '.join(OF_CLASSES)} with labels", metric)
            of_two = len(labels) == 2 or metric not in ("f1", "matthews")
            problems.check(of_two, "metric", "accuracy or macro_f1 for more than two labels", metric)
        files = list(self.files.values())
        named = all(file and "\0" not in file for file in files) and len(set(files)) == len(files)
        problems.check(named, "train, dev, test", "different files", files)
        problems.done()

    @property
    def files(self) -> dict[str, str]:
        """Split, as in `Task` -> file."""
        files = {split: getattr(self, key) for split, key in KEYS.items()}
        return {split: file for split, file in files.items() if file is not None}

    @property
    def digits(self) -> str:
        """The first digits of the hash over everything that the definition states."""
        stated = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if self.range is not None:
            stated |= {"targets": "scaled"}  # earlier versions trained on the scores as they are
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:6]


def check_words(columns: tuple[str, ...], labels: tuple[str, ...]) -> list[str]:
    """The problems of a task's text columns and label words, one line each."""
    problems = Problems()
    problems.check(len(columns) in (1, 2), "columns", "a list of one or two text columns", columns)
    problems.check(all(columns) and len(set(columns)) == len(columns), "columns", "distinct names", columns)
    problems.check(not {"label", "idx"} & set(columns), "columns", "called other than label or idx", columns)
    problems.check(len(set(labels)) == len(labels), "labels", "distinct", labels)
    plain = all(word.strip() and not UNPRINTABLE.search(word) for word in (*columns, *labels))
    problems.check(plain, "columns and labels", "words without tabs, line ends or control characters", columns + labels)
    return list(problems)


def read_definition(path: Path) -> Definition:
    """Read a task's file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # all words: `no` is a label, not false
    except OSError as error:
        raise UserError(f"cannot read the task's file {path}: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError, TypeError, UnicodeDecodeError) as error:  # TypeError: a key that is a list
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark is not None else f"{path}"
        raise UserError(f"{line}: not YAML: {getattr(error, 'problem', None) or first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not define a task: it must state columns, label, metric, train and dev")
    content = {key: value for key, value in content.items() if value not in ("", "null", "~")}
    with suppress(KeyError, TypeError, ValueError):
        content["range"] = [float(end) for end in content["range"]]
    try:
        if isinstance(stated := content.get("metric"), dict):
            truth = {key: word == "true" for key, word in stated.items() if word in ("true", "false")}
            metric = build(OwnMetric, stated | truth, "metric.")
            files = metric.sources(path.resolve().parent)[0] if metric.revision is None else None
            content["metric"] = replace(metric, files=files)
        return build(Definition, content)
    except SettingsError as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        raise UserError(f"{path} does not define a task:\n{lines}") from error


# Tasks.


@dataclass(frozen=True)
class Kept:
    """What a plan keeps of a task: its definition, and `Task.official_rows`, `label_std` and `folder`."""

    definition: Definition
    rows: dict[str, int]
    label_std: float | None = None
    folder: str | None = None


def read_task(path: Path) -> Task:
    """Read a task's file and its rows. Raises: UserError: If the file or a row is invalid."""
    definition, folder = read_definition(path), path.resolve().parent
    labels = {split: own_rows(definition, folder, split)["label"] for split in definition.files}
    spread = None if definition.range is None else float(np.std(labels["validation"]))
    kept = Kept(definition, {split: len(of_split) for split, of_split in labels.items()}, spread, str(folder))
    return make_task(definition_name(path), kept)


def definition_name(path: Path) -> str:
    """The name of the task that a file defines: the file's, and the digits of the definition."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", path.stem).strip("_")[:40] or "task"
    return f"{name}-{read_definition(path).digits}"


def make_task(name: str, kept: Kept, place: str = "") -> Task:
    """A task from its kept facts. Raises: UserError: If its name is that of another definition in `place`."""
    definition = kept.definition
    if not re.fullmatch(rf"[A-Za-z0-9_]+-{definition.digits}", name):
        raise UserError(
            f"{place} holds another definition of {name} than its name says: the digits of its hash are "
            f"{definition.digits}. A regression of an earlier version, whose scores were not scaled by their range, is "
            f"refused too: move its runs to another folder"
        )
    return Task(
        name=name,
        title=name,
        columns=definition.columns,
        labels=definition.labels or (),
        metrics=(definition.metric if isinstance(definition.metric, str) else definition.metric.name,),
        official_rows=kept.rows,
        test_splits=("test",) if definition.test is not None else (),
        label_range=definition.range,
        label_std=kept.label_std,
        own=definition,
        folder=Path(kept.folder) if kept.folder and Path(kept.folder).is_dir() else None,
    )


def kept_facts(task: Task) -> dict[str, Any]:
    """What a plan keeps of a user-defined task: all but its folder."""
    return dataclasses.asdict(Kept(task.own, task.official_rows, task.label_std))


def kept_tasks(results: str | Path) -> dict[str, Task]:
    """Name -> the task, of each whose definition a folder of results of an older version keeps in `tasks/`.

    Raises: UserError: If a file is not a valid definition, or its hash is not the one in its name.
    """
    tasks = {}
    for path in sorted((Path(results) / FOLDER).glob("*.json")):
        try:
            tasks[path.stem] = make_task(path.stem, build(Kept, read_object(path)), str(path))
        except SettingsError as error:
            raise UserError(f"{path} is not a task's definition: {first_line(error)}") from error
    return tasks


def task_file(given: str) -> Path | None:
    """The file that `task=` names, by path or by its name in conf/tasks/; None for anything else."""
    if given.endswith((".yaml", ".yml")) or "/" in given:
        return at_home(given)
    path = TASK_FILES / f"{given}.yaml"
    return path if given not in TASKS and os.path.isfile(path) else None


def find_task(given: str, planned: Mapping[str, Task]) -> Task:
    """The user-defined task that `task=` names: a file, which is read, or one of a plan, with or without its digits.

    Raises: UserError: If there is no such task, or more than one, or its file or one of its rows is invalid.
    """
    if path := task_file(given):
        return read_task(path)
    named = [task for task in planned.values() if given in task.words]
    if len(named) != 1:
        known = [*TASKS, *sorted(path.stem for path in TASK_FILES.glob("*.yaml")), *planned]
        raise UserError(f"task must be one of {', '.join(known)}, or a file such as task=my_task.yaml, got {given!r}")
    return named[0]


# The rows.


def own_rows(definition: Definition, folder: Path, split: str) -> dict[str, list[Any]]:
    """Read one split of a user-defined task.

    Returns: The text columns and `label`: class indices or scores; None in every row of a test split without labels.
    Raises: UserError: If the file is absent or broken (with its row): there are no rows, a text is empty, a label is
        missing, unknown or out of range, or, in train and dev, all labels are the same.
    """
    table = read_table(folder / at_home(definition.files[split]))
    label = definition.label
    if not len(table):
        raise UserError(f"{table.path}: no rows; the {KEYS[split]} split needs some")
    texts = {name: table.texts(name) for name in definition.columns}
    if split == "test" and not any(cell not in (None, "") for cell in table.columns.get(label, ())):
        return texts | {"label": [None] * len(table)}
    cells = table.column(label)
    labels = read_labels(label, cells, definition.labels, definition.range, lambda i: f"{table.path}, row {i + 1}")
    if split != "test" and len(set(labels)) == 1:
        raise UserError(f"{table.path}: all {len(labels)} rows have {cells[0]!r} in column {label}: nothing to learn")
    return texts | {"label": labels}


def other_columns(definition: Definition, folder: Path, split: str) -> dict[str, list[Any]]:
    """The columns of a split's file that are neither text nor label."""
    table = read_table(folder / at_home(definition.files[split]))
    return {name: cells for name, cells in table.columns.items() if name not in (*definition.columns, definition.label)}
