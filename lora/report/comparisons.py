"""Comparisons of runs: methods in pairs of one seed, a setting's values, two devices, the reference."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import special

from lora.config.plan import read_plan
from lora.data.metrics import LOWER
from lora.records.analysis import Analyses
from lora.records.record import load_frame, load_records
from lora.report import stats
from lora.report.experiments import OWN, REPEATED
from lora.report.gather import Gathered
from lora.report.labels import setting, setting_columns
from lora.report.notes import note
from lora.report.rates import unlike
from lora.report.runs import (
    CELL,
    facts_of,
    row_names,
    summarise,
    task_labels,
    task_title,
    task_units,
    with_labels,
    with_records,
)
from lora.report.tables import collapsed_among, rates_text, score, seeds, trainable_cell
from lora.table import Cell, Table, Value, number

OF_MACHINES = ("train.precision", "train.kernels", "model.attention")  # settings that may depend on the machine


def groups_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The methods of one encoder, in the tables' order: label -> runs. Labels distinguish protocols."""
    return {str(label): group for label, group in runs.groupby(row_names(runs, ["protocol"]), sort=False)}


def method_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """`lora.report.stats.all_pairs` on each encoder, with the columns model, place (the label of the task, or Avg.) and
    p_holm, corrected over all of them. A user's own tasks are not averaged: their metrics may be unlike."""
    by_model = runs.groupby("model", sort=False)
    pairs = [stats.all_pairs(groups_of(group)).assign(model=model) for model, group in by_model]
    table = pd.concat(pairs, ignore_index=True)
    if runs["kind"].eq("own").any():
        table = table[table["task"] != "Avg."]
    places = task_labels(runs) | {"Avg.": "Avg."}
    return table.assign(place=table["task"].map(places), p_holm=stats.holm(table["p"].tolist()))


def pairs_table(pairs: pd.DataFrame, analyses: Analyses) -> pd.DataFrame:
    """`method_pairs` as a table."""
    lines = []
    for row in pairs.itertuples():
        line = {"Model": row.model} if pairs["model"].nunique() > 1 else {}
        line |= {"Method": row.one, "Minus": row.other}
        line |= {"Task": row.place, "n": row.n}
        line |= {"Difference": number(row.mean, "+.1f"), f"{stats.LEVEL:.0%} over seeds": stats.ends(row.low, row.high)}
        for sampled in ("examples", "both"):
            line[f"... over {sampled}"] = stats.ends(*analyses.over_rows(row.runs, "best", sampled))
        lines.append(line | {"p": number(row.p, ".2g"), "p (Holm)": number(row.p_holm, ".2g")})
    return pd.DataFrame(lines)


def answers(pairs: pd.DataFrame, analyses: Analyses, origins: Mapping[str, str], runs: pd.DataFrame) -> list[str]:
    """`LoRA (qv, r8) - Full fine-tuning, my_task: -4.4 (-14.9 to +6.0), n = 3: undecided; ...`, a line per pair and
    task.

    A method is higher or lower if all of the 95% interval over seeds is above or below 0, and not on fewer than
    `ENOUGH_SEEDS` pairs, as for the paper's claims; `on these dev rows` if the interval for other rows includes 0. A
    method is judged against another only if both rates were chosen alike.

    Args:
        origins: As of `lora.report.rates.origins_of`.
        runs: Those that are compared, and perhaps others.
    """
    lines = []
    for row in pairs.dropna(subset=["mean"]).itertuples():
        ids = [run_id for pair in row.runs for run_id in pair]
        low, high = analyses.over_rows(row.runs, "best")
        refused = unlike(ids, origins)
        word = refused or stats.direction(stats.interval_of(row))
        if word == "undecided":
            word += stats.few_text(stats.interval_of(row)) + stats.needed_text(row.needed, "tell them apart")
        elif not refused and low <= 0 <= high:
            word += stats.ON_ROWS + rows_needed(row, analyses)
        about = LOWER if row.place.endswith(f"{LOWER})") else ""
        about += f", {row.model}" if pairs["model"].nunique() > 1 else ""
        both = "" if pd.isna(low) else f", for other seeds and rows {stats.ends(low, high)}"
        value = f"{stats.interval_of(row).shown}{both}, n = {row.n}"
        word += collapsed_among(runs[runs["run_id"].isin(ids)])
        lines.append(f"{row.one} - {row.other}, {task_title(row.task)}{about}: {value}: {word}")
    return lines


def rows_needed(row: Any, analyses: Analyses) -> str:
    """A part of a sentence: the number of dev rows at which the interval for other seeds and rows would exclude 0 with
    a probability of `POWER`, at this difference, these seeds and this spread over rows; empty if that is not known."""
    if row.task not in analyses.own_rows:
        return ""
    deviates = special.ndtri((1 + stats.LEVEL) / 2) + special.ndtri(stats.POWER)
    over_rows = (analyses.over_rows(row.runs, "best", "examples")[1] - row.mean) / special.ndtri((1 + stats.LEVEL) / 2)
    over_seeds = (row.high - row.mean) / special.stdtrit(row.n - 1, (1 + stats.LEVEL) / 2)
    left = (row.mean / deviates) ** 2 - over_seeds**2
    needed = "more seeds and dev rows"
    if left > 0:
        _, rows = analyses.own_rows[row.task]["rows"]
        needed = f"about {math.ceil(rows * over_rows**2 / left):,} dev rows"
    return f"; {needed} would show it for others with {stats.POWER:.0%} power"


def minus(runs: pd.DataFrame, base: str | Mapping[str, str], score: str = "best") -> pd.DataFrame:
    """Each method minus the one of label `base`, or of its label there, per task: rows of
    `lora.report.stats.all_pairs`."""
    groups = groups_of(runs)
    if isinstance(base, str):
        base = {label: base for label in groups if base in groups and label != base}
    pairs = stats.all_pairs(groups, score, base.items())
    pairs = pairs[pairs["task"].ne("Avg.")]
    return pairs.assign(place=pairs["task"].map(task_labels(runs)))


