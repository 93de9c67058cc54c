"""Comparisons of cells, with the paper and with other methods. Frames in, texts out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lora.data.tasks import TASKS
from lora.report.cells import ROW, expected_runs, in_order, told_apart
from lora.report.runs import Planned
from lora.report.stats import LEVEL, all_pairs, holm
from lora.report.tables import average, cell_text, number, seeds_text
from lora.report.titles import task_label


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
        names = ["paper_model", "paper_method", "paper_trainable"]
        of_row = (paper[["model", "method", "trainable_params"]].to_numpy() == row[names].to_numpy()).all(axis=1)
        cells, by_task = paper[of_row].set_index("task"), group.set_index("task")
        printed = pd.Series({task: cells["value"].get(TASKS[task].title, math.nan) for task in tasks})
        found = []
        for task in (task for task in tasks if task in by_task.index):
            ours, title = by_task.loc[task], TASKS[task].title
            std = cells["std"].get(title, math.nan)
            theirs = "-" if title not in cells.index else f"{printed[task]}" + ("" if pd.isna(std) else f" ±{std}")
            difference = ours["median"] - printed[task]
            found.append((task_label(TASKS[task]), cell_text(ours), f"{ours['n']:.0f}", theirs, difference))
        if len(tasks) > 1:
            ours, theirs = average(by_task["median"], tasks), printed.mean(skipna=False)
            found.append(("Avg.", number(ours), seeds_text(group), number(theirs), ours - theirs))
        start = {"Model": model} if summary["model"].nunique() > 1 else {}
        for task, ours, n, theirs, difference in found:
            shown = {"Method": label, "Task": task, "Ours": ours, "n": n, "Published": theirs}
            shown |= {"Difference": number(difference, "+.1f"), "Published row": " ".join(row[names])}
            lines.append(start | shown)
    table, whole = pd.DataFrame(lines), summary["kind"].eq("whole").all()
    return table if whole or not len(table) else table.drop(columns="Difference")


def method_pairs(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """Compare every method with every other on the same encoder. p_holm is corrected over all these comparisons.

    Returns: The columns of `lora.report.stats.all_pairs`, model and p_holm.
    """
    found = []
    for model in dict.fromkeys(p.model for p in planned):
        of_model = [p for p in planned if p.model == model]
        runs = {label: frame[frame["run_id"].isin(ids)] for label, ids in groups_of(of_model).items()}
        found.append(all_pairs(runs).assign(model=model))
    table, places = pd.concat(found), [*TASKS, "Avg."]
    pair = table.groupby(["model", "one", "other"], sort=False).ngroup()
    table = table.iloc[np.lexsort((table["task"].map(places.index), pair))]
    return table.assign(p_holm=holm(table["p"].tolist())).reset_index(drop=True)


def groups_of(planned: Sequence[Planned]) -> dict[str, list[str]]:
    """The methods of one encoder, in the tables' order: label -> run_ids. Labels distinguish protocols."""
    runs = expected_runs(planned)
    labels = told_apart(runs, by=("protocol",), within=("label",))
    return {label: ids.tolist() for label, ids in runs["run_id"].groupby(labels, sort=False)}


def pairs_table(pairs: pd.DataFrame, examples: Mapping[tuple[str, str, str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """The difference between every two methods, with its intervals and p-values.

    Args:
        pairs: `method_pairs`.
        examples: (model, one, other, task) -> bounds that `analyse intervals` computed.
    """
    lines = []
    for row in pairs.itertuples():
        found = examples.get((row.model, row.one, row.other, row.task), {})
        lines.append(
            {
                **({"Model": row.model} if pairs["model"].nunique() > 1 else {}),
                "Method": row.one,
                "Minus": row.other,
                "Task": row.task if row.task == "Avg." else task_label(TASKS[row.task]),
                "n": str(row.n),
                "Difference": number(row.mean, "+.1f"),
                f"{LEVEL:.0%} over seeds": interval_text(row.low, row.high),
                "... over examples": interval_text(
                    *(found.get(f"examples_{end}", math.nan) for end in ("low", "high"))
                ),
                "... over both": interval_text(*(found.get(f"both_{end}", math.nan) for end in ("low", "high"))),
                "p": number(row.p, ".2g"),
                "p (Holm)": number(row.p_holm, ".2g"),
            }
        )
    return pd.DataFrame(lines)


def interval_text(low: float, high: float) -> str:
    return "-" if pd.isna(low) or pd.isna(high) else f"{low:+.1f} to {high:+.1f}"
