"""Runs that were trained again on another device: what a device of another kind changes.

The records of the second training are in `<results>/repeated`, made by the sweep's own command with that as its results
folder. A run_id hashes the settings, so two records of one run_id differ in nothing else than where they ran.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import load_frame, load_records
from lora.report.aggregate import CELL, Planned, expected_runs, task_label, told_apart
from lora.report.notes import note
from lora.report.stats import DIGITS, mean_interval
from lora.report.tables import number
from lora.table import Table

REPEATED = "repeated"  # the folder, below that of the records
TITLE = "The same runs on two devices"


def repeated_frame(folder: Path) -> pd.DataFrame:
    """`load_frame` of the repeated runs of a folder of records.

    Raises: UserError: If a file is not a record.
    """
    records, problems = load_records(folder / REPEATED)
    if problems:
        raise UserError("; ".join(problems))
    return load_frame(records)


def repeated_table(name: str, planned: Sequence[Planned], frame: pd.DataFrame, again: pd.DataFrame) -> Table | None:
    """One line per cell and pair of devices, over the seeds that were trained on both; None without such runs.

    Args:
        name: The profile's folder, for the title.
        frame, again: `load_frame` of the records and of the repeated ones.
    Raises: UserError: If a run was trained on other rows the second time.
    """
    values = ["run_id", "best", "device", "fingerprint"]
    runs = (
        expected_runs(planned).merge(frame[values], on="run_id").merge(again[values], on="run_id", suffixes=("", "_2"))
    )
    if moved := runs.loc[runs["fingerprint"] != runs["fingerprint_2"], "run_id"].tolist():
        raise UserError(f"repeated on other rows, so not the same run: {', '.join(moved)}")
    lines = []
    for key, cell in runs.assign(label=told_apart(runs)).groupby([*CELL, "device", "device_2"], sort=False):
        at = dict(zip([*CELL, "device", "device_2"], key, strict=True))
        one, two = 100 * cell["best"], 100 * cell["best_2"]
        changes = (two - one).round(DIGITS)
        line = {"Method": at["label"], "Task": task_label(TASKS[at["task"]])}
        line |= {"Devices": f"{at['device']}, {at['device_2']}", "Seeds": str(len(cell))}
        line |= {"First": number(one.mean()), "Second": number(two.mean())}
        line |= {"Change": mean_interval(changes.to_numpy()).text, "SD of the change": number(changes.std())}
        lines.append(line | {"SD of two seeds": number(math.sqrt(2) * one.std())})
    if not lines:
        return None
    return Table("repeated", f"{TITLE} ({name})", pd.DataFrame(lines), 3, (note("repeated"),))
