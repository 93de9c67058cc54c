"""How many labels: scores by the number of train rows, where each seed draws rows of its own (experiment `rows`).

A seed's draws are nested and shared by all methods, so the rows' gain and two methods' difference are both paired by
seed. The interval over seeds holds the draw of the train rows too, except on all rows, where nothing is drawn.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from lora.config.rates import AT
from lora.config.run import EPOCHS, SIZE
from lora.data.metrics import LOWER, better
from lora.report.figures import Figure, bands, figure
from lora.report.rates import unlike
from lora.report.runs import row_names, task_labels, task_title
from lora.report.stats import DIGITS, Interval, all_pairs, direction, few_text, interval_of, mean_interval, needed_text
from lora.report.tables import collapsed_among, score
from lora.table import Cell, Value


def with_sizes(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the column `size`, the number of train rows that was asked for, and labels that name the encoder or
    the protocol where there are several."""
    asked = pd.to_numeric(runs[SIZE], errors="coerce")  # null: all
    sizes = asked.fillna(runs["whole_rows"].astype(int)).astype(int)
    return runs.assign(size=sizes, label=row_names(runs, ["model", "protocol"]))


def sizes_table(runs: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """One line per task and size, with a column for each method. `runs`: of `with_sizes`."""
    lines = []
    titles = task_labels(runs)
    for (task, size), cells in sorted(summary.groupby(["task", "size"]), key=lambda one: [*titles].index(one[0][0])):
        of_size = runs[runs["task"].eq(task) & runs["size"].eq(size)]
        line: dict[str, Cell] = {"Task": titles[task], "Train rows": Value(size, f"{size:,}")}
        line |= {"Epochs": " and ".join(sorted(of_size[EPOCHS].unique(), key=int))}
        for _, row in cells.iterrows():
            cell = score(row)  # without the curves of its runs: those of other sizes have the same cell
            line[row["label"]] = replace(cell, cell="") if isinstance(cell, Value) else cell
        lines.append(line)
    return pd.DataFrame(lines).fillna("-")


def sizes_figure(runs: pd.DataFrame) -> Figure | None:
    """The score against the number of train rows, a panel per task, a line and a band per method."""
    note = "Mean over seeds; band: lowest and highest. Each run's best epoch; the dev rows are the same for all."
    panels = bands(runs.dropna(subset="best"), "size", "best", "mean")
    panels = [one | {"ticks": sorted({x for series in one["series"] for x in series["x"]})} for one in panels]
    return figure("Score by the number of train rows", note, "lines", "train rows", panels, log_x=True)


def size_sentences(runs: pd.DataFrame, origins: Mapping[str, str]) -> list[str]:
    """What the last doubling of the train rows added for each method, and which method is ahead at the smallest and at
    the largest size.

    Args:
        runs: Of `with_sizes`.
        origins: As of `lora.report.rates.origins_of`: methods whose rates were not chosen alike are not compared.
    """
    lines = []
    for (task, _), of_task in runs.dropna(subset="device").groupby(["task", "model"], sort=False):
        sizes = sorted(set(of_task["size"].tolist()))
        metric = of_task["metric"].iloc[0]
        about = LOWER if metric.endswith(LOWER) else ""
        for label, of_method in of_task.groupby("label", sort=False) if len(sizes) > 1 else ():
            many = sizes[-1]
            few = min(sizes[:-1], key=lambda size: abs(math.log(2 * size / many)))  # other sizes may lie between
            added = gain(of_method, few, many)
            of_both = of_method[of_method["size"].isin((few, many))]
            if added.n:
                what = f"{label}, {task_title(task)}{about}: {many:,} train rows instead of {few:,} change the score by"
                word = unlike(of_both["run_id"], {i: origin.partition(AT)[0] for i, origin in origins.items()})
                word = word or f"{direction(added)}{few_text(added)}"
                lines.append(f"{what} {added.shown}, n = {added.n}: {word}{collapsed_among(of_both)}")
        for size in dict.fromkeys((sizes[0], sizes[-1])):
            of_size = of_task[of_task["size"] == size]
            if of_size["label"].nunique() > 1:
                lines.append(f"At {size:,} train rows of {task_title(task)}: {ahead(of_size, origins)}")
    return lines


def gain(runs: pd.DataFrame, few: int, many: int) -> Interval:
    """The score of a method on many train rows minus that on few, in pairs of one seed."""
    scores = 100 * runs.pivot(index="seed", columns="size", values="best").reindex(columns=[few, many]).astype(float)
    return mean_interval((scores[many] - scores[few]).dropna().round(DIGITS).to_numpy())


def ahead(runs: pd.DataFrame, origins: Mapping[str, str]) -> str:
    """The method that is better than every other on the runs of one size, or the best mean and what is undecided. Of
    the seeds that all methods have."""
    if word := unlike(runs["run_id"], origins):
        return word
    scores = runs.pivot(index="seed", columns="label", values="best").dropna()
    sign = better(runs["metric"].iloc[0])
    if scores.empty:
        return "not compared, because no seed has all methods"
    groups = {str(label): group for label, group in runs[runs["seed"].isin(scores.index)].groupby("label", sort=False)}
    means = (sign * scores.astype(float)).mean()
    best = means.idxmax()
    pairs = all_pairs(groups, sides=[(best, other) for other in groups if other != best])
    if len(pairs) < len(groups) - 1:
        return "not compared, because their epochs differ"
    shown = ", ".join(f"{interval_of(row).shown} against {row.other}" for row in pairs.itertuples())
    n, collapsed = len(scores), collapsed_among(runs)
    words = [direction(interval_of(row)) for row in pairs.itertuples()]
    if all(word == ("higher" if sign > 0 else "lower") for word in words):
        return f"{best} is ahead: {shown}; n = {n}{collapsed}"
    few = next(filter(None, (few_text(interval_of(row)) for row in pairs.itertuples())), "")
    few = few or needed_text(float(pairs["needed"].max()), "tell them apart")
    tied = means.index[means.eq(means.max())]
    leads = f"{best} has the best mean" if len(tied) == 1 else f"{' and '.join(tied)} have the same mean"
    return f"undecided: {leads}, {shown}; n = {n}{few}{collapsed}"