def successors_table(
    runs: pd.DataFrame, summary: pd.DataFrame, from_lora: pd.DataFrame, paper: pd.DataFrame | None
) -> pd.DataFrame:
    """One line per method: its rate, and per task its cell, its difference from LoRA, and those that papers print.

    Args:
        from_lora: `minus` of the runs.
        paper: The cells that papers print of the methods and of LoRA.
    """
    texts = {(row.one, row.task): stats.interval_of(row).shown for row in from_lora.itertuples()}
    lines = []
    tasks = task_labels(summary)
    for label, group in summary.groupby("label", sort=False):
        line = {"Method": label, "Learning rate": rates_text(runs[runs["label"] == label])}
        line |= {"Trainable": trainable_cell(group), "Seeds": seeds(group)}
        for _, row in group.iterrows():
            title = task_title(row["task"])
            line[tasks[row["task"]]] = score(row)
            line[f"{title}, minus LoRA"] = texts.get((label, row["task"]), "-")
            line[f"{title}, in papers"] = in_papers(label, title, paper)
        lines.append(line)
    return pd.DataFrame(lines)


def in_papers(label: str, task: str, paper: pd.DataFrame | None) -> Cell:
    """`-1.3 to +0.5 (8)`: the range of the method minus LoRA, over the encoders and papers that print both."""
    if paper is None:
        return "-"
    there = paper[paper["task"] == task].pivot(index=["source", "model"], columns="method", values="value")
    name = label.partition(" (")[0]
    gaps = (there[name] - there["LoRA"]).dropna() if name in there and name != "LoRA" else there["LoRA"][:0]
    span = dict.fromkeys(f"{end:+.1f}" for end in (gaps.min(), gaps.max()))
    return Value(gaps.min(), " to ".join(span), (f"{len(gaps)}",)) if len(gaps) else "-"


def change_table(runs: pd.DataFrame, column: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """One line per task and method: a column per value of a setting, and the change from the first to the last.

    A cell has all seeds that were trained. The change is over the seeds that were trained at both values. `titles`:
    value of the setting in `column` -> title, in the columns' order.
    """
    lines = []
    for task, title in task_labels(runs).items():
        for label, row in runs[runs["task"] == task].groupby("label", sort=False):
            cells = {value: score(summarise(of_value).iloc[0]) for value, of_value in row.groupby(column)}
            line = {"Task": title, "Method": label}
            line |= {heading: cells.get(value, "-") for value, heading in titles.items()}
            best = 100 * row.pivot(index="seed", columns=column, values="best").reindex(columns=list(titles))
            change = (best.iloc[:, -1] - best.iloc[:, 0]).dropna().round(stats.DIGITS) if len(titles) > 1 else best[:0]
            lines.append(line | {"Change": stats.mean_interval(change.to_numpy()).shown, "Pairs": len(change)})
    return pd.DataFrame(lines)


def repeated_table(name: str, folder: Path, runs: pd.DataFrame) -> Table | None:
    """The runs that were trained again on another device, with records in `<results>/repeated`; None without any."""
    again = load_frame(load_records(folder / REPEATED)[0])
    return twice_table(REPEATED, f"The same runs on two devices ({name})", runs, again, ["run_id"])


def reference_table(gathered: Gathered) -> Table | None:
    """The runs asked for (first) and the reference's of the same settings and seeds (second); None if there are none.
    A run is matched without the settings `OF_MACHINES`, so several rows of the user's can have one of the reference."""
    if gathered.is_reference:
        return None
    folder = gathered.reference / gathered.profile
    records = [record for record in load_records(folder)[0] if record.status == "ok"]
    planned = read_plan(folder).runs
    committed = facts_of(("", planned[record.run_id]) for record in records if record.run_id in planned)
    asked = gathered.every[gathered.every["experiment"] != OWN]
    sides = [with_labels(asked), with_records(committed, load_frame(records))]
    settings = setting_columns(dict.fromkeys(key for side in sides for key in side if key not in OF_MACHINES))
    runs, again = (side.assign(**{key: setting(side, key) for key in settings}) for side in sides)
    keys = [*(key for key in CELL if key != "label"), "seed", *settings]
    title = f"Your runs, and the same runs of the reference ({gathered.name})"
    return twice_table("reference", title, runs, again.drop_duplicates(keys), keys)


def twice_table(file: str, title: str, runs: pd.DataFrame, again: pd.DataFrame, on: list[str]) -> Table | None:
    """Runs and their repetitions, one line per cell and pair of devices; None without any. `on`: a run's identity."""
    pairs = runs.dropna(subset="device").merge(again[[*on, "best", "device"]], on=on, suffixes=("", "_2"))
    lines = []
    tasks = task_labels(runs)
    for (*_, label, _, task, device, other), cell in pairs.groupby([*CELL, "device", "device_2"], sort=False):
        one, two = 100 * cell["best"], 100 * cell["best_2"]
        changes = (two - one).round(stats.DIGITS)
        line = {"Method": label, "Task": tasks[task], "Devices": f"{device}, {other}"}
        line |= {"Seeds": len(cell), "First": number(one.mean()), "Second": number(two.mean())}
        line |= {
            "Change": stats.mean_interval(changes.dropna().to_numpy()).shown,
            "SD of the change": number(changes.std()),
        }
        lines.append(line | {"SD of two seeds": number(math.sqrt(2) * one.std())})
    return Table(file, title, pd.DataFrame(lines), 3, (note(REPEATED),), units=task_units(runs)) if lines else None
