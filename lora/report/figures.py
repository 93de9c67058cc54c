"""The data of each figure, stored next to the picture. Tests and rebuilds compare the data.

A figure is a mapping: `title`, `note`, `kind` (`lines`, `forest`, `heat`), `x` (a label), `log_x`, and
`panels`, each with a title, a label `y` and its series. Values have 6 significant digits; absent values are null.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.files import rounded
from lora.report.cells import ROW, expected_runs, in_order, told_apart
from lora.report.runs import Planned
from lora.report.stats import LEVEL
from lora.report.tables import average
from lora.report.titles import adapted, encoder_title, task_label

Figure = dict[str, Any]


def by_rank(summary: pd.DataFrame) -> Figure | None:
    """Table 6 as a figure: the metric by rank, one line per target set."""
    cells = summary[summary["n"] > 0]
    adapts = pd.DataFrame(map(adapted, cells.itertuples()), columns=["targets", "rank"], index=cells.index)
    panels = []
    for task in in_order(cells):
        series = []
        for targets, rows in cells.join(adapts)[cells["task"] == task].groupby("targets", sort=False):
            names = {"x": "rank", "y": "median", "low": "min", "high": "max"}
            by_rank = rows.sort_values("rank")
            series.append({"label": targets, **{key: by_rank[column].tolist() for key, column in names.items()}})
        panels.append({"title": TASKS[task].title, "y": task_label(TASKS[task]), "series": series})
    note = "Median over seeds; bars: lowest and highest seed."
    return figure("Table 6: the metric by rank", note, "lines", "rank r", panels, log_x=True)


def by_parameters(summary: pd.DataFrame) -> Figure | None:
    """Trainable parameters against the average score over tasks: one point per method that has every task."""
    panels = []
    for model, rows in summary.groupby("model", sort=False):
        tasks, series = in_order(rows), []
        rows = rows.assign(label=told_apart(rows, by=("protocol",)))
        for (*_, label), group in rows.groupby(ROW, sort=False):
            values, count = group.set_index("task"), group["trainable_method"].dropna()
            middle, low, high = (average(values[column], tasks) for column in ("median", "min", "max"))
            if pd.isna(middle) or not len(count):
                continue
            series.append({"label": label, "x": [int(count.iloc[0])], "y": [middle], "low": [low], "high": [high]})
        if series:
            titles = ", ".join(TASKS[task].title for task in tasks)
            panels.append({"title": encoder_title(model), "y": f"average of {titles}", "series": series})
    note = (
        "Average over tasks of the medians over seeds; bars: of the lowest and of the highest seeds. Excludes the head."
    )
    return figure(
        "Trainable parameters against the average score", note, "lines", "trainable parameters", panels, log_x=True
    )


def learning_curves(curves: pd.DataFrame, planned: Sequence[Planned], what: str = "") -> Figure | None:
    """The metric by epoch, per task; the band is the range of the seeds.

    Args:
        what: Suffix of the title.
    """
    expected = expected_runs(planned)
    runs = expected.assign(label=told_apart(expected)).merge(curves, on="run_id")
    panels = []
    for task in in_order(runs):
        series = []
        for label, cell in runs[runs["task"] == task].groupby("label", sort=False):
            by_epoch = cell.groupby("epoch")["value"].agg(["median", "min", "max"]) * 100
            band = {"low": by_epoch["min"].tolist(), "high": by_epoch["max"].tolist()}
            series.append({"label": label, "x": by_epoch.index.tolist(), "y": by_epoch["median"].tolist(), **band})
        panels.append({"title": TASKS[task].title, "y": task_label(TASKS[task]), "band": True, "series": series})
    return figure(
        f"Learning curves{what}", "Median over seeds; band: lowest and highest seed.", "lines", "epoch", panels
    )


def forest(pairs: pd.DataFrame) -> Figure | None:
    """LoRA minus each other method, task by task and on average, with its interval over seeds."""
    panels = []
    for (model, one), rows in pairs.dropna(subset=["mean"]).groupby(["model", "one"], sort=False):
        if not one.startswith("LoRA"):
            continue
        names = [
            f"{row.other}: {row.task if row.task == 'Avg.' else TASKS[row.task].title} (n = {row.n})"
            for row in rows.itertuples()
        ]
        values = {"y": rows["mean"].tolist(), "low": rows["low"].tolist(), "high": rows["high"].tolist()}
        series = [{"label": "", "names": names, "x": list(range(len(names))), **values}]
        panels.append({"title": f"{one} minus ... ({encoder_title(model)})", "y": "points", "series": series})
    note = f"Mean paired difference and its {LEVEL:.0%} interval over seeds; right of 0 LoRA is higher."
    return figure(
        "LoRA against the other methods, in pairs of one seed", note, "forest", "difference in points", panels
    )


def figure(
    title: str, note: str, kind: str, x: str, panels: Sequence[Mapping[str, Any]], log_x: bool = False
) -> Figure | None:
    """A figure with rounded values; None without panels, since nothing was measured."""
    if not panels:
        return None
    plain = {"title": title, "note": note, "kind": kind, "x": x, "log_x": log_x, "panels": list(panels)}
    return rounded(plain)
