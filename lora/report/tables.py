"""The layouts of the tables: from one row per cell to texts. Uses neither torch nor configurations."""

import math
from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.runs import ROW, in_order
from lora.report.titles import adapted, human_count, task_label


def cell_text(row: pd.Series, with_mean: bool = False) -> str:
    """`83.4 ±0.5`: the median and standard deviation over seeds; `(2/3)` if seeds are missing; `-` if all are.

    `with_mean` adds `(mean 83.2)`, whose differences are those of the verdicts.
    `(1 of 5 collapsed)` if a run predicts the same for every dev example (`lora.records.predictions`).
    """
    if row["n"] == 0:
        return "-"
    spread = f" ±{row['std']:.1f}" if row["n"] > 1 else ""
    count = f" ({row['n']:.0f}/{row['planned']:.0f})" if row["n"] < row["planned"] else ""
    mean = f" (mean {row['mean']:.1f})" if with_mean and row["n"] > 1 else ""
    return f"{row['median']:.1f}{spread}{mean}{count}{collapsed_text(int(row['collapsed']), int(row['n']))}"


def collapsed_text(collapsed: int, n: int) -> str:
    """What a cell adds to its number if some of its n runs collapsed."""
    return f" ({collapsed} of {n} collapsed)" if collapsed else ""


def number(value: float, form: str = ".1f") -> str:
    return "-" if pd.isna(value) else f"{value:{form}}"


