"""The layouts of the tables of cells: from `lora.report.runs.summarise` to values."""

import math
from collections.abc import Mapping

import pandas as pd

from lora.report.runs import ROW, cell_key, human_count, targets_and_ranks, task_labels, task_title, tasks_of
from lora.report.stats import mean_interval
from lora.table import Cell, Value, number

Paper = dict[str, dict[tuple[str, int], float]]


def score(row: pd.Series, with_mean: bool = False) -> Cell:
    """`83.4 ±0.5`: the median and standard deviation over seeds; `(2/3)` if seeds are missing; `-` if all are.
    `with_mean` adds `(mean 83.2)`, whose differences are those of the verdicts."""
    if row["n"] == 0:
        return "-"
    spread = f" ±{row['std']:.1f}" if row["n"] > 1 else ""
    count = f"{row['n']:.0f}/{row['planned']:.0f}" if row["n"] < row["planned"] else ""
    mean = f"mean {row['mean']:.1f}" if with_mean and row["n"] > 1 else ""
    remarks = count, collapsed_text(int(row["collapsed"]), int(row["planned"]))  # some may have no score
    return Value(row["median"], f"{row['median']:.1f}{spread}", remarks, mean, cell=cell_key(row))


def collapsed_text(collapsed: int, n: int) -> str:
    return f"{collapsed} of {n} collapsed" if collapsed else ""


def collapsed_among(runs: pd.DataFrame) -> str:
    """The end of a sentence about runs."""
    count = int(runs["collapsed"].sum())
    return f" ({count} of {len(runs)} runs collapsed)" if count else ""


