"""Tables of user-defined tasks: which method is better, and how each learning rate was chosen."""

from collections.abc import Sequence

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.cells import expected_runs
from lora.report.notes import NOTES
from lora.report.runs import Planned
from lora.report.stats import ENOUGH_SEEDS, MOST_SEEDS, POWER, Interval
from lora.report.titles import encoder_title

RATES = ["Model", "Method", "Task", "Learning rate", "Chosen"]


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


def rates_table(planned: Sequence[Planned], frame: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """How each learning rate was chosen: a line per encoder, method and task.

    Args:
        frame: `load_frame` of the runs.
        tuning: `load_frame` of the runs of `python -m lora tune` in the folder.
    Returns: Columns `RATES`; `tried`: the number of rates among which the run's was chosen, 0 if it was not tuned;
        `is_stated`: whether the command stated it.
    """
    runs = expected_runs(planned).merge(frame.reindex(columns=["run_id", "lr", "rate_from"]), on="run_id")
    lines = []
    for (model, slug, label, task), cell in runs.groupby(["model", "slug", "label", "task"], sort=False):
        same = (tuning["model"] == model) & (tuning["slug"] == slug) & (tuning["task"] == task)
        tried = tuning[same & tuning["protocol"].isin(cell["protocol"])]
        for rate in sorted(cell["lr"].unique()):
            names = [encoder_title(model), label, TASKS[task].title, f"{rate:g}"]
            is_stated = bool(cell.loc[cell["lr"] == rate, "rate_from"].eq("stated").all())
            count = tried["lr"].nunique() if rate in set(tried["lr"]) else 0
            lines.append([*names, chosen(rate, tried, is_stated), count, is_stated])
    return pd.DataFrame(lines, columns=[*RATES, "tried", "is_stated"])


def chosen(rate: float, tried: pd.DataFrame, is_stated: bool) -> str:
    """`best of 4 tried (0.0001 to 0.003, seed 0), at the edge`. `tried`: the tuning runs of the method and task."""
    rates = sorted(tried["lr"].unique())
    if not rates:
        return "stated by the command" if is_stated else "default, not tuned for this task"
    seeds = sorted(tried["seed"].unique())
    about = f"({rates[0]:g} to {rates[-1]:g}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
    if rate not in rates:
        return f"{'stated by the command' if is_stated else 'default'}, none of {len(rates)} tried {about}"
    best = tried["best"].fillna(0).groupby(tried["lr"]).mean()
    word = "best" if best[rate] == best.max() else "one"
    return f"{word} of {len(rates)} tried {about}{', at the edge' if rate in (rates[0], rates[-1]) else ''}"


def tuning_banner(rates: pd.DataFrame) -> str:
    """What stands above the tables of runs whose learning rates were not tuned, or not equally.

    Args:
        rates: `rates_table`.
    """
    if not len(rates) or not rates["tried"].any():
        return NOTES["untuned"] if len(rates) and not rates["is_stated"].all() else ""
    parts = []
    for task, of_task in rates.groupby("Task", sort=False):
        if of_task["tried"].nunique() > 1:
            tried = of_task.groupby("Method", sort=False)["tried"].max()
            words = [f"{method} {f'the best of {n}' if n else 'untuned'}" for method, n in tried.items()]
            parts.append(f"{task}: {', '.join(words)}")
    if not parts:
        return ""
    return f"**Unequal tuning** of the learning rates, which favours methods that were tuned more: {'; '.join(parts)}."
