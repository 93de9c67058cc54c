"""How learning rates were chosen: those tried for conf/, on seeds outside the tables of results, and a user's own."""

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.notes import BANNERS, NOTES, conditions, encoder_notes, note
from lora.report.runs import in_order, labelled, told_apart
from lora.report.tables import collapsed_text, number
from lora.report.titles import task_label
from lora.sweep.request import LEARNING_RATE
from lora.table import Table

TITLE = "Learning rates tried, on seeds outside the tables of results"
ORIGINS = {
    "conf": "in conf/hparams",
    "default": "default, not tuned for this task",
    "tuned": "tuned",
    "stated": "stated by the command",
}


def learning_rate_table(name: str, tried: pd.DataFrame, curves: pd.DataFrame) -> Table | None:
    """One line per row and trained rate; None if no run was trained.

    A row is the runs that are equal in every setting but the rate and the seed. A value is the mean over its seeds,
    whose number is stated where there are several.

    Args:
        name: The profile's folder, for the title.
        curves: `load_curves` of the records.
    """
    rows = tried_rows(tried)
    runs = rows.dropna(subset="lr")
    if runs.empty:
        return None
    tasks, best, lines = in_order(runs), taken(rows), []
    for label, of_row in runs.groupby("label", sort=False):
        rates = sorted(of_row["lr"].unique())
        for rate in rates:
            line, means = {"Method": label, "Learning rate": f"{rate:.0e}"}, []
            for task in tasks:
                cell = of_row[(of_row["lr"] == rate) & (of_row["task"] == task)]
                seeds = f" ({len(cell)} seeds)" if len(cell) > 1 else ""
                means.append(100 * cell["best"].mean())
                line[task_label(TASKS[task])] = number(means[-1]) + (
                    collapsed_text(int(cell["collapsed"].sum()), len(cell)) or seeds
                )
            edge = " (edge)" if rate in (rates[0], rates[-1]) else ""
            line |= {"Avg.": number(pd.Series(means).mean(skipna=False))}
            lines.append(line | {"Taken": f"yes{edge}" if best.get(label) == rate else ""})
    notes = (note(LEARNING_RATE), *encoder_notes(runs["model"]))
    banner = " ".join(filter(None, map(BANNERS.get, runs["kind"].unique())))
    return Table(LEARNING_RATE, f"{TITLE} ({name})", pd.DataFrame(lines), 2, notes, banner, conditions(tried, curves))


def tried_rows(tried: pd.DataFrame) -> pd.DataFrame:
    """The tried runs, each with the label of its row, which names the encoder or protocol if there are several."""
    tried = labelled(tried, without=("train.lr",))
    return tried.assign(label=told_apart(tried, ["model", "protocol"]))


def taken(rows: pd.DataFrame) -> dict[str, float]:
    """Label -> the rate with the best mean over tasks, each task first averaged over its seeds; the smaller on a tie.

    Only rates that were tried on every task and seed of the row count. Rows with a missing run are excluded.

    Args:
        rows: `tried_rows`.
    """
    found = {}
    for label, of_row in rows.groupby("label", sort=False):
        if of_row["lr"].notna().all():
            by_rate = of_row.pivot(index="lr", columns=["task", "seed"], values="best").sort_index().dropna()
            if len(by_rate):
                found[str(label)] = float(by_rate.T.groupby("task").mean().mean().idxmax())
    return found


def rates_table(runs: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """Each method's learning rate on each task, and how it was chosen.

    Args:
        tuning: `lora.records.record.load_frame` of the runs that tried rates.
    """
    lines = []
    for run in runs.dropna(subset="lr").drop_duplicates(["label", "task", "lr", "rate_from"]).itertuples():
        chosen = ORIGINS["stated" if pd.isna(run.rate_from) else run.rate_from]
        tried = tuning.loc[(tuning["task"] == run.task) & (tuning["method"] == run.method), "lr"]
        if run.rate_from == "tuned" and len(tried):
            chosen += f", of {tried.nunique()}" + ", at the edge" * (run.lr in (tried.min(), tried.max()))
        line = {"Method": run.label, "Task": TASKS[run.task].title}
        lines.append(line | {"Learning rate": f"{run.lr:g}", "Chosen": chosen})
    return pd.DataFrame(lines)


def tuning_banner(runs: pd.DataFrame) -> str:
    """What stands above the tables if no learning rate was tuned, or stated for every method."""
    origins = set(runs["rate_from"].dropna())
    return NOTES["untuned"] if origins - {"stated"} and "tuned" not in origins else ""
