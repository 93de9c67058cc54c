"""The layouts of the tables: from one row per cell to texts. Uses neither torch nor configurations."""

import math
from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.cells import ROW, in_order
from lora.report.runs import Planned
from lora.report.stats import paired_differences
from lora.report.titles import LORA_SLUG, START_TITLES, adapted, human_count, lora_of, task_label


def cell_text(row: pd.Series) -> str:
    """`83.4 ±0.5`: the median and standard deviation over seeds; `(2/3)` if seeds are missing; `-` if all are.

    `(1 of 5 collapsed)` if a run predicts the same for every dev example (`lora.records.predictions`).
    """
    if row["n"] == 0:
        return "-"
    spread = f" ±{row['std']:.1f}" if row["n"] > 1 else ""
    count = f" ({row['n']:.0f}/{row['planned']:.0f})" if row["n"] < row["planned"] else ""
    return f"{row['median']:.1f}{spread}{count}{collapsed_text(int(row['collapsed']), int(row['n']))}"


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


def task_cells(by_task: pd.DataFrame, tasks: Sequence[str]) -> dict[str, str]:
    """One cell per task, and the average of several tasks."""
    line = {task_label(TASKS[task]): cell_text(by_task.loc[task]) if task in by_task.index else "-" for task in tasks}
    if len(tasks) > 1:
        line["Avg."] = number(average(by_task["median"], tasks))
    return line


def average(medians: pd.Series, tasks: Sequence[str]) -> float:
    """The plain mean over tasks; NaN if one is missing."""
    values = medians.reindex(tasks)
    return values.mean() if values.notna().all() else math.nan


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
        line |= task_cells(group.set_index("task"), tasks)
        lines.append(line | {task: number(cells.get((targets, rank), math.nan)) for task, cells in of_paper.items()})
    return pd.DataFrame(lines)


def paper_cells(paper: pd.DataFrame | None) -> dict[str, dict[tuple[str, int], float]]:
    """`MNLI-m (paper)` -> target set and rank, as from `lora_of` -> the published value."""
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
                line | {f"r = {r}": cell_text(rows[targets, r]) if (targets, r) in rows else "-" for r in ranks}
            )
    sets = dict.fromkeys(lora_of(slug)[0] for slug in found["slug"] if LORA_SLUG.fullmatch(slug))
    for task, cells in paper_cells(paper).items():
        for targets in sets:
            published = {f"r = {r}": number(cells.get((targets, r), math.nan)) for r in ranks}
            lines.append({"Task": task, "Adapted": targets} | published)
    return pd.DataFrame(lines)


def start_table(frame: pd.DataFrame, summary: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """Tasks and methods by start, and the differences in pairs of one seed.

    Returns: Columns Task, Method if there are several, one per start, `MNLI - pretrained` (median of the paired
        differences), `Range` of the differences, and Pairs (their number).
    """
    lines = []
    groups = sorted(summary.groupby(["task", "label"], sort=False), key=lambda group: list(TASKS).index(group[0][0]))
    for (task, label), group in groups:
        rows, of_cell = group.set_index("start"), [p for p in planned if (p.task, p.label) == (task, label)]
        line = {"Task": task_label(TASKS[task])}
        line |= {"Method": label} if summary["label"].nunique() > 1 else {}
        line |= {title: cell_text(rows.loc[s]) if s in rows.index else "-" for s, title in START_TITLES.items()}
        ids = {start: [p.run_id for p in of_cell if p.start == start] for start in START_TITLES}
        sides = (frame[frame["run_id"].isin(ids[start])] for start in ("mnli", "pretrained"))
        found = paired_differences(*sides)["difference"]
        line["MNLI - pretrained"] = number(found.median(), "+.1f")
        line["Range"] = f"{found.min():+.1f} to {found.max():+.1f}" if len(found) else "-"
        lines.append(line | {"Pairs": str(len(found))})
    return pd.DataFrame(lines)
