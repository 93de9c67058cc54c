"""Comparisons of cells: with the paper, other methods and the last epoch. Frames in, texts out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.data.tasks import TASKS
from lora.report.cells import CELL, ROW, expected_runs, in_order, told_apart
from lora.report.conditions import last_third
from lora.report.runs import Planned
from lora.report.stats import LEVEL, all_pairs, holm, mean_interval, pairs_text
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
                "n": pairs_text(row.n, row.across),
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


def best_against_last(frame: pd.DataFrame, curves: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """The effect of choosing the best epoch on the reported split.

    Returns: Per cell, the medians over seeds under three rules: each run's best epoch (the rule of the paper and of the
        tables); the epoch that is best on the mean of the cell's other seeds, so that no run profits from its own luck;
        the last epoch. `Flatters` is the mean of the first minus the second, `Best - last` of the first minus the last.
        `Last third` is the mean gain over the last third of the epochs, with its interval over seeds.
    """
    expected = expected_runs(planned).merge(frame[["run_id", "best", "last"]], on="run_id").dropna()
    expected = expected.assign(label=told_apart(expected))
    found = curves[curves["run_id"].isin(expected["run_id"])]
    by_run = {run_id: group.to_numpy() for run_id, group in found.groupby("run_id")["value"]}
    gains = last_third(found)
    lines = []
    for _, runs in expected.groupby(CELL, sort=False):
        best, last = 100 * runs["best"], 100 * runs["last"]
        others = 100 * chosen_by_others(np.column_stack([by_run[run_id] for run_id in runs["run_id"]]))
        lines.append(
            {
                "Method": runs["label"].iloc[0],
                "Task": task_label(TASKS[runs["task"].iloc[0]]),
                "n": str(len(runs)),
                "Best epoch": number(best.median()),
                "Other seeds' epoch": number(np.median(others)),
                "Last epoch": number(last.median()),
                "Flatters": number((best - others).mean(), "+.2f"),
                "Best - last": number((best - last).mean(), "+.2f"),
                "Last third": mean_interval(runs["run_id"].map(gains).dropna().to_numpy()).text,
            }
        )
    return pd.DataFrame(lines)


def chosen_by_others(values: Float[np.ndarray, "epochs runs"]) -> Float[np.ndarray, " runs"]:
    """The value of each run of a cell at the epoch that is best on the mean of the others; NaN for a single run.

    An epoch in which some run's metric is undefined is chosen only if every epoch has such a run.
    """
    count = values.shape[1]
    if count < 2:
        return np.full(count, math.nan)
    means = (values.sum(axis=1, keepdims=True) - values) / (count - 1)
    best = np.where(np.isnan(means), -np.inf, means).argmax(axis=0)
    return values[best, np.arange(count)]
