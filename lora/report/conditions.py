"""The line above every table of runs: how and on what they were trained, and how many cells still rise."""

import math

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.notes import ENCODERS
from lora.report.runs import told_apart
from lora.report.stats import DIGITS
from lora.report.titles import START_TITLES, encoder_title

RISING = 0.5  # points; a convention of this project


def conditions(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """The line above a table: encoder, epochs, train rows, start, devices, and how many cells still rise.

    Args:
        curves: `load_curves` of the records.
    Returns: "" if no run is trained yet.
    """
    runs = runs.dropna(subset="device")
    found = curves[curves["run_id"].isin(runs["run_id"])]
    if not len(found):
        return ""
    models = ", ".join(
        f"{encoder_title(model)}{' (a sentence embedder)' * (model in ENCODERS)}" for model in runs["model"].unique()
    )
    epochs = found.groupby("run_id")["epoch"].max()
    by_task = runs.drop_duplicates("task")
    counted = [row for row in by_task.itertuples() if row.is_part or TASKS[row.task].own is not None]
    parts = [f"{TASKS[row.task].title} {row.train_rows:,.0f}" for row in counted]
    starts = " and ".join(START_TITLES[start] for start in dict.fromkeys(runs["start"]))
    rows = ", ".join(parts) or "all"
    cut = [f"{TASKS[row.task].title} {row.truncated:.0%}" for row in by_task.itertuples() if row.truncated > 0]
    longer = f" ({', '.join(cut)} of the rows longer than max_length, and cut)" if cut else ""
    about = f"Encoder: {models}; epochs: {span(epochs)}; train rows: {rows}{longer}; start: {starts}; {devices(runs)}."
    return about + rising_text(found, runs)


def devices(runs: pd.DataFrame) -> str:
    """`device: x86_64 AVX512`; `devices: x86_64 AVX512 (35 runs), x86_64 AVX2 (15 runs)`."""
    shown = [f"{device} ({count} runs)" for device, count in runs["device"].value_counts().items()]
    return f"devices: {', '.join(shown)}" if len(shown) > 1 else f"device: {runs['device'].iloc[0]}"


def span(values: pd.Series) -> str:
    """`3`; `10 and 20`; `2 to 4` for more than two values."""
    found = sorted(values.unique())
    if len(found) < 3:
        return " and ".join(map(str, found))
    return f"{found[0]} to {found[-1]}"


def rising_text(curves: pd.DataFrame, runs: pd.DataFrame) -> str:
    """How many cells gained more than `RISING` points in the last third of the epochs, on the mean over seeds.

    Returns: "" if no run has two epochs.
    """
    gains = runs["run_id"].map(last_third(curves))
    means = gains.groupby([runs["task"], told_apart(runs)]).mean().dropna()
    if not len(means):
        return ""
    rising = f"{(means > RISING).sum()} of {len(means)} cells"
    return f" Still rising at the end, by more than {RISING} points in the last third of the epochs: {rising}."


def last_third(curves: pd.DataFrame) -> dict[str, float]:
    """Each run's value at the last epoch minus that at two thirds of the epochs, in points; NaN for a single epoch."""
    gains = {}
    for run_id, curve in curves.groupby("run_id"):
        value, last = curve.set_index("epoch")["value"], curve["epoch"].max()
        gain = 100 * (value[last] - value[max(1, round(2 * last / 3))]) if last > 1 else math.nan
        gains[run_id] = round(gain, DIGITS)
    return gains
