"""Tables of user-defined tasks: which method is better, and how each learning rate was chosen."""

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.notes import NOTES
from lora.report.stats import ENOUGH_SEEDS, MOST_SEEDS, POWER, Interval
from lora.report.titles import encoder_title

DEFAULT, STATED = "default, not tuned for this task", "stated by the command"


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


def rates_table(runs: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """How each learning rate was chosen: a line per encoder, method, task and rate.

    Args:
        tuning: `load_frame` of the runs of `python -m lora tune` in the folder.
    """
    lines = []
    keys = ["model", "slug", "protocol", "task"]
    for (*place, label, rate), cell in runs.groupby([*keys, "label", "lr"], sort=False):
        tried = tuning[(tuning[keys] == place).all(axis=1)]
        names = {"Model": encoder_title(place[0]), "Method": label, "Task": TASKS[place[-1]].title}
        is_stated = set(cell["rate_from"]) == {"stated"}
        lines.append(names | {"Learning rate": f"{rate:g}", "Chosen": chosen(rate, tried, is_stated)})
    return pd.DataFrame(lines, columns=["Model", "Method", "Task", "Learning rate", "Chosen"])


def chosen(rate: float, tried: pd.DataFrame, is_stated: bool) -> str:
    """`best of 4 tried (0.0001 to 0.003, seed 0), at the edge`. `tried`: the tuning runs of the method and task."""
    best = tried["best"].fillna(0).groupby(tried["lr"]).mean()
    if rate not in best.index:
        return STATED if is_stated else DEFAULT
    seeds = ", ".join(map(str, sorted(tried["seed"].unique())))
    about = f"({best.index[0]:g} to {best.index[-1]:g}, seed{'s' * (',' in seeds)} {seeds})"
    word = "best" if best[rate] == best.max() else "one"
    return f"{word} of {len(best)} tried {about}{', at the edge' * (rate in (best.index[0], best.index[-1]))}"


def tuning_banner(rates: pd.DataFrame) -> str:
    """What stands above the tables if no learning rate was tuned, or stated for every method.

    Args:
        rates: `rates_table`.
    """
    is_untuned = rates["Chosen"].isin((DEFAULT, STATED)).all() and rates["Chosen"].eq(DEFAULT).any()
    return NOTES["untuned"] if is_untuned else ""
