"""From the frame of runs to one row per cell."""

from collections.abc import Iterable, Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.report.runs import Planned
from lora.report.titles import told

ROW = ["model", "protocol", "slug", "method", "label"]  # the columns that identify a line of a table
CELL = [*ROW, "start", "task"]  # the columns that identify a cell
KINDS = ("whole", "part", "embedded", "own")  # of a task's train rows; a table holds one kind


def expected_runs(planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per run: run_id, the columns of `CELL`, seed, and varied (`Planned`)."""
    return pd.DataFrame(map(vars, planned), columns=["run_id", *CELL, "seed", "varied"])


def summarise(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per expected cell, aggregated over its seeds.

    Returns: Columns `CELL`, varied (what was given on top of conf/), n, planned, median, mean, std, min, max (of `best`
        over seeds; std with ddof 1), last_median, trainable_method, trainable_head, seconds (mean), train_rows,
        collapsed (number of collapsed runs), kind (one of `KINDS`, by the records of the whole frame). Metrics are in
        percent; values that were not measured are NaN.
    Raises: UserError: If two runs of one cell have the same seed.
    """
    expected = expected_runs(planned)
    values = ["best", "last", "trainable_method", "trainable_head", "seconds", "train_rows", "is_part"]
    refuse_twice(expected)
    runs = expected.merge(frame.reindex(columns=["run_id", *values, "collapsed"]), on="run_id", how="left")
    runs = runs.assign(best=100 * runs["best"], last=100 * runs["last"], collapsed=runs["collapsed"].eq(1))
    table = runs.groupby(CELL, sort=False).agg(
        varied=("varied", "first"),
        n=("best", "count"),
        planned=("run_id", "size"),
        median=("best", "median"),
        mean=("best", "mean"),
        std=("best", "std"),
        min=("best", "min"),
        max=("best", "max"),
        last_median=("last", "median"),
        trainable_method=("trainable_method", "first"),
        trainable_head=("trainable_head", "first"),
        seconds=("seconds", "mean"),
        train_rows=("train_rows", "first"),
        collapsed=("collapsed", "sum"),
    )
    table = table.reset_index().astype(dict.fromkeys(("trainable_method", "trainable_head", "train_rows"), "Int64"))
    return table.assign(kind=table["task"].map(kinds_of(table["task"], frame)))


def refuse_twice(runs: pd.DataFrame, *more: str) -> None:
    """Check that no cell has two runs of one seed.

    Args:
        runs: One row per run, with run_id, seed and the columns of `CELL`.
        more: Further columns that identify a cell.
    Raises: UserError: If one has.
    """
    twice = runs[runs.duplicated([*CELL, *more, "seed"], keep=False)]
    if len(twice):
        raise UserError(f"two runs of one seed cannot be in one cell: {', '.join(twice['run_id'])}")


def kinds_of(tasks: Iterable[str], frame: pd.DataFrame) -> dict[str, str]:
    """Task -> one of `KINDS`. A GLUE task without a record is `part` if all those with records are, else `whole`."""
    glue = {task for task in frame["task"] if TASKS[task].family == "glue"}
    part = glue & set(frame.loc[frame["is_part"].eq(True), "task"])
    if part and part == glue:
        part = set(TASKS)
    families = {task: TASKS[task].family for task in tasks}
    return {t: family if family != "glue" else "part" if t in part else "whole" for t, family in families.items()}


def in_order(summary: pd.DataFrame) -> list[str]:
    return [task for task in TASKS if task in set(summary["task"])]


def told_apart(
    runs: pd.DataFrame, by: Sequence[str] = ("model", "protocol", "start"), within: Sequence[str] = ("task", "label")
) -> pd.Series:
    """The label of each run, with its encoder, protocol or start added if runs of one label differ in it.

    Args:
        runs: One row per run, with label, task and the columns of `by`.
        within: Runs that share these columns are distinguished.
    """
    labels = runs["label"]
    for key in by:
        several = runs.groupby([*within])[key].transform("nunique") > 1
        labels = labels.where(~several, labels + ", " + runs[key].map(lambda value, key=key: told(key, value)))
    return labels
