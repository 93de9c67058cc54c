"""What a task's rows are like: rows per class, repeated texts, and dev rows whose text is in train."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lora.data.read import TaskData
from lora.data.tasks import Task

BETWEEN = " | "  # the two texts of a pair
NAMED = 5  # dev rows that are named


def texts_of(task: Task, data: TaskData, split: str) -> list[str]:
    """The texts of a split, each row as one."""
    return [BETWEEN.join(row) for row in zip(*(data.splits[split][name] for name in task.columns), strict=True)]


def facts(task: Task, data: TaskData) -> dict[str, Any]:
    """Of the train and the first validation split.

    Returns: `rows`, of both; `classes`, train rows of each label; `repeated`, train rows whose text occurs earlier;
        `in_train`, the dev rows whose text is in train, from 1.
    """
    train, dev = (texts_of(task, data, split) for split in task.training_splits[:2])
    known, labels = set(train), Counter(data.splits[task.train_split]["label"])
    return {
        "rows": [len(train), len(dev)],
        "classes": {label: labels[index] for index, label in enumerate(task.labels)},
        "repeated": len(train) - len(known),
        "in_train": [row for row, text in enumerate(dev, start=1) if text in known],
    }


def facts_text(found: Mapping[str, Any]) -> list[str]:
    """`facts` as lines."""
    lines = []
    if classes := found["classes"]:
        lines.append(f"train rows by class: {', '.join(f'{label} {count:,}' for label, count in classes.items())}")
    if repeated := found["repeated"]:
        lines.append(f"{repeated:,} train rows ({repeated / found['rows'][0]:.0%}) repeat an earlier row's text")
    if shared := found["in_train"]:
        rows = ", ".join(map(str, shared[:NAMED])) + ", ..." * (len(shared) > NAMED)
        lines.append(f"{len(shared):,} dev rows have a text that is in train, which flatters every score: {rows}")
    return lines
