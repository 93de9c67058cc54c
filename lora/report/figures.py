"""The data of each figure, stored next to the picture. Tests and rebuilds compare the data.

A figure is a mapping: `title`, `note`, `kind` (`lines`, `intervals`, `heat`, `scatter`), `x` (a label), `log_x`, and
`panels`, each with a title, a label `y` and its series; `x_names` are the names of the places 0, 1, ... on x. Values
have 6 significant digits; absent values are null.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from lora.cost.efficiency.summary import FORM_TITLES as EFFICIENCY_TITLES
from lora.cost.efficiency.summary import plan_title
from lora.files import rounded
from lora.report.runs import ROW, START_TITLES, encoder_title, human_count, row_names, task_labels, task_title, tasks_of
from lora.report.stats import LEVEL, by_seed, mean_interval
from lora.report.tables import paper_cells

Figure = dict[str, Any]
ADDED = ("houlsby", "pfeiffer", "lora", "lora_merged")  # served forms that may add latency
PAPER_SERIES = "LoRA in the paper (RoBERTa-large)"
SPREAD = 0.18  # between the intervals of one line, in lines
COSTS = {"step_ms": "time of a step, ms", "checkpoint_bytes": "size on disk, bytes"}  # medians over runs
BOUNDED = f"Mean paired differences, with {LEVEL:.0%} intervals over seeds. Dotted: the bound of the paper's claim."


def offset(place: int, count: int) -> float:
    """How far one of the intervals of a line stands from its middle, in lines."""
    return SPREAD * (place - (count - 1) / 2)


def series_of(
    label: str,
    points: Iterable[Sequence[float | None]],
    aside: float = 0,
    keys: Sequence[str] = ("x", "y", "low", "high"),
) -> dict[str, Any]:
    """A series from its points, each of which has a value per key. `aside`: added to every x."""
    points = list(points)
    columns = {key: [point[i] for point in points] for i, key in enumerate(keys)}
    return {"label": label, **columns, "x": [x + aside for x in columns["x"]]}


def by_task(pairs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The label of each task -> its rows of `lora.report.comparisons.method_pairs`, without those of the average."""
    labels = dict(zip(pairs["task"], pairs["place"], strict=True))
    return {labels[task]: pairs[pairs["task"] == task] for task in tasks_of(pairs) if task != "Avg."}


def on_lines(groups: Mapping[str, pd.DataFrame], column: str, lines: Sequence[Hashable]) -> list[dict[str, Any]]:
    """A series per group (label -> rows of `lora.report.stats.all_pairs`), side by side on the lines of a panel.
    `lines`: the values of `column`, from the first line to the last."""
    series = []
    for place, (label, rows) in enumerate(groups.items()):
        points = sorted(zip(rows[column].map(lines.index), rows["mean"], rows["low"], rows["high"], strict=True))
        series.append(series_of(label, points, offset(place, len(groups))))
    return series


def minus_base(
    title: str,
    pairs: pd.DataFrame,
    compared: Mapping[str, tuple[tuple[str, int], tuple[str, int]]],
    paper: pd.DataFrame | None,
    bound: float,
) -> Figure | None:
    """Tables 5 and 6 as figures: LoRA minus LoRA on other matrices or of another rank, here and in the paper.

    Args:
        pairs: `lora.report.comparisons.minus` of the runs.
        compared: Label -> target set and rank of a row, and of what it is compared with.
        bound: Of the claim about the table.
    """
    series = on_lines(by_task(pairs.dropna(subset=["mean"])), "one", list(compared))
    printed = [
        (line, cells[one] - cells[other])
        for line, (one, other) in enumerate(compared.values())
        for cells in paper_cells(paper).values()
        if {one, other} <= cells.keys()
    ]
    if paper is not None and printed:
        label = f"the paper ({', '.join(paper['task'].unique())})"
        series.append(series_of(label, printed, keys=("x", "y")))
    names = [f"{targets}, r = {rank}" for (targets, rank), _ in compared.values()]
    panel = {"title": "", "names": names, "bounds": [bound] * len(names), "series": series}
    return figure(title, BOUNDED, "intervals", "points", [panel] if series and names else [])


