"""The texts above and below tables: those of notes.yaml, and those that depend on the runs."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora.data.metrics import better
from lora.report.runs import START_TITLES, encoder_title, row_names, task_title
from lora.report.stats import DIGITS, ENOUGH_SEEDS, LEVEL

NOTES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BANNERS: dict[str, str] = NOTES["banners"]
RISING = 0.5  # points; a convention of this project


def note(key: str) -> str:
    return NOTES[key].format(level=f"{LEVEL:.0%}", enough=ENOUGH_SEEDS)


def encoder_notes(models: Iterable[str], kind: str = "whole") -> list[str]:
    """Notes on the encoders for tasks of this kind, for the encoders that have one."""
    known = NOTES["encoders_of_own" if kind == "own" else "encoders"]
    names = [*dict.fromkeys(models)]
    return [f"{name}: {known[name]}" if len(names) > 1 else known[name] for name in names if name in known]


def caption(summary: pd.DataFrame) -> str:
    """The note that defines a table's numbers."""
    count = " to ".join(dict.fromkeys((f"{summary['planned'].min()}", f"{summary['planned'].max()}")))
    of_runs = f"Median over {count} seeds of each run's best epoch on the dev set, ± the standard deviation over seeds."
    if count == "1":
        of_runs = "Each run's best epoch on the dev set; one seed."
    return f"{of_runs} Protocol: {', '.join(sorted(set(summary['protocol'])))}. {note('head')}"


def conditions(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """The line above a table: encoder, epochs, train rows, start, devices, and how many cells still rise."""
    runs = runs.dropna(subset="device")
    curves = curves[curves["run_id"].isin(runs["run_id"])]
    if curves.empty:
        return ""
    embedders = NOTES["encoders"]
    parts = []
    cut = []
    models = [
        f"{encoder_title(name)}{' (a sentence embedder)' if name in embedders else ''}"
        for name in runs["model"].unique()
    ]
    epochs = sorted(curves.groupby("run_id")["epoch"].max().unique())
    span = " and ".join(map(str, epochs)) if len(epochs) < 3 else f"{epochs[0]} to {epochs[-1]}"
    for name, of_task in runs.groupby("task", sort=False):
        title, truncated = task_title(name), of_task["truncated"].max()
        if of_task["is_part"].any() or of_task["kind"].eq("own").any():
            sizes = sorted(of_task["train_rows"].unique())
            parts.append(f"{title} {' and '.join(f'{size:,.0f}' for size in sizes)}")
        if truncated > 0:
            cut.append(f"{title} {truncated:.1%}")
    longer = f" ({', '.join(cut)} of the rows longer than max_length, and cut)" if cut else ""
    starts = " and ".join(START_TITLES[start] for start in runs["start"].unique())
    counts = runs["device"].value_counts()
    devices = f"device: {counts.index[0]}"
    if len(counts) > 1:
        mixed = runs.groupby(["task", "seed"])["device"].nunique() > 1
        devices = f"devices: {', '.join(f'{device} ({count} runs)' for device, count in counts.items())}"
        devices += f"; {mixed.sum()} of {len(mixed)} seeds of a task have runs on several"
    rising = rising_text(runs, curves)
    rows = ", ".join(parts) or "all"
    return (
        f"Encoder: {', '.join(models)}; epochs: {span}; train rows: {rows}{longer}; start: {starts}; {devices}.{rising}"
    )


def rising_text(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """How many cells gained more than `RISING` points in the last third of the epochs, on the mean over seeds."""

    def last_third(values: pd.Series) -> float:
        last = len(values)
        return values.iloc[-1] - values.iloc[max(1, round(2 * last / 3)) - 1] if last > 1 else math.nan

    gains = (100 * curves.groupby("run_id")["value"].agg(last_third)).round(DIGITS)
    gains = runs["run_id"].map(gains) * runs["metric"].map(better)
    means = gains.groupby([runs["task"], row_names(runs), runs["train_rows"]]).mean().dropna()
    if means.empty:
        return ""
    rising = f"{(means > RISING).sum()} of {len(means)} cells"
    word = "rising" if runs["metric"].map(better).eq(1).all() else "improving"
    return f" Still {word} at the end, by more than {RISING} points in the last third of the epochs: {rising}."
