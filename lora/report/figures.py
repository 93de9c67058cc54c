"""The data of each figure, stored next to the picture. Tests and rebuilds compare the data.

A figure is a mapping: `title`, `note`, `kind` (`lines`, `points`, `forest`, `heat`), `x` (a label), `log_x`, and
`panels`, each with a title, a label `y` and its series. Values have 6 significant digits; absent values are null.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.files import rounded
from lora.report.cells import ROW, expected_runs, in_order, told_apart
from lora.report.runs import Planned
from lora.report.stats import LEVEL, mean_interval
from lora.report.tables import average
from lora.report.titles import adapted, encoder_title, task_label

Figure = dict[str, Any]
OVER_SEEDS = "Median over seeds; bars: lowest and highest seed."


def by_rank(summary: pd.DataFrame) -> Figure | None:
    """Table 6 as a figure: the metric by rank, one line per target set."""

    def series(rows: pd.DataFrame) -> list[dict[str, Any]]:
        sets = rows.groupby("targets", sort=False)
        return [{"label": targets, **spread(of_set.sort_values("rank"), "rank")} for targets, of_set in sets]

    return of_lora("Table 6: the metric by rank", OVER_SEEDS, "lines", "rank r", summary, series, log_x=True)


def by_targets(summary: pd.DataFrame) -> Figure | None:
    """Table 5 as a figure: the metric by target set. The note states whether the sets are equally large."""

    def series(rows: pd.DataFrame) -> list[dict[str, Any]]:
        names = [f"{row.targets}, r = {row.rank}" for row in rows.itertuples()]
        return [{"label": "", "names": names, **spread(rows.assign(place=range(len(rows))), "place")}]

    equal = summary.loc[summary["n"] > 0, "trainable_method"].nunique() <= 1
    sizes = "All sets have the same number of parameters." if equal else "The sets differ in size; see the table."
    title, note = "Table 5: which projections to adapt", f"{OVER_SEEDS} {sizes}"
    return of_lora(title, note, "points", "adapted", summary, series)


def of_lora(
    title: str, note: str, kind: str, x: str, summary: pd.DataFrame, series: Callable, log_x: bool = False
) -> Figure | None:
    """A panel per task. `series`: makes those of a task from its cells, with the columns targets and rank."""
    cells = summary[summary["n"] > 0]
    adapts = pd.DataFrame(map(adapted, cells.itertuples()), columns=["targets", "rank"], index=cells.index)
    panels = []
    for task in in_order(cells):
        rows = cells.join(adapts)[cells["task"] == task]
        panels.append({"title": TASKS[task].title, "y": task_label(TASKS[task]), "series": series(rows)})
    return figure(title, note, kind, x, panels, log_x=log_x)


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


def gaps_to_full(curves: pd.DataFrame, planned: Sequence[Planned]) -> Figure | None:
    """Each method minus full fine-tuning by epoch, per task: the mean over pairs of one seed, with its interval.

    Returns: None if no epoch of any method has a pair.
    """
    expected = expected_runs(planned)
    runs = expected.assign(label=told_apart(expected)).merge(curves, on="run_id")
    keys = ["model", "start", "task", "seed", "epoch"]
    full = runs[runs["method"] == "full"].drop_duplicates(keys, keep=False)  # two are ambiguous: neither is paired
    pairs = runs[runs["method"] != "full"].merge(full[[*keys, "value"]], on=keys, suffixes=("", "_full"))
    pairs = pairs.assign(gap=100 * (pairs["value"] - pairs["value_full"])).dropna(subset=["gap"])
    panels = []
    for task in in_order(pairs):
        series = []
        for label, of_method in pairs[pairs["task"] == task].groupby("label", sort=False):
            by_epoch = {epoch: mean_interval(each["gap"].to_numpy()) for epoch, each in of_method.groupby("epoch")}
            found = {"y": "mean", "low": "low", "high": "high"}
            values = {key: [getattr(one, name) for one in by_epoch.values()] for key, name in found.items()}
            series.append({"label": label, "x": list(by_epoch), **values})
        panels.append({"title": TASKS[task].title, "y": "points", "band": True, "gaps": True, "series": series})
    note = f"Mean paired difference and its {LEVEL:.0%} interval over seeds; above 0 the method is higher."
    return figure("Gap to full fine-tuning by epoch", note, "lines", "epoch", panels)


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


def spread(rows: pd.DataFrame, x: str) -> dict[str, list]:
    names = {"x": x, "y": "median", "low": "min", "high": "max"}
    return {key: rows[column].tolist() for key, column in names.items()}


def figure(
    title: str, note: str, kind: str, x: str, panels: Sequence[Mapping[str, Any]], log_x: bool = False
) -> Figure | None:
    """A figure with rounded values; None without panels, since nothing was measured."""
    if not panels:
        return None
    plain = {"title": title, "note": note, "kind": kind, "x": x, "log_x": log_x, "panels": list(panels)}
    return rounded(plain)