def by_parameters(runs: pd.DataFrame) -> Figure | None:
    """Trainable parameters against the average score over tasks: one point per method that has every task. A panel for
    each of a user's own tasks. Each point has `COSTS` too: a reader of the page picks two of the `axes`."""
    panels = []
    is_own = runs["kind"].eq("own").any()
    for (model, *_), of_model in runs.groupby(["model", "task"] if is_own else ["model"], sort=False):
        tasks, series = task_labels(of_model), []
        rows = of_model.assign(label=row_names(of_model, ["protocol"]), difference=100 * of_model["best"])
        for (*_, label), group in rows.groupby(ROW, sort=False):
            score = mean_interval(by_seed(group, [*tasks]).to_numpy(float))
            count = group["trainable_method"].dropna()
            if score.n and len(count):
                costs = [middle if pd.notna(middle) else None for middle in group[[*COSTS]].astype(float).median()]
                point = (int(count.iloc[0]), score.mean, score.low, score.high, *costs)
                series.append(series_of(label, [point], keys=("x", "y", "low", "high", *COSTS)))
        if series:
            y = tasks[tasks_of(of_model)[0]] if is_own else f"average of {', '.join(map(task_title, tasks))}"
            panels.append({"title": encoder_title(model), "y": y, "series": series})
    note = (
        f"Mean over seeds of the average over tasks, with its {LEVEL:.0%} interval. Excludes the head. The time of a "
        f"step is the median over runs, each on the machine and under the load that it had."
    )
    title = "Trainable parameters against the average score"
    x = "trainable parameters"
    drawn = figure(title, note, "lines", x, panels, log_x=True)
    return drawn and drawn | {"axes": {"y": "score", "x": x} | COSTS}


def minus_lora(runs: pd.DataFrame, from_lora: pd.DataFrame) -> Figure | None:
    """Each method minus LoRA (`lora.report.comparisons.minus`), in the order of their trainable parameters."""
    counts = runs[runs["label"].isin(from_lora["one"])].groupby("label", sort=False)["trainable_method"].first()
    counts = counts.sort_values(ascending=False, kind="stable")
    series = on_lines(by_task(from_lora), "one", list(counts.index))
    names = [f"{label}: {human_count(int(count))}" for label, count in counts.items()]
    panels = [{"title": "", "names": names, "bounds": [], "series": series}] if series else []
    note = (
        f"Mean paired differences from LoRA, with {LEVEL:.0%} intervals over seeds. Right of 0 the method is higher. "
        f"The parameters exclude the head's."
    )
    title = "LoRA's successors against LoRA, by trainable parameters"
    return figure(title, note, "intervals", "points", panels)


def slopes(runs: pd.DataFrame, paper: pd.DataFrame | None) -> Figure | None:
    """Section 5.2 as a figure: the score of each method with both starts, here and in the paper, task by task."""
    cells = {} if paper is None else paper.set_index(["method", "task"])["value"].to_dict()
    methods, panels = list(dict.fromkeys(runs["label"])), []
    names = [f"from {title}" for title in START_TITLES.values()]
    for task, label in task_labels(runs).items():
        series = []
        for place, method in enumerate(methods):
            cell = runs[(runs["task"] == task) & (runs["label"] == method)]
            scores = [100 * cell.loc[cell["start"] == start, "best"].dropna().to_numpy(float) for start in START_TITLES]
            ends = [mean_interval(values) for values in scores]
            if all(end.n for end in ends):
                points = [(i, end.mean, end.low, end.high) for i, end in enumerate(ends)]
                series.append(series_of(method, points, 0.2 * offset(place, len(methods))))
        printed = [cells.get((method, task_title(task))) for method in ("LoRA dagger", "LoRA")]
        if series and None not in printed:
            series.append(series_of(PAPER_SERIES, [(i, value, None, None) for i, value in enumerate(printed)]))
        if series:
            about = {"title": task_title(task), "y": label, "x_names": names}
            panels.append({**about, "series": series})
    note = f"Means over seeds, with {LEVEL:.0%} intervals. The paper's two rows also differ in batch and length."
    return figure("Section 5.2: what an MNLI start gives", note, "lines", "", panels)


