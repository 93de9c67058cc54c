"""User-defined tasks: which method is better, and how the learning rates were chosen."""

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.notes import NOTES
from lora.report.stats import ENOUGH_SEEDS, MOST_SEEDS, POWER, Interval
from lora.report.titles import encoder_title

ORIGINS = {
    "conf": "in conf/hparams",
    "default": "default, not tuned for this task",
    "tuned": "tuned",
    "stated": "stated by the command",
}


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


def answers(pairs: pd.DataFrame) -> list[str]:
    """`LoRA (qv, r8) - Full fine-tuning, my_task: -4.4 (-14.9 to +6.0), n = 3: inconclusive; ...`, a line per pair.

    A method is higher or lower if all of the 95% interval over seeds is above or below 0, and not on fewer than
    `ENOUGH_SEEDS` pairs, as for the paper's claims.

    Args:
        pairs: `lora.report.comparisons.method_pairs`. Of several tasks, the average is told.
    """
    averaged = set(pairs.loc[pairs["task"] == "Avg.", ["model", "one", "other"]].itertuples(index=False, name=None))
    lines = []
    for row in pairs.dropna(subset=["mean"]).itertuples():
        if row.task != "Avg." and (row.model, row.one, row.other) in averaged:
            continue
        word = "inconclusive"
        if row.n >= ENOUGH_SEEDS and (row.low > 0 or row.high < 0):
            word = "higher" if row.low > 0 else "lower"
        elif row.n < ENOUGH_SEEDS:
            word += f"; a verdict needs at least {ENOUGH_SEEDS} seeds"
        if word.startswith("inconclusive") and not pd.isna(row.needed):
            count = f"about {row.needed:.0f}" if row.needed else f"more than {MOST_SEEDS}"
            word += f"; {count} seeds would tell them apart with {POWER:.0%} power"
        place = "average over the tasks" if row.task == "Avg." else TASKS[row.task].title
        about = f", {encoder_title(row.model)}" if pairs["model"].nunique() > 1 else ""
        value = Interval(row.mean, row.low, row.high, row.n).text
        lines.append(f"{row.one} - {row.other}, {place}{about}: {value}, n = {row.n}: {word}")
    return lines


def tuning_banner(runs: pd.DataFrame) -> str:
    """What stands above the tables if no learning rate was tuned, or stated for every method."""
    origins = set(runs["rate_from"].dropna())
    return NOTES["untuned"] if origins - {"stated"} and "tuned" not in origins else ""
