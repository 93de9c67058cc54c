"""Comparisons of runs: methods in pairs of one seed, a setting's values, two devices, and the reference."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import load_frame, load_records
from lora.report.gather import OF_MACHINES, Gathered, known_configs
from lora.report.notes import note
from lora.report.runs import CELL, facts_of, in_order, labelled, summarise, told_apart, with_records
from lora.report.stats import DIGITS, ENOUGH_SEEDS, LEVEL, MOST_SEEDS, POWER, Interval, all_pairs, holm, mean_interval
from lora.report.tables import cell_text, number
from lora.report.titles import encoder_title, task_label
from lora.table import Table

REPEATED = "repeated"  # the folder of runs trained again, below that of the records


def groups_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The methods of one encoder, in the tables' order: label -> runs. Labels distinguish protocols."""
    return {str(label): group for label, group in runs.groupby(told_apart(runs, ["protocol"]), sort=False)}


def method_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare every method with every other on the same encoder. p_holm is corrected over all these comparisons.

    Returns: The columns of `lora.report.stats.all_pairs`, model and p_holm.
    """
    found = [all_pairs(groups_of(group)).assign(model=model) for model, group in runs.groupby("model", sort=False)]
    table, places = pd.concat(found), [*TASKS, "Avg."]
    pair = table.groupby(["model", "one", "other"], sort=False).ngroup()
    table = table.iloc[np.lexsort((table["task"].map(places.index), pair))]
    return table.assign(p_holm=holm(table["p"].tolist())).reset_index(drop=True)


def pairs_table(pairs: pd.DataFrame, examples: Mapping[tuple[str, str, str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """The difference between every two methods, with its intervals and p-values.

    Args:
        pairs: `method_pairs`.
        examples: (model, one, other, task) -> bounds that `analyse intervals` computed.
    """

    def interval(low: float, high: float) -> str:
        return "-" if pd.isna(low) or pd.isna(high) else f"{low:+.1f} to {high:+.1f}"

    lines = []
    for row in pairs.itertuples():
        found = examples.get((row.model, row.one, row.other, row.task), {})
        line = {"Model": row.model} if pairs["model"].nunique() > 1 else {}
        line |= {"Method": row.one, "Minus": row.other}
        line |= {"Task": row.task if row.task == "Avg." else task_label(TASKS[row.task]), "n": str(row.n)}
        line |= {"Difference": number(row.mean, "+.1f"), f"{LEVEL:.0%} over seeds": interval(row.low, row.high)}
        for source in ("examples", "both"):
            line[f"... over {source}"] = interval(*(found.get(f"{source}_{end}", math.nan) for end in ("low", "high")))
        lines.append(line | {"p": number(row.p, ".2g"), "p (Holm)": number(row.p_holm, ".2g")})
    return pd.DataFrame(lines)


def answers(pairs: pd.DataFrame) -> list[str]:
    """`LoRA (qv, r8) - Full fine-tuning, my_task: -4.4 (-14.9 to +6.0), n = 3: inconclusive; ...`, a line per pair.

    A method is higher or lower if all of the 95% interval over seeds is above or below 0, and not on fewer than
    `ENOUGH_SEEDS` pairs, as for the paper's claims.

    Args:
        pairs: `method_pairs`, of user-defined tasks. Of several tasks, the average is told.
    """
    lines, pair = [], ["model", "one", "other"]
    averaged = pairs.groupby(pair)["task"].transform(lambda tasks: tasks.eq("Avg.").any()).astype(bool)
    for row in pairs[~averaged | pairs["task"].eq("Avg.")].dropna(subset=["mean"]).itertuples():
        if row.n >= ENOUGH_SEEDS and (row.low > 0 or row.high < 0):
            word = "higher" if row.low > 0 else "lower"
        else:
            word = "inconclusive"
            word += f"; a verdict needs at least {ENOUGH_SEEDS} seeds" * (row.n < ENOUGH_SEEDS)
            if not pd.isna(row.needed):
                count = f"about {row.needed:.0f}" if row.needed else f"more than {MOST_SEEDS}"
                word += f"; {count} seeds would tell them apart with {POWER:.0%} power"
        place = "average over the tasks" if row.task == "Avg." else TASKS[row.task].title
        about = f", {encoder_title(row.model)}" if pairs["model"].nunique() > 1 else ""
        value = Interval(row.mean, row.low, row.high, row.n).text
        lines.append(f"{row.one} - {row.other}, {place}{about}: {value}, n = {row.n}: {word}")
    return lines


def change_table(runs: pd.DataFrame, column: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """One line per task and method: a column per value of a setting, and the change from the first to the last.

    A cell has all seeds that were trained. The change is over the seeds that were trained at both values.

    Args:
        column: The column of `runs` that holds the setting.
        titles: Value -> title, in the columns' order.
    Raises: UserError: If two runs of one row, task and value have the same seed.
    """
    lines = []
    for task in in_order(runs):
        for label, row in runs[runs["task"] == task].groupby("label", sort=False):
            cells = {value: cell_text(summarise(of_value).iloc[0]) for value, of_value in row.groupby(column)}
            line = {"Task": task_label(TASKS[task]), "Method": label}
            line |= {title: cells.get(value, "-") for value, title in titles.items()}
            best = 100 * row.pivot(index="seed", columns=column, values="best").reindex(columns=list(titles))
            change = (best.iloc[:, -1] - best.iloc[:, 0]).dropna().round(DIGITS) if len(titles) > 1 else best[:0]
            lines.append(line | {"Change": mean_interval(change.to_numpy()).text, "Pairs": str(len(change))})
    return pd.DataFrame(lines)


def repeated_table(name: str, folder: Path, runs: pd.DataFrame) -> Table | None:
    """The runs that were trained again on another device, one line per cell and pair of devices; None without any.

    The records of the second training are in `<results>/repeated`. A run_id hashes the settings, so two records of one
    run_id differ in nothing else than where they ran.

    Raises: UserError: If a file is not a record, or a run was trained on other rows the second time.
    """
    records, problems = load_records(folder / REPEATED)
    if problems:
        raise UserError("; ".join(problems))
    again = load_frame(records)[["run_id", "best", "device", "fingerprint"]]
    runs = runs.dropna(subset="device").merge(again, on="run_id", suffixes=("", "_2"))
    if moved := runs.loc[runs["fingerprint"] != runs["fingerprint_2"], "run_id"].tolist():
        raise UserError(f"repeated on other rows, so not the same run: {', '.join(moved)}")
    lines = []
    for (*_, label, _, task, device, other), cell in runs.groupby([*CELL, "device", "device_2"], sort=False):
        one, two = 100 * cell["best"], 100 * cell["best_2"]
        changes = (two - one).round(DIGITS)
        line = {"Method": label, "Task": task_label(TASKS[task]), "Devices": f"{device}, {other}"}
        line |= {"Seeds": str(len(cell)), "First": number(one.mean()), "Second": number(two.mean())}
        line |= {"Change": mean_interval(changes.to_numpy()).text, "SD of the change": number(changes.std())}
        lines.append(line | {"SD of two seeds": number(math.sqrt(2) * one.std())})
    title = f"The same runs on two devices ({name})"
    return Table(REPEATED, title, pd.DataFrame(lines), 3, (note(REPEATED),)) if lines else None


def reference_table(gathered: Gathered) -> Table | None:
    """The user's runs next to the reference runs of the same settings and seeds; None if there are none.

    Cells agree if the ranges of their seeds overlap. Precision, kernels and attention can depend on the machine, so a
    run is matched without them; several rows of the user's can have one of the reference.
    """
    if gathered.is_reference:
        return None
    records, _ = load_records(gathered.reference / gathered.profile)
    committed = facts_of(("", config) for config in known_configs(records)[0].values())
    sides = [labelled(gathered.every), with_records(committed, load_frame(records))]
    for side in sides:
        same = side["columns"].map(lambda named: sorted((k, v) for k, v in named.items() if k not in OF_MACHINES))
        side["settings"] = same.astype(str)
    keys = [key for key in (*CELL, "seed", "settings") if key != "label"]
    pairs = sides[0].merge(sides[1].drop_duplicates(keys)[[*keys, "best"]], on=keys, suffixes=("", "_reference"))
    lines = []
    for (*_, label, _, task), cell in pairs.groupby(CELL, sort=False):
        values = [100 * cell[column].dropna() for column in ("best", "best_reference")]
        texts = ["-" if v.empty else f"{v.median():.1f} ({v.min():.1f} to {v.max():.1f})" for v in values]
        line = {"Method": label, "Task": task, "This run": texts[0], "Reference": texts[1]}
        line |= {"Difference": "-", "Agrees": "-"}
        if "-" not in texts:
            ours, reference = values
            overlap = ours.min() <= reference.max() and reference.min() <= ours.max()
            line["Difference"] = f"{ours.median() - reference.median():+.1f}"
            line["Agrees"] = "yes" if overlap else "no"
        lines.append(line)
    if not lines:
        return None
    cells = pd.DataFrame(lines)
    agree, total = (cells["Agrees"] == "yes").sum(), (cells["Agrees"] != "-").sum()
    verdict = f"{agree} of {total} cells agree: the ranges of their seeds overlap."
    return Table("reference", f"Compared with the reference runs ({gathered.name})", cells, 2, (verdict,))
