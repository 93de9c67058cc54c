"""Runs compared with the same runs elsewhere: at another length, on another device, and in the reference."""

import dataclasses
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import load_frame, load_records
from lora.report.cells import CELL, expected_runs, refuse_twice, summarise, told_apart
from lora.report.gather import Gathered, known_configs
from lora.report.notes import note
from lora.report.runs import Planned, labelled, planned_of
from lora.report.stats import DIGITS, mean_interval
from lora.report.tables import number
from lora.report.titles import task_label
from lora.table import Table

REPEATED = "repeated"  # the folder of runs trained again, below that of the records
LORA, FULL = "lora-qv-r8", "full"


def length_table(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One line per row and task: a column per length, and the change from the shortest to the longest, in points.

    A row is the runs that are equal in every setting but the length and the seed. Its values are means over the seeds
    that were trained at each length, and those of LoRA minus full fine-tuning over the seeds that both rows have.

    The change is `-` unless a seed was trained at both: a single length says nothing about another.

    Raises: UserError: If two runs of one row, task and length have the same seed.
    """
    expected = expected_runs(labelled(planned, without=("train.epochs",)))
    runs = expected.merge(frame[["run_id", "epochs", "best"]], on="run_id")
    refuse_twice(runs, "epochs")
    lengths, rows, lines = sorted(runs["epochs"].unique().tolist()), [], []
    for key, of_row in runs.groupby(CELL, sort=False):
        best = 100 * of_row.pivot(index="seed", columns="epochs", values="best")
        cell = dict(zip(CELL, key, strict=True))
        rows.append((cell, best))
        lines.append(length_line(cell["label"], cell["task"], best, lengths))
    for task in dict.fromkeys(cell["task"] for cell, _ in rows):
        sides = ([row for row in rows if (row[0]["task"], row[0]["slug"]) == (task, slug)] for slug in (LORA, FULL))
        for (one, ours), (other, theirs) in product(*sides):
            label = f"{one['label']} - {other['label']}"
            lines.append(length_line(label, task, ours - theirs, lengths, is_difference=True))
    return pd.DataFrame(lines)


def length_line(
    label: str, task: str, best: pd.DataFrame, lengths: Sequence[float], is_difference: bool = False
) -> dict[str, str]:
    """
    Args:
        best: In points, a line per seed and a column per length; NaN where a run is not trained.
        is_difference: Whether these are differences of two methods, which have an interval at each length too.
    """
    trained = best.reindex(columns=lengths).dropna(how="all").round(DIGITS)
    both = trained.dropna()
    values = both if len(both) else trained
    line = {"Method": label, "Task": task_label(TASKS[task]), "Seeds": str(len(values))}
    for length in lengths:
        mean = mean_interval(values[length].dropna().to_numpy())
        line[f"{length:.0f} epochs"] = mean.text if is_difference else number(mean.mean)
    change = both[lengths[-1]] - both[lengths[0]] if len(lengths) > 1 else pd.Series(dtype=float)
    return line | {"Change": mean_interval(change.round(DIGITS).to_numpy()).text}


def repeated_table(name: str, folder: Path, planned: Sequence[Planned], frame: pd.DataFrame) -> Table | None:
    """The runs that were trained again on another device, one line per cell and pair of devices; None without any.

    The records of the second training are in `<results>/repeated`. A run_id hashes the settings, so two records of one
    run_id differ in nothing else than where they ran.

    Args:
        name: The profile's folder, for the title.
        folder: The folder of the records.
        frame: `load_frame` of the records.
    Raises: UserError: If a file is not a record, or a run was trained on other rows the second time.
    """
    records, problems = load_records(folder / REPEATED)
    if problems:
        raise UserError("; ".join(problems))
    values = ["run_id", "best", "device", "fingerprint"]
    runs = expected_runs(planned).merge(frame[values], on="run_id")
    runs = runs.merge(load_frame(records)[values], on="run_id", suffixes=("", "_2"))
    if moved := runs.loc[runs["fingerprint"] != runs["fingerprint_2"], "run_id"].tolist():
        raise UserError(f"repeated on other rows, so not the same run: {', '.join(moved)}")
    lines = []
    for key, cell in runs.assign(label=told_apart(runs)).groupby([*CELL, "device", "device_2"], sort=False):
        at = dict(zip([*CELL, "device", "device_2"], key, strict=True))
        one, two = 100 * cell["best"], 100 * cell["best_2"]
        changes = (two - one).round(DIGITS)
        line = {"Method": at["label"], "Task": task_label(TASKS[at["task"]])}
        line |= {"Devices": f"{at['device']}, {at['device_2']}", "Seeds": str(len(cell))}
        line |= {"First": number(one.mean()), "Second": number(two.mean())}
        line |= {"Change": mean_interval(changes.to_numpy()).text, "SD of the change": number(changes.std())}
        lines.append(line | {"SD of two seeds": number(math.sqrt(2) * one.std())})
    title = f"The same runs on two devices ({name})"
    return Table("repeated", title, pd.DataFrame(lines), 3, (note("repeated"),)) if lines else None


def reference_table(gathered: Gathered) -> Table | None:
    """The user's runs next to the reference runs of the same settings and seeds; None if there are none.

    Precision, kernels and attention can depend on the machine, so a run is matched without them; several rows of the
    user's can have one of the reference.
    """
    if gathered.is_reference:
        return None
    records, _ = load_records(gathered.reference / gathered.profile)
    committed = {p.cell: p for p in (planned_of(config) for config in known_configs(records)[0].values())}
    pairs = [(p, committed[p.cell]) for p in labelled(gathered.every) if p.cell in committed]
    ours = summarise(gathered.frame, [p for p, _ in pairs])
    same = summarise(load_frame(records), [dataclasses.replace(q, label=p.label) for p, q in pairs])
    if not len(ours):
        return None
    cells = against_reference(ours, same)
    agree, total = (cells["Agrees"] == "yes").sum(), (cells["Agrees"] != "-").sum()
    verdict = f"{agree} of {total} cells agree: the ranges of their seeds overlap."
    return Table("reference", f"Compared with the reference runs ({gathered.name})", cells, 2, (verdict,))


def against_reference(ours: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Compare the cells that both have. They agree if the ranges of their seeds overlap.

    Returns: Columns Method, Task, This run, Reference, Difference (of medians), Agrees (yes, no, or - without values).
    """
    lines = []
    for _, row in ours.merge(reference, on=CELL, suffixes=("", "_reference")).iterrows():
        both = row["n"] > 0 and row["n_reference"] > 0
        overlap = both and row["min"] <= row["max_reference"] and row["min_reference"] <= row["max"]
        line = {"Method": row["label"], "Task": row["task"]}
        for title, end in (("This run", ""), ("Reference", "_reference")):
            median, low, high = (row[f"{key}{end}"] for key in ("median", "min", "max"))
            line[title] = "-" if pd.isna(median) else f"{median:.1f} ({low:.1f} to {high:.1f})"
        line["Difference"] = f"{row['median'] - row['median_reference']:+.1f}" if both else "-"
        lines.append(line | {"Agrees": ("yes" if overlap else "no") if both else "-"})
    return pd.DataFrame(lines)
