"""The effect of doubling the length of training on each method, and on LoRA minus full fine-tuning."""

import math
from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.aggregate import Planned, method_label, task_label
from lora.report.tables import number

LORA, FULL = "lora-qv-r8", "full"


def length_table(frame: pd.DataFrame, curves: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One line per method and task: a column per length, and the change from the shortest to the longest, in points.

    The change is `-` unless a method was trained at both: a single length says nothing about another.

    Args:
        frame, curves: `load_frame` and `load_curves` of the records.
    """
    epochs = curves.groupby("run_id")["epoch"].max()
    runs = frame[frame["run_id"].isin([p.run_id for p in planned])]
    runs = runs.assign(epochs=runs["run_id"].map(epochs), best=100 * runs["best"])
    best = runs.pivot_table(
        index=["task", "slug", "method"], columns="epochs", values="best", aggfunc="mean", sort=False
    ).sort_index(axis="columns")  # the order of the records says nothing about their lengths
    lines = [line_of(method_label(slug, method), task, row) for (task, slug, method), row in best.iterrows()]
    for task, of_task in best.groupby(level="task", sort=False):
        by_slug = of_task.droplevel(["task", "method"])
        if {LORA, FULL} <= set(by_slug.index):
            lines.append(line_of("LoRA (qv, r8) - Full fine-tuning", task, by_slug.loc[LORA] - by_slug.loc[FULL], "+"))
    return pd.DataFrame(lines)


def line_of(label: str, task: str, by_length: pd.Series, sign: str = "") -> dict[str, str]:
    line = {"Method": label, "Task": task_label(TASKS[task])}
    line |= {f"{length:.0f} epochs": number(value, f"{sign}.1f") for length, value in by_length.items()}
    change = by_length.iloc[-1] - by_length.iloc[0] if len(by_length) > 1 else math.nan
    return line | {"Change": number(change, "+.1f")}
