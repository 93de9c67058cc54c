"""The data of each figure, stored next to the picture. Tests and rebuilds compare the data.

A figure is a mapping: `title`, `note`, `kind` (`lines`, `intervals`, `heat`), `x` (a label), `log_x`, and
`panels`, each with a title, a label `y` and its series. Values have 6 significant digits; absent values are null.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.files import rounded
from lora.report.runs import ROW, in_order, told_apart
from lora.report.stats import LEVEL
from lora.report.tables import average
from lora.report.titles import adapted, encoder_title, task_label

Figure = dict[str, Any]
SPREAD = 0.18  # between the intervals of one line, in lines
BOUNDED = f"Mean paired differences, with {LEVEL:.0%} intervals over seeds. Dotted: the bound of the paper's claim."


def beside(place: int, count: int) -> float:
    """How far one of the intervals of a line stands from its middle, in lines."""
    return SPREAD * (place - (count - 1) / 2)


def differences(
    title: str,
    summary: pd.DataFrame,
    pairs: pd.DataFrame,
    paper: pd.DataFrame | None,
    base: Callable[[str, int], tuple[str, int]],
    bound: float,
) -> Figure | None:
    """Tables 5 and 6 as figures: LoRA minus LoRA on the base's matrices or of its rank, here and in the paper.

    Args:
        pairs: `lora.report.comparisons.method_pairs`.
        base: The target set and rank that those of a row are compared with.
        bound: Of the claim about the table.
    """
    rows = {adapted(row): row.label for row in summary.drop_duplicates("label").itertuples()}
    compared = [(key, base(*key)) for key in rows if key != base(*key) in rows]
    turned = pairs.assign(
        one=pairs["other"], other=pairs["one"], mean=-pairs["mean"], low=-pairs["high"], high=-pairs["low"]
    )
    both = pd.concat([pairs, turned]).dropna(subset=["mean"]).set_index(["one", "other", "task"])
    tasks = [task for task in in_order(summary) if task in both.index.get_level_values("task")]
    series: list[dict[str, Any]] = []
    for place, task in enumerate(tasks):
        keys = [(i, (rows[one], rows[other], task)) for i, (one, other) in enumerate(compared)]
        there = [(i, both.loc[key]) for i, key in keys if key in both.index]
        aside = beside(place, len(tasks))
        values = {
            key: [one[name] for _, one in there] for key, name in (("y", "mean"), ("low", "low"), ("high", "high"))
        }
        series.append({"label": task_label(TASKS[task]), "x": [i + aside for i, _ in there], **values})
    printed: dict[str, list[float]] = {"x": [], "y": []}
    cells = {} if paper is None else paper.set_index(["method", "task"])["value"].to_dict()
    for i, (one, other) in enumerate(compared):
        for task in dict.fromkeys(task for _, task in cells):
            ours, theirs = ((f"LoRA {key[0].replace(', ', ',')} r={key[1]}", task) for key in (one, other))
            if ours in cells and theirs in cells:
                printed["x"].append(i)
                printed["y"].append(cells[ours] - cells[theirs])
    if printed["x"]:
        series.append({"label": f"the paper ({', '.join(dict.fromkeys(task for _, task in cells))})", **printed})
    names = [f"{targets}, r = {rank}" for (targets, rank), _ in compared]
    panel = {"title": "", "names": names, "bounds": [bound] * len(names), "series": series}
    return figure(title, BOUNDED, "intervals", "points", [panel] if tasks and names else [])


def by_parameters(summary: pd.DataFrame) -> Figure | None:
    """Trainable parameters against the average score over tasks: one point per method that has every task."""
    panels = []
    for model, rows in summary.groupby("model", sort=False):
        tasks, series = in_order(rows), []
        rows = rows.assign(label=told_apart(rows, ["protocol"]))
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


def learning_curves(runs: pd.DataFrame, curves: pd.DataFrame, what: str = "") -> Figure | None:
    """The metric by epoch, per task; the band is the range of the seeds.

    Args:
        what: Suffix of the title.
    """
    runs = runs.assign(label=told_apart(runs)).merge(curves, on="run_id")
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
    """LoRA minus each other method, task by task and on average."""
    panels = []
    for (model, one), rows in pairs.dropna(subset=["mean"]).groupby(["model", "one"], sort=False):
        if not one.startswith("LoRA"):
            continue
        places, series = list(dict.fromkeys(rows["task"])), []
        others = list(dict.fromkeys(rows["other"]))
        for i, other in enumerate(others):
            of_pair = rows[rows["other"] == other]
            aside = beside(i, len(others))
            values = {"y": of_pair["mean"].tolist(), "low": of_pair["low"].tolist(), "high": of_pair["high"].tolist()}
            series.append(
                {"label": f"minus {other}", "x": [places.index(t) + aside for t in of_pair["task"]], **values}
            )
        names = [place if place == "Avg." else task_label(TASKS[place]) for place in places]
        title = one if pairs["model"].nunique() == 1 else f"{one} ({encoder_title(model)})"
        panels.append({"title": title, "names": names, "bounds": [], "series": series})
    note = f"Mean paired difference and its {LEVEL:.0%} interval over seeds; right of 0 LoRA is higher."
    return figure("LoRA against the other methods, in pairs of one seed", note, "intervals", "points", panels)


def figure(
    title: str, note: str, kind: str, x: str, panels: Sequence[Mapping[str, Any]], log_x: bool = False
) -> Figure | None:
    """A figure with rounded values; None without panels, since nothing was measured."""
    if not panels:
        return None
    plain = {"title": title, "note": note, "kind": kind, "x": x, "log_x": log_x, "panels": list(panels)}
    return rounded(plain)