def latencies(summaries: Iterable[Mapping[str, Any]], paper: pd.DataFrame) -> Figure | None:
    """Table 1 as a figure: the latency that each method adds to the untouched encoder, here and in the paper."""
    passes = paper[paper["metric"] == "latency, ms"]
    batches = passes["quantity"].str.extract(r"batch (\d+), seq len (\d+)")
    printed = passes.assign(shape=batches[0] + "x" + batches[1], ms=passes["value"].astype(float))
    ms = printed.set_index(["method", "shape"])["ms"].to_dict()

    def more(ratio: float | None) -> float | None:
        return None if ratio is None else 100 * (ratio - 1)

    panels = []
    for summary in summaries:
        plan = summary["about"]["plan"]
        series = []
        shapes = plan["latency_shapes"]
        methods = [name for name in ADDED if name in plan["methods"]]
        for place, name in enumerate(methods):
            ratios = summary[name]["to_base"] or {}
            if ends := ratios.get("latency_ms_interval"):
                added = [(ratios["latency_ms"][shape], *(ends[shape] or (None, None))) for shape in shapes]
                points = [(i, *map(more, of_shape)) for i, of_shape in enumerate(added)]
                series.append(series_of(EFFICIENCY_TITLES[name], points, offset(place, len(methods))))
        for name in ("AdapterH", "AdapterL") if series else ():
            there = [(i, ms[name, shape], shape) for i, shape in enumerate(shapes) if (name, shape) in ms]
            points = [(i, more(value / ms["Fine-Tune/LoRA", shape])) for i, value, shape in there]
            series.append(series_of(f"the paper: {name} (GPT-2 medium)", points, keys=("x", "y")))
        names = [f"{shape.replace('x', ' x ')} tokens" for shape in shapes]
        panels += [{"title": plan_title(plan), "names": names, "bounds": [], "series": series}] if series else []
    note = f"Medians of the rounds' ratios to the untouched encoder, with {LEVEL:.0%} intervals."
    unit = "% more than the untouched encoder"
    return figure("Table 1: the latency that a method adds", note, "intervals", unit, panels)


def learning_curves(runs: pd.DataFrame, curves: pd.DataFrame, what: str = "") -> Figure | None:
    """The metric by epoch, per task; the band is the range of the seeds. `what`: suffix of the title."""
    panels = bands(runs.assign(label=row_names(runs)).merge(curves, on="run_id"), "epoch", "value", "median")
    note = "Median over seeds; band: lowest and highest seed."
    return figure(f"Learning curves{what}", note, "lines", "epoch", panels)


def by_rate(rows: pd.DataFrame, score: str | None) -> Figure | None:
    """The score by learning rate, per task; the band is the range of the seeds that tried a rate.

    Args:
        score: What `best` holds, where each task has rates of its own. They are near its best, and a collapsed run
            would squeeze them: its rate is not drawn.
    """
    note = "Mean over the seeds that tried a rate; band: lowest and highest. "
    note += score or "Each run's best epoch."
    if score and rows["collapsed"].any():
        rows = rows[~rows.groupby(["label", "task", "lr"])["collapsed"].transform("any")]
        note += " Not drawn: rates at which a run collapsed."
    panels = bands(rows, "lr", "best", "mean")
    return figure("Score by learning rate", note, "lines", "learning rate", panels, log_x=True)


def bands(rows: pd.DataFrame, x: str, y: str, middle: Literal["mean", "median"]) -> list[dict[str, Any]]:
    """A panel per task with a line per label: the middle of a metric by the column `x`, and its range."""
    panels = []
    for task, title in task_labels(rows).items():
        series = []
        for label, of_label in rows[rows["task"] == task].groupby("label", sort=False):
            values = of_label.groupby(x)[y].agg([middle, "min", "max"]) * 100
            series.append(series_of(label, values.itertuples(name=None)))
        panels.append({"title": task_title(task), "y": title, "band": True, "series": series})
    return panels


def forest(pairs: pd.DataFrame) -> Figure | None:
    """LoRA minus each other method, task by task and on average."""
    panels = []
    for (model, one), rows in pairs.dropna(subset=["mean"]).groupby(["model", "one"], sort=False):
        if not one.startswith("LoRA"):
            continue
        places = list(dict.fromkeys(rows["place"]))
        others = {f"minus {other}": of_pair for other, of_pair in rows.groupby("other", sort=False)}
        series = on_lines(others, "place", places)
        title = one if pairs["model"].nunique() == 1 else f"{one} ({encoder_title(model)})"
        panels.append({"title": title, "names": places, "bounds": [], "series": series})
    note = f"Mean paired difference and its {LEVEL:.0%} interval over seeds; right of 0 LoRA is higher."
    return figure("LoRA against the other methods, in pairs of one seed", note, "intervals", "points", panels)


def figure(
    title: str, note: str, kind: str, x: str, panels: Sequence[Mapping[str, Any]], log_x: bool = False
) -> Figure | None:
    """A figure with rounded values; None without panels, since nothing was measured."""
    if not panels:
        return None
    return rounded({"title": title, "note": note, "kind": kind, "x": x, "log_x": log_x, "panels": list(panels)})


def forms(figure: Figure) -> list[str]:
    """The suffixes of a figure's pictures: the findings have two for narrow screens too."""
    return ["png", "svg", *(["narrow.png", "narrow.svg"] if figure["kind"] == "findings" else [])]