def table2(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 2: methods by tasks, with trainable parameters, seeds and the average over tasks: the plain mean of their
    medians, as in the paper; `-` if a task is missing."""
    tasks, lines = task_labels(summary), []
    shown = [column for column in ("model", "protocol") if summary[column].nunique() > 1]
    for (*_, label), group in summary.groupby(ROW, sort=False):
        line = {column.capitalize(): group[column].iloc[0] for column in shown} | {"Method": label}
        heads = group["trainable_head"].dropna().astype(float)  # depends on the tasks' numbers of labels
        ends = (heads.min(), heads.max()) if len(heads) else ()
        texts = dict.fromkeys(f"{end / 1e3:.0f}k" if end < 999_500 else human_count(end) for end in ends)
        head = Value(heads.min(), " to ".join(texts)) if texts else "-"
        line |= {"Trainable": trainable_cell(group), "Head": head, "Seeds": seeds(group)}
        lines.append(line | task_cells(group, tasks))
    return pd.DataFrame(lines)


def trainable_cell(group: pd.DataFrame) -> Cell:
    counts = group["trainable_method"].dropna().astype(float)
    return Value(counts.iloc[0], human_count(counts.iloc[0])) if len(counts) else "-"


def rates_text(runs: pd.DataFrame) -> str:
    return " and ".join(f"{rate:g}" for rate in sorted(runs["lr"].dropna().unique())) or "-"


def seeds(group: pd.DataFrame) -> Value:
    """Number of runs in the cells of a line: `5`, or `3 to 5`."""
    least, most = int(group["n"].min()), int(group["n"].max())
    return Value(least, " to ".join(dict.fromkeys((f"{least}", f"{most}"))))


def task_cells(group: pd.DataFrame, tasks: Mapping[str, str], with_mean: bool = False) -> dict[str, Cell]:
    """One cell per task, and the average of several tasks unless they are a user's own, whose metrics may be unlike.
    `tasks`: task -> label; `with_mean`: see `score`."""
    cells = {row["task"]: score(row, with_mean) for _, row in group.iterrows()}
    line = {label: cells.get(task, "-") for task, label in tasks.items()}
    averaged = len(tasks) > 1 and not group["kind"].eq("own").any()
    mean = group.set_index("task")["median"].reindex([*tasks]).mean(skipna=False)
    return line | ({"Avg.": number(mean)} if averaged else {})


def with_paper(summary: pd.DataFrame, paper: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Table 2 with the published row of each method under ours, and its average over our tasks.

    Args:
        paper: The published cells: model, method, trainable_params, task, value, std.
        rows: The published row that each of ours corresponds to: model (`*`: any other), slug, protocol (`*`: any),
            paper_model, paper_method, paper_trainable.
    """
    table = table2(summary)
    tasks = task_labels(summary)
    lines = []
    groups = [group for _, group in summary.groupby(ROW, sort=False)]
    for line, group in zip(table.to_dict("records"), groups, strict=True):
        lines.append(line)
        ours = group.iloc[0]
        fits = rows[rows["slug"].eq(ours["slug"]) & rows["protocol"].isin([ours["protocol"], "*"])]
        fits = fits[fits["model"].isin([ours["model"], "*"])].sort_values("model", ascending=False)  # `*` is the last
        if len(fits):
            names = fits.iloc[0][["paper_model", "paper_method", "paper_trainable"]].tolist()
            cells = paper[paper[["model", "method", "trainable_params"]].eq(names).all(axis=1)].set_index("task")
            printed: dict[str, Cell] = {"Method": f"the paper: {names[0]} {names[1]}"}
            printed["Trainable"] = Value(1e6 * float(names[2].removesuffix("M")), names[2])
            for task in tasks_of(group):
                value, std = (cells[key].get(task_title(task), math.nan) for key in ("value", "std"))
                printed[tasks[task]] = (
                    "-" if pd.isna(value) else Value(value, f"{value}" if pd.isna(std) else f"{value} ±{std}")
                )
            printed["Avg."] = number(cells["value"].reindex([*map(task_title, tasks)]).mean(skipna=False))
            lines.append({name: printed.get(name, "") for name in table})
    return pd.DataFrame(lines)


def table5(runs: pd.DataFrame, summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 5, transposed: target sets by tasks, each at the rank that gives the same number of parameters, and the
    published cells in columns next to ours."""
    tasks = task_labels(summary)
    lines = []
    of_paper = paper_cells(paper)
    lora = targets_and_ranks(runs)
    for label, group in summary.groupby("label", sort=False):
        targets, rank = lora[label]
        line = {"Adapted": targets, "Rank": rank, "Trainable": trainable_cell(group), "Seeds": seeds(group)}
        line |= task_cells(group, tasks, with_mean=True)
        lines.append(line | {task: number(cells.get((targets, rank), math.nan)) for task, cells in of_paper.items()})
    return pd.DataFrame(lines)


def paper_cells(paper: pd.DataFrame | None) -> Paper:
    """`MNLI-m (paper)` -> target set and rank, as `targets_and_ranks` has them -> the published value."""
    cells: Paper = {}
    for row in () if paper is None else paper.itertuples():
        targets, rank = row.method.removeprefix("LoRA ").split(" r=")
        task = row.task.replace("MultiNLI-matched", "MNLI-m")
        cells.setdefault(f"{task} (paper)", {})[targets.replace(",", ", "), int(rank)] = row.value
    return cells


def table6(runs: pd.DataFrame, summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 6: tasks and target sets by ranks with what a doubling adds, and the published cells in rows below ours."""
    summary = summary.assign(lora=summary["label"].map(targets_and_ranks(runs)))
    ranks = sorted({rank for _, rank in summary["lora"]})
    sets = list(dict.fromkeys(name for name, _ in summary["lora"]))
    texts: dict[str, dict[tuple[str, int], Cell]] = {}
    for task, label in task_labels(summary).items():
        rows = summary[summary["task"] == task].iterrows()
        texts[label] = {row["lora"]: score(row, with_mean=True) for _, row in rows}
    for task, cells in paper_cells(paper).items():
        texts[task] = {key: number(value) for key, value in cells.items()}
    slopes = per_doubling(runs)
    lines = [
        {"Task": task, "Adapted": targets}
        | {f"r = {rank}": cells.get((targets, rank), "-") for rank in ranks}
        | {"Per doubling": slopes.get((task, targets), "-")}
        for task, cells in texts.items()
        for targets in sets
        if any(targets == name for name, _ in cells)
    ]
    return pd.DataFrame(lines)


def per_doubling(runs: pd.DataFrame) -> dict[tuple[str, str], Cell]:
    """(task label, target set) -> the slope of a seed's scores over log2 of the rank: the mean over seeds, with its
    interval. Seeds that lack a rank are excluded."""
    intervals = {}
    tasks = task_labels(runs)
    lora = runs["label"].map(targets_and_ranks(runs))
    rows = runs.assign(targets=lora.str[0], doublings=[math.log2(rank) for _, rank in lora])
    for (task, targets), of_set in rows.groupby(["task", "targets"], sort=False):
        scores = 100 * of_set.pivot(index="seed", columns="doublings", values="best").astype(float).dropna()
        centred = scores.columns.to_numpy(float) - scores.columns.to_numpy(float).mean()
        if len(centred) > 1:
            slopes = scores.to_numpy() @ centred / (centred @ centred)
            intervals[tasks[task], targets] = mean_interval(slopes).shown
    return intervals
