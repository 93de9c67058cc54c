"""The dev predictions that a record names, and whether they say anything: a collapsed run answers the same everywhere.

No labels are needed: those of GLUE are not ours to pass on. Neither torch nor the rows are loaded here.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load

from lora.data.tasks import TASKS, Task
from lora.errors import UserError, first_line
from lora.records.record import RunRecord

RULES = ("best", "last")
CONSTANT = 0.01  # ours: a regression whose predictions spread less than this share of the dev labels' is constant


def dev_predictions(record: RunRecord, results: Path) -> dict[str, np.ndarray]:
    """Rule -> the predictions of its epoch on the split that selects, one class index or score per row.

    Raises: UserError: If the file is absent, or is not the one that the record names.
    """
    path = predictions_path(record, results)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the predictions of {record.run_id} are not readable: {path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != record.predictions:
        raise UserError(f"{path} is not the file of predictions that its record names")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {first_line(error)}") from error
    return {rule: np.concatenate([tensors[f"{rule}.{split}"] for split in splits_of(record)]) for rule in RULES}


def predictions_path(record: RunRecord, results: Path) -> Path:
    return results / "predictions" / f"{record.run_id}.safetensors"


def splits_of(record: RunRecord) -> tuple[str, ...]:
    """The splits that select: all of the task's where they are pooled."""
    split = record.selected["split"]
    return TASKS[record.config["task"]].validation_splits if split == "pooled" else (split,)


def is_constant(predicted: np.ndarray, task: Task) -> bool:
    """Whether one class is predicted for every row; of a regression, whether the scores spread less than 1% of labels.

    The labels' spread is `Task.label_std`, of the official dev set: a run on other rows is measured by the same.
    """
    return bool(np.ptp(predicted) == 0 if task.labels else predicted.std(dtype=float) < CONSTANT * task.label_std)


def with_collapsed(frame: pd.DataFrame, records: Iterable[RunRecord], results: Path) -> tuple[pd.DataFrame, list[str]]:
    """The frame of runs with a column `collapsed`: whether the predictions of the selected epoch are constant.

    A collapsed run stays in every mean and interval. Where its metric is undefined (Pearson's correlation of a
    constant), it counts as 0, as Matthews' does by GLUE's convention: leaving the run out would flatter its method.

    Args:
        frame: `lora.records.record.load_frame` of the records.
        results: The folder that has runs/ and predictions/.
    Returns: `collapsed` is 1 or 0, and NaN where the predictions were not kept; and a message for each broken file.
    """
    found: dict[str, dict[str, bool]] = {}
    problems = []
    for record in records:
        if record.predictions is None or not predictions_path(record, results).exists():
            continue
        try:
            by_rule = dev_predictions(record, results)
        except UserError as error:
            problems.append(str(error))
            continue
        task = TASKS[record.config["task"]]
        found[record.run_id] = {rule: is_constant(values, task) for rule, values in by_rule.items()}
    constant = {rule: frame["run_id"].map({run: rules[rule] for run, rules in found.items()}) for rule in RULES}
    counted = {rule: frame[rule].mask(frame[rule].isna() & constant[rule].eq(True), 0.0) for rule in RULES}
    return frame.assign(**counted, collapsed=constant["best"].astype(float)), problems