def table2(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 2: methods by tasks, with trainable parameters, seeds and the average over tasks; one model below another.

    The average is the plain mean of the tasks' medians, as in the paper; `-` if a task is missing.
    """
    tasks = in_order(summary)
    shown = [column for column in ("model", "protocol") if summary[column].nunique() > 1]
    lines = []
    for (model, protocol, _, _, label), group in summary.groupby(ROW, sort=False):
        by_task = group.set_index("task")
        names = {"model": model, "protocol": protocol}
        line = {column.capitalize(): names[column] for column in shown}
        line |= {"Method": label, "Trainable": trainable_text(group), "Head": head_text(group)}
        line |= {"Seeds": seeds_text(group)}
        lines.append(line | task_cells(by_task, tasks))
    return pd.DataFrame(lines)


def trainable_text(group: pd.DataFrame) -> str:
    values = group["trainable_method"].dropna()
    return human_count(float(values.iloc[0])) if len(values) else "-"


def head_text(group: pd.DataFrame) -> str:
    """Number of trainable parameters in the head: `149k`; a range if it depends on the tasks' numbers of labels."""
    values = group["trainable_head"].dropna().astype(float)
    ends = (values.min(), values.max()) if len(values) else ()
    texts = dict.fromkeys(f"{end / 1e3:.0f}k" if end < 999_500 else human_count(end) for end in ends) or ["-"]
    return " to ".join(texts)


def seeds_text(group: pd.DataFrame) -> str:
    """Number of runs in the cells of a line: `5`, or `3 to 5`."""
    low, high = group["n"].min(), group["n"].max()
    return f"{high}" if low == high else f"{low} to {high}"


def task_cells(by_task: pd.DataFrame, tasks: Sequence[str], with_mean: bool = False) -> dict[str, str]:
    """One cell per task, and the average of several tasks. `with_mean`: see `cell_text`."""
    there = {task: cell_text(by_task.loc[task], with_mean) for task in tasks if task in by_task.index}
    line = {task_label(TASKS[task]): there.get(task, "-") for task in tasks}
    if len(tasks) > 1:
        line["Avg."] = number(average(by_task["median"], tasks))
    return line


def average(medians: pd.Series, tasks: Sequence[str]) -> float:
    """The plain mean over tasks; NaN if one is missing."""
    values = medians.reindex(tasks)
    return values.mean() if values.notna().all() else math.nan


def beside_paper(summary: pd.DataFrame, paper: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Each cell next to that of the published row that its row corresponds to, with averages over our tasks.

    The column of differences exists only if every task was trained on all of its rows.

    Args:
        paper: The published cells: model, method, trainable_params, task, value, std.
        rows: The published row that each of ours corresponds to: model (`*`: any other), slug, protocol (`*`: any),
            paper_model, paper_method, paper_trainable.
    """
    tasks, lines = in_order(summary), []
    for (model, protocol, slug, _, label), group in summary.groupby(ROW, sort=False):
        fits = rows[(rows["slug"] == slug) & rows["protocol"].isin([protocol, "*"]) & rows["model"].isin([model, "*"])]
        if not len(fits):
            continue
        row = fits.sort_values("model", ascending=False).iloc[0]  # `*` comes before any name
        names = row[["paper_model", "paper_method", "paper_trainable"]].tolist()
        cells = paper[paper[["model", "method", "trainable_params"]].eq(names).all(axis=1)].set_index("task")
        by_task, printed = group.set_index("task"), {}
        start = {"Model": model} if summary["model"].nunique() > 1 else {}
        found = []
        for task in tasks:
            cell = cells.loc[TASKS[task].title] if TASKS[task].title in cells.index else None
            printed[task] = math.nan if cell is None else cell["value"]
            if task in by_task.index:
                ours = by_task.loc[task]
                theirs = "-" if cell is None else f"{cell['value']}" + f" ±{cell['std']}" * pd.notna(cell["std"])
                values = cell_text(ours), f"{ours['n']:.0f}", theirs, ours["median"] - printed[task]
                found.append((task_label(TASKS[task]), *values))
        if len(tasks) > 1:
            ours, theirs = average(by_task["median"], tasks), pd.Series(printed).mean(skipna=False)
            found.append(("Avg.", number(ours), seeds_text(group), number(theirs), ours - theirs))
        for task, ours, n, theirs, difference in found:
            line = {"Method": label, "Task": task, "Ours": ours, "n": n, "Published": theirs}
            line |= {"Difference": number(difference, "+.1f"), "Published row": " ".join(names)}
            lines.append(start | line)
    table, whole = pd.DataFrame(lines), summary["kind"].eq("whole").all()
    return table if whole or not len(table) else table.drop(columns="Difference")


def table5(summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 5, transposed: target sets by tasks, each at the rank that gives the same number of parameters.

    Args:
        paper: The published cells (method, task, value), for columns next to ours.
    """
    tasks, lines = in_order(summary), []
    of_paper = paper_cells(paper)
    for _, group in summary.groupby(["slug", "label"], sort=False):
        targets, rank = adapted(group.iloc[0])
        line = {"Adapted": targets, "Rank": str(rank), "Trainable": trainable_text(group), "Seeds": seeds_text(group)}
        line |= task_cells(group.set_index("task"), tasks, with_mean=True)
        lines.append(line | {task: number(cells.get((targets, rank), math.nan)) for task, cells in of_paper.items()})
    return pd.DataFrame(lines)


def paper_cells(paper: pd.DataFrame | None) -> dict[str, dict[tuple[str, int], float]]:
    """`MNLI-m (paper)` -> target set and rank, as `adapted` has them -> the published value."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for row in () if paper is None else paper.itertuples():
        targets, rank = row.method.removeprefix("LoRA ").split(" r=")
        task = row.task.replace("MultiNLI-matched", "MNLI-m")
        found.setdefault(f"{task} (paper)", {})[targets.replace(",", ", "), int(rank)] = row.value
    return found


def table6(summary: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 6: tasks and target sets by ranks.

    Args:
        paper: The published cells, as in `table5`, for rows below ours.
    """
    found = summary.assign(lora=[adapted(row) for row in summary.itertuples()])
    ranks, lines = sorted({rank for _, rank in found["lora"]}), []
    for task in in_order(summary):
        rows = {row["lora"]: row for _, row in found[found["task"] == task].iterrows()}
        for targets in dict.fromkeys(targets for targets, _ in rows):
            line = {"Task": task_label(TASKS[task]), "Adapted": targets}
            lines.append(
                line
                | {
                    f"r = {r}": cell_text(rows[targets, r], with_mean=True) if (targets, r) in rows else "-"
                    for r in ranks
                }
            )
    for task, cells in paper_cells(paper).items():
        printed = {targets for targets, _ in cells}
        for targets in dict.fromkeys(targets for targets, _ in found["lora"] if targets in printed):
            published = {f"r = {r}": number(cells.get((targets, r), math.nan)) for r in ranks}
            lines.append({"Task": task, "Adapted": targets} | published)
    return pd.DataFrame(lines)
