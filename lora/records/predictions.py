"""Read the dev predictions of a record, and detect collapsed runs, which predict the same for every row.

No labels are needed: GLUE's may not be redistributed. Neither torch nor the rows are loaded.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load

from lora.data.metrics import METRICS
from lora.data.tasks import Task
from lora.errors import UserError
from lora.records.record import RunRecord, predictions_path

RULES = ("best", "last")
CONSTANT = 0.01  # ours: regression scores are constant if their spread is below this fraction of the dev labels' spread


def dev_predictions(record: RunRecord, results: Path) -> dict[str, np.ndarray]:
    """Rule -> the predictions of its epoch on the scoring split, one class index or score per row.

    Raises: UserError: If the file is missing or is not the one that the record names.
    """
    path = predictions_path(results, record.run_id)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the predictions of {record.run_id} are not readable: {path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != record.predictions:
        raise UserError(f"{path} is not the file of predictions that its record names")
    tensors = load(content)
    epochs = {rule: rule if record.schema == 1 else record.selected[rule]["epoch"] for rule in RULES}
    return {rule: tensors[f"{epoch}.{record.selected['split']}"] for rule, epoch in epochs.items()}


def is_constant(predicted: np.ndarray, task: Task) -> bool:
    """Whether every row gets the same class or, for regression, the scores' spread is below 1% of the labels' spread.

    The spread is the standard deviation. For the labels it is `Task.label_std`, from the official dev set, also in runs
    on other rows.
    """
    return bool(np.ptp(predicted) == 0 if task.labels else predicted.std(dtype=float) < CONSTANT * task.label_std)


def with_collapsed(
    frame: pd.DataFrame, records: Iterable[RunRecord], results: Path, tasks: Mapping[str, Task]
) -> tuple[pd.DataFrame, list[str]]:
    """Add a column `collapsed` to the frame of runs: whether the predictions of the best epoch are constant.

    A collapsed run stays in every mean and interval. If its metric is undefined (Pearson's correlation of a constant),
    it counts as 0, as Matthews' does by GLUE's convention: excluding the run would flatter its method. A metric of the
    user's own, of which 0 may be the best, stays missing.

    Args:
        frame: `lora.records.record.load_frame` of the records.
        results: Folder with runs/ and predictions/.
        tasks: Name -> task, of the records.
    Returns: The frame, with `collapsed` 1, 0, or NaN without predictions; and a message per missing or broken file.
    """
    constant: dict[str, dict[str, bool]] = {}
    problems = []
    for record in records:
        if record.predictions is None:
            continue
        try:
            by_rule = dev_predictions(record, results)
        except UserError as error:
            problems.append(str(error))
            continue
        task = tasks[record.config["task"]]
        constant[record.run_id] = {rule: is_constant(values, task) for rule, values in by_rule.items()}
    columns = {rule: frame["run_id"].map({run: rules[rule] for run, rules in constant.items()}) for rule in RULES}
    zero = frame["task"].map(lambda name: tasks[name].metric in METRICS).astype(bool)
    counted = {rule: frame[rule].mask(frame[rule].isna() & columns[rule].eq(True) & zero, 0.0) for rule in RULES}
    return frame.assign(**counted, collapsed=columns["best"].astype(float)), problems
