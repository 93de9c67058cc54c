"""The effect of doubling the length of training on each method, and on LoRA minus full fine-tuning."""

import math
from collections.abc import Sequence
from itertools import product

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.aggregate import CELL, Planned, expected_runs, refuse_twice, task_label, without
from lora.report.tables import number

LORA, FULL = "lora-qv-r8", "full"


def length_table(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One line per row and task: a column per length, and the change from the shortest to the longest, in points.

    A row is the runs that are equal in every setting but the length and the seed; its values are means over seeds.

    The change is `-` unless a method was trained at both: a single length says nothing about another.

    Args:
        frame: `load_frame` of the records.
    Raises: UserError: If two runs of one row, task and length have the same seed.
    """
    expected = expected_runs(without(planned, "train.epochs"))
    runs = expected.merge(frame[["run_id", "epochs", "best"]], on="run_id")
    refuse_twice(runs, "epochs")
    runs = runs.assign(best=100 * runs["best"])
    best = runs.pivot_table(index=CELL, columns="epochs", values="best", aggfunc="mean", sort=False)
    rows = [(dict(zip(CELL, key, strict=True)), row) for key, row in best.sort_index(axis=1).iterrows()]
    lines = [line_of(cell["label"], cell["task"], row) for cell, row in rows]
    for task in dict.fromkeys(cell["task"] for cell, _ in rows):
        sides = [
            [(cell["label"], row) for cell, row in rows if (cell["task"], cell["slug"]) == (task, slug)]
            for slug in (LORA, FULL)
        ]
        lines += [
            line_of(f"{one} - {other}", task, ours - theirs, "+") for (one, ours), (other, theirs) in product(*sides)
        ]
    return pd.DataFrame(lines)


def line_of(label: str, task: str, by_length: pd.Series, sign: str = "") -> dict[str, str]:
    line = {"Method": label, "Task": task_label(TASKS[task])}
    line |= {f"{length:.0f} epochs": number(value, f"{sign}.1f") for length, value in by_length.items()}
    change = by_length.iloc[-1] - by_length.iloc[0] if len(by_length) > 1 else math.nan
    return line | {"Change": number(change, "+.1f")}
