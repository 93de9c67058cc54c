"""Tables from a frame of runs. Neither torch nor configuration is known here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lora.tasks import TASKS, Task

METRIC_SHORT = {"accuracy": "acc.", "matthews": "Matthews", "pearson": "Pearson"}
METHOD_TITLES = {  # in the tables' order
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "adapterdrop": "AdapterDrop",
    "houlsby": "Houlsby adapters",
    "pfeiffer": "Pfeiffer adapters",
    "lora": "LoRA",
}
CELL = ["model", "protocol", "slug", "method", "task"]  # what the seeds of one cell share
NOT_GLUE = (
    "**Not GLUE.** The tasks and the encoder are the small embedded ones: these numbers show the methods at work "
    "and are not comparable with the paper's."
)


@dataclass(frozen=True)
class Planned:
    """What a table has room for: a cell that is expected, trained or not."""

    model: str
    protocol: str
    slug: str
    method: str
    task: str
    seed: int


def summarise(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per model, protocol, method and task that is expected, from its seeds.

    Returns: Columns model, protocol, slug, method, task, n, planned, median, mean, std (of `best`, over seeds, ddof 1),
        min, max, last_median, trainable_method, seconds (mean), train_rows, is_part; NaN where nothing was measured.
        Metrics are in percent.
    """
    rows = []
    expected = pd.DataFrame([vars(cell) for cell in planned])
    for key, group in expected.groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        runs = frame
        for column, value in cell.items():
            runs = runs[runs[column] == value] if len(runs) else runs
        runs = runs[runs["seed"].isin(group["seed"])] if len(runs) else runs
        best = 100 * runs["best"].dropna() if len(runs) else pd.Series(dtype=float)
        last = 100 * runs["last"].dropna() if len(runs) else best
        rows.append(
            {
                **cell,
                "n": len(best),
                "planned": len(group),
                "median": best.median(),
                "mean": best.mean(),
                "std": best.std(ddof=1),
                "min": best.min(),
                "max": best.max(),
                "last_median": last.median(),
                "trainable_method": runs["trainable_method"].iloc[0] if len(runs) else None,
                "seconds": runs["seconds"].mean() if len(runs) else math.nan,
                "train_rows": runs["train_rows"].iloc[0] if len(runs) else None,
                "is_part": bool(runs["is_part"].any()) if len(runs) else False,
            }
        )
    return pd.DataFrame(rows).astype({"trainable_method": "Int64", "train_rows": "Int64"})


def method_label(slug: str, method: str) -> str:
    detail = slug.partition("-")[2]
    return METHOD_TITLES[method] + (f" ({detail.replace('-', ', ')})" if detail else "")


def task_label(task: Task) -> str:
    return f"{task.title} ({METRIC_SHORT[task.metric]})"


def cell_text(row: pd.Series) -> str:
    """`83.4 ±0.5`: the median over seeds and the standard deviation; `(2/3)` where seeds are missing; `-` for none."""
    if row["n"] == 0:
        return "-"
    spread = f" ±{row['std']:.1f}" if row["n"] > 1 else ""
    count = f" ({row['n']:.0f}/{row['planned']:.0f})" if row["n"] < row["planned"] else ""
    return f"{row['median']:.1f}{spread}{count}"


def table2(summary: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks, the average over tasks, and what trains, one model below another: Table 2's layout.

    The average is the plain mean of the tasks' medians, as the paper's; `-` where a task is missing.
    """
    tasks = [task for task in TASKS if task in set(summary["task"])]
    shown = [column for column in ("model", "protocol") if summary[column].nunique() > 1]
    lines = []
    for (model, protocol, slug, method), group in summary.groupby(CELL[:-1], sort=False):
        by_task = group.set_index("task")
        trainable = group["trainable_method"].dropna()
        names = {"model": model, "protocol": protocol}
        line = {column.capitalize(): names[column] for column in shown}
        line |= {
            "Method": method_label(slug, method),
            "Trainable": human_count(float(trainable.iloc[0])) if len(trainable) else "-",
        }
        for task in tasks:
            line[task_label(TASKS[task])] = cell_text(by_task.loc[task]) if task in by_task.index else "-"
        medians = by_task["median"].reindex(tasks)
        line["Avg."] = f"{medians.mean():.1f}" if medians.notna().all() else "-"
        lines.append(line)
    return pd.DataFrame(lines)


def human_count(value: float) -> str:
    """Parameters as the paper prints them: 0.3M, 125.0M; below 0.1M in thousands."""
    return f"{value / 1e6:.1f}M" if value >= 99_500 else f"{value / 1e3:.0f}k"


def published(paper: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The paper's cells for the tasks at hand, in the layout of `table2`."""
    lines = []
    for (model, method, trainable), group in paper.groupby(["model", "method", "trainable_params"], sort=False):
        values = group.set_index("task")
        line = {"Model": model, "Method": method, "Trainable": trainable}
        for task in tasks:
            title = TASKS[task].title
            if title in values.index:
                value = values.loc[title]
                line[task_label(TASKS[task])] = f"{value['value']}" + (
                    "" if pd.isna(value["std"]) else f" ±{value['std']}"
                )
            else:
                line[task_label(TASKS[task])] = "-"
        lines.append(line)
    return pd.DataFrame(lines)


def against_reference(ours: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Whether each cell agrees with the reference run: the ranges of the two runs' seeds overlap.

    Returns: Columns Method, Task, This run, Reference, Difference (of medians), Agrees (yes, no, or - without values).
    """
    merged = ours.merge(reference, on=CELL, how="left", suffixes=("", "_reference"))
    lines = []
    for _, row in merged.iterrows():
        there = row["n"] > 0 and row.get("n_reference", 0) > 0
        overlap = there and row["min"] <= row["max_reference"] and row["min_reference"] <= row["max"]
        lines.append(
            {
                "Method": method_label(row["slug"], row["method"]),
                "Task": row["task"],
                "This run": span(row["median"], row["min"], row["max"]),
                "Reference": span(row["median_reference"], row["min_reference"], row["max_reference"]),
                "Difference": f"{row['median'] - row['median_reference']:+.1f}" if there else "-",
                "Agrees": ("yes" if overlap else "no") if there else "-",
            }
        )
    return pd.DataFrame(lines)


def span(median: float, low: float, high: float) -> str:
    return "-" if pd.isna(median) else f"{median:.1f} ({low:.1f} to {high:.1f})"


def markdown(table: pd.DataFrame) -> str:
    """GitHub's table syntax; every column but the first two is aligned right."""
    lines = ["| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "|".join(" --- " if i < 1 else " ---: " for i in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"
