"""The learning rates that were tried, and how the rate of each run was chosen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora.config.plan import LEARNING_RATE
from lora.config.rates import Rate, nearest_rate
from lora.data.metrics import better
from lora.report.experiments import EXPERIMENTS
from lora.report.figures import by_rate
from lora.report.labels import setting
from lora.report.notes import BANNERS, conditions, encoder_notes, note
from lora.report.runs import method_label, row_names, task_labels, task_title, task_units, with_labels
from lora.report.tables import collapsed_text
from lora.table import Table, number

RATE_SCORES = {"split_half": "Each run's unselected score.", "best": "Each run's best epoch."}
ORIGIN_WORDS = {
    "conf": "in conf/hparams",
    "default": "default, not tuned for this task",
    "tuned": "tuned",
    "stated": "stated by the command",
}


def learning_rate_table(
    name: str, tried: pd.DataFrame, curves: pd.DataFrame, by_task: str | None = None
) -> Table | None:
    """One line per row and trained rate; None if no run was trained.

    A row is the runs that are equal in every setting but the rate and the seed. A value is the mean over its seeds,
    whose number is stated where there are several.

    Args:
        by_task: The score that chooses a rate of its own for each task, one of `RATE_SCORES`; None: each method has one
            rate for all tasks.
    """
    rows = tried_rows(tried)
    labels = rows["label"]
    if by_task:
        names = labels + ", " + rows["task"].map(task_title)
        rows = rows.assign(label=names, best=rows[by_task].astype(float))
    runs = rows.dropna(subset="lr")
    if runs.empty:
        return None
    tasks = task_labels(runs)
    best = best_rate_by_label(rows)
    lines = []
    for label, of_row in runs.groupby("label", sort=False):
        for rate, of_rate in of_row.groupby("lr"):
            line = {"Method": label, "Learning rate": f"{rate:g}"}
            means = []
            for task, title in tasks.items():
                cell = of_rate[of_rate["task"] == task]
                count = f"{len(cell)} seeds" if len(cell) > 1 else ""
                remark = collapsed_text(int(cell["collapsed"].sum()), len(cell)) or count
                means.append(100 * cell["best"].mean())
                line[title] = number(means[-1], ".1f", remark)
            line |= {} if by_task else {"Avg.": number(pd.Series(means).mean(skipna=False))}
            edge = " (edge)" if rate in (of_row["lr"].min(), of_row["lr"].max()) else ""
            lines.append(line | {"Taken": f"yes{edge}" if best.get(label) == rate else ""})
    chosen = f"{RATE_SCORES[by_task]} {note('learning_rate_by_task')}" if by_task else note(LEARNING_RATE)
    notes = (chosen, *encoder_notes(runs["model"]))
    banner = " ".join(filter(None, map(BANNERS.get, runs["kind"].unique())))
    above, drawn = conditions(tried, curves), {"rates": by_rate(runs.assign(label=labels), RATE_SCORES.get(by_task))}
    title = f"{EXPERIMENTS[LEARNING_RATE].title} ({name})"
    return Table(LEARNING_RATE, title, pd.DataFrame(lines), 2, notes, banner, above, drawn, units=task_units(runs))


def tried_rows(tried: pd.DataFrame) -> pd.DataFrame:
    """The tried runs, each with the label of its row, which names the encoder or protocol if there are several."""
    tried = with_labels(tried, without=("train.lr",))
    return tried.assign(label=row_names(tried, ["model", "protocol"]))


def best_rate_by_label(rows: pd.DataFrame) -> dict[str, float]:
    """Label -> the rate with the best mean over tasks, each task first averaged over its seeds; the smaller on a tie.
    Only rates that were tried on every task and seed of the row count. Rows with a missing run are excluded."""
    rates = {}
    rows = rows.assign(best=rows["best"].astype(float) * rows["metric"].map(better))
    for label, of_row in rows.groupby("label", sort=False):
        if of_row["lr"].notna().all():
            by_rate = of_row.pivot(index="lr", columns=["task", "seed"], values="best").sort_index().dropna()
            if len(by_rate):
                rates[str(label)] = float(by_rate.T.groupby("task").mean().mean().idxmax())
    return rates


def best_rates(tried: pd.DataFrame) -> pd.DataFrame:
    """The runs at the rate that each method, without other settings, takes on each encoder."""
    parts = [tried[:0].assign(label="")]
    plain = tried[setting(tried, "train.head_lr") == "null"]  # no label names what all its rows share
    for _, of_model in plain.groupby("model", sort=False):
        rows = tried_rows(of_model)
        rows = rows[rows["label"].eq(rows["slug"].map(method_label))]
        parts.append(rows[rows["lr"].eq(rows["label"].map(best_rate_by_label(rows)))])
    return pd.concat(parts)


def tuned_rate(run: Any, rates: Sequence[Rate]) -> Rate | None:
    """The entry of the user's file that chose a run's rate, whether it was there before the run or found the rate of
    conf/; None if the command stated the rate, or the file has another by now."""
    place = (run.model, run.protocol, run.task, run.rate_name)
    rate = nearest_rate(rates, place, int(run.train_rows), run.whole_rows)
    return rate if rate is not None and rate.lr == run.lr and run.rate_from != "stated" else None


def rates_table(runs: pd.DataFrame, rates: Sequence[Rate]) -> pd.DataFrame:
    """Each method's learning rate on each task, and how it was chosen. `rates`: the tuned ones."""
    lines = []
    runs = runs.assign(label=row_names(runs, ["model", "protocol"]))
    for run in runs.dropna(subset="lr").itertuples():
        chosen = ORIGIN_WORDS[run.rate_from]
        if (rate := tuned_rate(run, rates)) is not None:
            edge = ", at the edge" if rate.lr in (min(rate.tried), max(rate.tried)) else ""
            chosen = f"{ORIGIN_WORDS['tuned']}, of {rate.tuned_alike.replace(' values', '')}{edge}"
        line = {"Method": run.label, "Task": task_title(run.task)}
        lines.append(line | {"Learning rate": f"{run.lr:g}", "Chosen": chosen})
    return pd.DataFrame(lines).drop_duplicates(ignore_index=True)


def origins_of(runs: pd.DataFrame, rates: Sequence[Rate]) -> dict[str, str]:
    """run_id -> how its rate was chosen: `untuned`, or `tuned, of 3 values`. Without runs whose rate was stated."""
    origins = {}
    for run in runs[runs["rate_from"] != "stated"].dropna(subset="lr").itertuples():
        rate = tuned_rate(run, rates)
        usual = "tuned" if run.rate_from == "tuned" else "untuned"
        origins[run.run_id] = usual if rate is None else f"tuned, of {rate.tuned_alike}"
    return origins


def unlike(run_ids: Iterable[str], origins: Mapping[str, str]) -> str:
    """Why runs are not compared, if their learning rates were not chosen alike. `origins`: of `origins_of`."""
    chosen = dict.fromkeys(origins[run_id] for run_id in run_ids if run_id in origins)
    if len(chosen) < 2:
        return ""
    return f"not judged, because their learning rates were not chosen alike: {' and '.join(chosen)}"
