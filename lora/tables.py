"""Tables from a frame of runs. Neither torch nor configuration is known here."""

import math
import re
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
CELL = ["model", "protocol", "start", "slug", "method", "task"]  # what the seeds of one cell share
START_TITLES = {"pretrained": "pretrained", "mnli": "MNLI"}
TARGET_TITLES = {"q": "Wq", "k": "Wk", "v": "Wv", "o": "Wo"}
LORA_SLUG = re.compile(r"lora-([qkvo]+)-r(\d+)")
NOT_GLUE = (
    "**Not GLUE.** The tasks and the encoder are the small embedded ones: these numbers show the methods at work "
    "and are not comparable with the paper's."
)


@dataclass(frozen=True)
class Planned:
    """What a table has room for: a run that is expected, trained or not."""

    run_id: str
    model: str
    protocol: str
    start: str
    slug: str
    method: str
    task: str
    seed: int


def summarise(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per model, protocol, start, method and task that is expected, from its seeds.

    Returns: Columns model, protocol, start, slug, method, task, n, planned, median, mean, std (of `best`, over seeds,
        ddof 1), min, max, last_median, trainable_method, seconds (mean), train_rows, is_part; NaN where nothing was
        measured. Metrics are in percent.
    """
    rows = []
    expected = pd.DataFrame([vars(cell) for cell in planned])
    for key, group in expected.groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        runs = frame[frame["run_id"].isin(group["run_id"])] if len(frame) else frame
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
    tasks = in_order(summary)
    shown = [column for column in ("model", "protocol") if summary[column].nunique() > 1]
    lines = []
    for (model, protocol, slug, method), group in summary.groupby(["model", "protocol", "slug", "method"], sort=False):
        by_task = group.set_index("task")
        names = {"model": model, "protocol": protocol}
        line = {column.capitalize(): names[column] for column in shown}
        line |= {"Method": method_label(slug, method), "Trainable": trainable_text(group)}
        lines.append(line | task_cells(by_task, tasks))
    return pd.DataFrame(lines)


def in_order(summary: pd.DataFrame) -> list[str]:
    return [task for task in TASKS if task in set(summary["task"])]


def trainable_text(group: pd.DataFrame) -> str:
    values = group["trainable_method"].dropna()
    return human_count(float(values.iloc[0])) if len(values) else "-"


def task_cells(by_task: pd.DataFrame, tasks: Sequence[str]) -> dict[str, str]:
    """A cell per task, and with several tasks their average."""
    line = {task_label(TASKS[task]): cell_text(by_task.loc[task]) if task in by_task.index else "-" for task in tasks}
    if len(tasks) > 1:
        medians = by_task["median"].reindex(tasks)
        line["Avg."] = f"{medians.mean():.1f}" if medians.notna().all() else "-"
    return line


def table5(summary: pd.DataFrame) -> pd.DataFrame:
    """Target sets by tasks, at the rank that gives each the same number of parameters: Table 5, its columns as rows."""
    tasks, lines = in_order(summary), []
    for slug, group in summary.groupby("slug", sort=False):
        targets, rank = lora_of(slug)
        line = {"Adapted": targets, "Rank": rank, "Trainable": trainable_text(group)}
        lines.append(line | task_cells(group.set_index("task"), tasks))
    return pd.DataFrame(lines)


def table6(summary: pd.DataFrame) -> pd.DataFrame:
    """Tasks and target sets by ranks: Table 6."""
    found = summary.assign(lora=summary["slug"].map(lora_of))
    ranks, lines = sorted({rank for _, rank in found["lora"]}), []
    for task in in_order(summary):
        rows = {row["lora"]: row for _, row in found[found["task"] == task].iterrows()}
        for targets in dict.fromkeys(targets for targets, _ in rows):
            line = {"Task": task_label(TASKS[task]), "Adapted": targets}
            lines.append(
                line | {f"r = {r}": cell_text(rows[targets, r]) if (targets, r) in rows else "-" for r in ranks}
            )
    return pd.DataFrame(lines)


def lora_of(slug: str) -> tuple[str, int]:
    """The target set as the paper writes it, and the rank, of a LoRA cell that has no other options.

    Raises: ValueError: If the cell is of another kind.
    """
    match = LORA_SLUG.fullmatch(slug)
    if match is None:
        raise ValueError(f"{slug!r} does not name target sets of q, k, v, o at one rank")
    return ", ".join(TARGET_TITLES[target] for target in match[1]), int(match[2])


def start_table(frame: pd.DataFrame, summary: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """Tasks by where the modules start, and the difference in pairs of one seed.

    Returns: Columns Task, one per start, `MNLI - pretrained` (median of the seeds' differences), `Range` of these, and
        Pairs.
    """
    lines = []
    for task in in_order(summary):
        rows = summary[summary["task"] == task].set_index("start")
        line = {"Task": task_label(TASKS[task])}
        line |= {title: cell_text(rows.loc[start]) for start, title in START_TITLES.items()}
        by_seed = {
            start: {p.seed: p.run_id for p in planned if (p.task, p.start) == (task, start)} for start in rows.index
        }
        best = frame.set_index("run_id")["best"] if len(frame) else pd.Series(dtype=float)
        pairs = [
            100 * (best[child] - best[by_seed["pretrained"][seed]])
            for seed, child in by_seed["mnli"].items()
            if child in best.index and by_seed["pretrained"].get(seed) in best.index
        ]
        differences = pd.Series(pairs, dtype=float).dropna()
        there = len(differences) > 0
        line["MNLI - pretrained"] = f"{differences.median():+.1f}" if there else "-"
        line["Range"] = f"{differences.min():+.1f} to {differences.max():+.1f}" if there else "-"
        line["Pairs"] = str(len(differences))
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
