"""The learning rates that were tried for each method, on a seed that no table of results has, and the one taken."""

from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.aggregate import Planned, in_order, kinds_of, method_label, task_label
from lora.report.conditions import conditions
from lora.report.notes import BANNERS, encoder_notes, note
from lora.report.tables import number
from lora.sweep.grids import LEARNING_RATE
from lora.table import Table

TITLE = "Learning rates tried, on a seed that no other table uses"


def learning_rate_table(name: str, tried: Sequence[Planned], frame: pd.DataFrame, curves: pd.DataFrame) -> Table | None:
    """One line per method and trained rate; None if no run was trained.

    Args:
        name: The profile's folder, for the title.
        frame, curves: `load_frame` and `load_curves` of the records.
    """
    runs = tried_runs(tried, frame)
    if not len(runs):
        return None
    tasks, best = in_order(runs), taken(tried, runs)
    lines = []
    for (slug, method), of_method in runs.groupby(["slug", "method"], sort=False):
        rates = sorted(of_method["lr"].unique())
        for rate in rates:
            by_task = 100 * of_method[of_method["lr"] == rate].groupby("task")["best"].mean().reindex(tasks)
            line = {"Method": method_label(slug, method), "Learning rate": f"{rate:.0e}"}
            line |= {task_label(TASKS[task]): number(by_task[task]) for task in tasks}
            line["Avg."] = number(by_task.mean() if by_task.notna().all() else float("nan"))
            edge = " (edge)" if rate in (rates[0], rates[-1]) else ""
            lines.append(line | {"Taken": f"yes{edge}" if best.get(slug) == rate else ""})
    notes = (note(LEARNING_RATE), *encoder_notes(runs["model"]))
    banner = " ".join(filter(None, (BANNERS[kind] for kind in dict.fromkeys(kinds_of(tasks, frame).values()))))
    above = conditions(frame, curves, tried)
    return Table(LEARNING_RATE, f"{TITLE} ({name})", pd.DataFrame(lines), 2, notes, banner, above)


def tried_runs(tried: Sequence[Planned], frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's rows of the tried runs, in the tables' order."""
    order = [p.run_id for p in tried]
    there = frame[frame["run_id"].isin(order)]
    return there.sort_values("run_id", key=lambda ids: ids.map(order.index))


def taken(tried: Sequence[Planned], runs: pd.DataFrame) -> dict[str, float]:
    """Slug -> the rate with the best mean over tasks, each task first averaged over its seeds; the smaller on a tie.

    Only rates that were tried on every task and seed of the method count. Methods with a missing run are excluded.
    """
    there = set(runs["run_id"])
    missing = {p.slug for p in tried if p.run_id not in there}
    found = {}
    for slug, of_method in runs.groupby("slug", sort=False):
        by_rate = of_method.pivot(index="lr", columns=["task", "seed"], values="best").sort_index().dropna()
        if slug not in missing and len(by_rate):
            found[slug] = float(by_rate.T.groupby("task").mean().mean().idxmax())
    return found
