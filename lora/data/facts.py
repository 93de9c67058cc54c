"""What a task's rows are like: rows per class, repeated texts, and dev and test rows whose text is in train."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora.data.read import TaskData
from lora.data.tasks import Task
from lora.errors import UserError, listed

BETWEEN = " | "  # the two texts of a pair


def texts_of(task: Task, data: TaskData, split: str) -> list[str]:
    """The texts of a split, each row as one."""
    return [BETWEEN.join(row) for row in zip(*(data.splits[split][name] for name in task.columns), strict=True)]


def facts(task: Task, data: TaskData, more: Mapping[str, TaskData]) -> dict[str, Any]:
    """Of the train split, the first validation split, and labelled test rows.

    Args:
        data, more: As of `lora.data.read.read_for_run`.
    Returns: `rows`, of the first two; `classes`, train rows of each label; `repeated`, train rows whose text occurs
        earlier, and `relabelled`, those with a label that it has nowhere earlier; `leaked`, for dev and test the rows
        whose text is in train, from 1.
    """
    train, dev = (texts_of(task, data, split) for split in task.training_splits[:2])
    known, labels = set(train), data.splits["train"]["label"]
    others = {"dev": dev} | ({"test": texts_of(task, more["test"], "test")} if "test" in more else {})
    counts = Counter(labels)
    return {
        "rows": [len(train), len(dev)],
        "classes": {label: counts[index] for index, label in enumerate(task.labels)},
        "repeated": len(train) - len(known),
        "relabelled": len({*zip(train, labels, strict=True)}) - len(known),
        "leaked": {
            name: [i for i, text in enumerate(texts, start=1) if text in known] for name, texts in others.items()
        },
    }


def class_counts(task: Task, labels: Sequence[float | int]) -> np.ndarray:
    """The number of train rows of each class, from which train.class_weights follows.

    Raises: UserError: If the task has scores, or a class has no row: it would get no weight.
    """
    counts = np.bincount(labels, minlength=len(task.labels)) if task.labels else np.zeros(1)
    if not counts.all():
        lacking = f"no train row of {task.labels[int(counts.argmin())]}" if task.labels else "scores"
        raise UserError(
            f"train.class_weights=balanced is for classes that all have train rows: {task.name} has {lacking}"
        )
    return counts


def facts_text(about: Mapping[str, Any]) -> list[str]:
    """`facts` as lines."""
    lines = []
    if classes := about["classes"]:
        lines.append(f"train rows by class: {', '.join(f'{label} {count:,}' for label, count in classes.items())}")
    if repeated := about["repeated"]:
        kind = "label" if about["classes"] else "score"
        other = f", {about['relabelled']:,} of them with another {kind}" if about["relabelled"] else ""
        lines.append(f"{repeated:,} train rows ({repeated / about['rows'][0]:.0%}) repeat an earlier row's text{other}")
    for split, shared in about["leaked"].items():
        if shared:
            what = f"{len(shared):,} {split} rows have a text that is in train, which flatters {split} scores"
            lines.append(f"{what}: {listed(shared)}")
    return lines
