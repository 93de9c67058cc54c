"""The learning rates that were tried for each method, on seeds that no table of results has, and the one taken."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.cells import expected_runs, in_order, kinds_of, refuse_twice, told_apart
from lora.report.conditions import conditions
from lora.report.notes import BANNERS, encoder_notes, note
from lora.report.runs import Planned, labelled
from lora.report.tables import collapsed_text, number
from lora.report.titles import task_label
from lora.sweep.grids import LEARNING_RATE
from lora.table import Table

TITLE = "Learning rates tried, on seeds outside the tables of results"


def learning_rate_table(name: str, tried: Sequence[Planned], frame: pd.DataFrame, curves: pd.DataFrame) -> Table | None:
    """One line per row and trained rate; None if no run was trained.

    A row is the runs that are equal in every setting but the rate and the seed. A value is the mean over its seeds,
    whose number is stated where there are several.

    Args:
        name: The profile's folder, for the title.
        frame, curves: `load_frame` and `load_curves` of the records.
    Raises: UserError: If two runs of one row, task and rate have the same seed.
    """
    rows = tried_rows(tried)
    runs = tried_runs(rows, frame)
    if not len(runs):
        return None
    tasks, best = in_order(runs), taken(rows, runs)
    lines = []
    for label, of_row in runs.groupby("label", sort=False):
        rates = sorted(of_row["lr"].unique())
        for rate in rates:
            cells = of_row[of_row["lr"] == rate].groupby("task")
            by_task = 100 * cells["best"].mean().reindex(tasks)
            n, collapsed = (found.reindex(tasks, fill_value=0) for found in (cells.size(), cells["collapsed"].sum()))
            line = {"Method": label, "Learning rate": f"{rate:.0e}"}
            for task in tasks:
                constant = collapsed_text(int(collapsed[task]), int(n[task]))
                seeds = f" ({n[task]} seeds)" if n[task] > 1 else ""
                line[task_label(TASKS[task])] = f"{number(by_task[task])}{constant or seeds}"
            line["Avg."] = number(by_task.mean() if by_task.notna().all() else float("nan"))
            edge = " (edge)" if rate in (rates[0], rates[-1]) else ""
            lines.append(line | {"Taken": f"yes{edge}" if best.get(label) == rate else ""})
    notes = (note(LEARNING_RATE), *encoder_notes(runs["model"]))
    banner = " ".join(filter(None, (BANNERS[kind] for kind in dict.fromkeys(kinds_of(tasks, frame).values()))))
    above = conditions(frame, curves, tried)
    return Table(LEARNING_RATE, f"{TITLE} ({name})", pd.DataFrame(lines), 2, notes, banner, above)


def tried_rows(tried: Sequence[Planned]) -> list[Planned]:
    """The tried runs, each with the label of its row, which names the encoder or protocol if there are several."""
    tried = labelled(tried, without=("train.lr",))
    labels = told_apart(expected_runs(tried), by=("model", "protocol"), within=("label",))
    return [dataclasses.replace(p, label=label) for p, label in zip(tried, labels, strict=True)]


def tried_runs(tried: Sequence[Planned], frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's rows of `tried_rows`, in the tables' order, with the columns of `CELL`.

    Raises: UserError: If two of one rate are one run of a cell.
    """
    runs = expected_runs(tried).merge(frame[["run_id", "lr", "best", "collapsed"]], on="run_id")
    refuse_twice(runs, "lr")
    return runs


def taken(tried: Sequence[Planned], runs: pd.DataFrame) -> dict[str, float]:
    """Label -> the rate with the best mean over tasks, each task first averaged over its seeds; the smaller on a tie.

    Only rates that were tried on every task and seed of the row count. Rows with a missing run are excluded.

    Args:
        tried, runs: `tried_rows` and `tried_runs`.
    """
    there = set(runs["run_id"])
    missing = {p.label for p in tried if p.run_id not in there}
    found = {}
    for label, of_row in runs.groupby("label", sort=False):
        by_rate = of_row.pivot(index="lr", columns=["task", "seed"], values="best").sort_index().dropna()
        if label not in missing and len(by_rate):
            found[label] = float(by_rate.T.groupby("task").mean().mean().idxmax())
    return found
