"""The data of each figure, stored next to the picture. Tests and rebuilds compare the data.

A figure is a mapping: `title`, `note`, `kind` (`lines`, `intervals`, `heat`), `x` (a label), `log_x`, and
`panels`, each with a title, a label `y` and its series; `x_names` are the names of the places 0, 1, ... on x. Values
have 6 significant digits; absent values are null.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora.cost.efficiency.summary import MODEL_TITLES
from lora.cost.efficiency.summary import TITLES as EFFICIENCY_TITLES
from lora.data.tasks import TASKS
from lora.files import rounded
from lora.report.runs import ROW, in_order, told_apart
from lora.report.stats import LEVEL, by_seed, mean_interval
from lora.report.titles import START_TITLES, adapted, encoder_title, task_label

Figure = dict[str, Any]
ADDED = ("houlsby", "pfeiffer", "lora", "lora_merged")  # served forms that may add latency
PAPER = "LoRA in the paper (RoBERTa-large)"
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


def by_parameters(runs: pd.DataFrame) -> Figure | None:
    """Trainable parameters against the average score over tasks: one point per method that has every task."""
    panels = []
    for model, of_model in runs.groupby("model", sort=False):
        tasks, series = in_order(of_model), []
        rows = of_model.assign(label=told_apart(of_model, ["protocol"]), difference=100 * of_model["best"])
        for (*_, label), group in rows.groupby(ROW, sort=False):
            score, count = mean_interval(by_seed(group, tasks).to_numpy(float)), group["trainable_method"].dropna()
            if score.n and len(count):
                place = {"x": [int(count.iloc[0])], "y": [score.mean], "low": [score.low], "high": [score.high]}
                series.append({"label": label, **place})
        if series:
            titles = ", ".join(TASKS[task].title for task in tasks)
            panels.append({"title": encoder_title(model), "y": f"average of {titles}", "series": series})
    note = f"Mean over seeds of the average over tasks, with its {LEVEL:.0%} interval. Excludes the head."
    return figure(
        "Trainable parameters against the average score", note, "lines", "trainable parameters", panels, log_x=True
    )


def slopes(runs: pd.DataFrame, paper: pd.DataFrame | None) -> Figure | None:
    """Section 5.2 as a figure: the score of each method with both starts, here and in the paper, task by task.

    Args:
        paper: The published cells of LoRA with an MNLI start, and without it ("LoRA dagger").
    """
    cells = {} if paper is None else paper.set_index(["method", "task"])["value"].to_dict()
    methods, panels = list(dict.fromkeys(runs["label"])), []
    for task in in_order(runs):
        series: list[dict[str, Any]] = []
        for place, method in enumerate(methods):
            cell = runs[(runs["task"] == task) & (runs["label"] == method)]
            scores = [100 * cell.loc[cell["start"] == start, "best"].dropna().to_numpy(float) for start in START_TITLES]
            ends = [mean_interval(values) for values in scores]
            if all(end.n for end in ends):
                values = {"y": [end.mean for end in ends], "low": [end.low for end in ends]}
                x = [i + 0.2 * beside(place, len(methods)) for i in range(len(ends))]
                series.append({"label": method, "x": x, **values, "high": [end.high for end in ends]})
        printed = [cells.get((method, TASKS[task].title)) for method in ("LoRA dagger", "LoRA")]
        if series and None not in printed:
            empty = [None] * len(printed)
            series.append({"label": PAPER, "x": [*range(len(printed))], "y": printed, "low": empty, "high": empty})
        if series:
            names = [f"from {title}" for title in START_TITLES.values()]
            panels.append(
                {"title": TASKS[task].title, "y": task_label(TASKS[task]), "x_names": names, "series": series}
            )
    note = f"Means over seeds, with {LEVEL:.0%} intervals. The paper's two rows also differ in batch and length."
    return figure("Section 5.2: what an MNLI start gives", note, "lines", "", panels)


def latencies(summaries: Iterable[Mapping[str, Any]], paper: pd.DataFrame) -> Figure | None:
    """Table 1 as a figure: the latency that each method adds to the untouched encoder, here and in the paper.

    Args:
        summaries: Of `python -m lora efficiency`.
        paper: The published latencies, on GPT-2 medium.
    """
    passes = paper[paper["metric"] == "latency, ms"]
    batches = passes["quantity"].str.extract(r"batch (\d+), seq len (\d+)")
    printed = passes.assign(shape=batches[0] + "x" + batches[1], ms=passes["value"].astype(float))
    ms = printed.set_index(["method", "shape"])["ms"].to_dict()
    panels = []
    for summary in summaries:
        plan, series = summary["about"]["plan"], list[dict[str, Any]]()
        shapes, methods = plan["latency_shapes"], [name for name in ADDED if name in plan["methods"]]
        for place, name in enumerate(methods):
            ratios = summary[name]["to_base"] or {}
            if not ratios.get("latency_ms_interval"):
                continue
            ends = [ratios["latency_ms_interval"][shape] or (None, None) for shape in shapes]
            added = {"y": [ratios["latency_ms"][shape] for shape in shapes]}
            added |= {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
            values = {key: [None if one is None else 100 * (one - 1) for one in ones] for key, ones in added.items()}
            x = [i + beside(place, len(methods)) for i in range(len(shapes))]
            series.append({"label": EFFICIENCY_TITLES[name], "x": x, **values})
        for name in ("AdapterH", "AdapterL"):
            there = [(i, shape) for i, shape in enumerate(shapes) if (name, shape) in ms]
            more = [100 * (ms[name, shape] / ms["Fine-Tune/LoRA", shape] - 1) for _, shape in there]
            series.append({"label": f"the paper: {name} (GPT-2 medium)", "x": [i for i, _ in there], "y": more})
        names = [f"{shape.replace('x', ' x ')} tokens" for shape in shapes]
        title = f"{MODEL_TITLES[plan['model']]}, {plan['kernels']} kernels, {plan['precision']}"
        panels.append({"title": title, "names": names, "bounds": [], "series": series})
    note = f"Medians of the rounds' ratios to the untouched encoder, with {LEVEL:.0%} intervals."
    unit = "% more than the untouched encoder"
    return figure("Table 1: the latency that a method adds", note, "intervals", unit, panels)


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
