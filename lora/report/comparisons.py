"""Comparisons of runs: methods in pairs of one seed, a setting's values, learning rates, two devices, the reference."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import special

from lora.config.plan import LEARNING_RATE, read_plan
from lora.config.rates import Rate
from lora.data.metrics import LOWER, better
from lora.errors import UserError
from lora.records.analysis import Analyses
from lora.records.record import load_frame, load_records
from lora.report.figures import by_rate
from lora.report.gather import OF_MACHINES, Gathered
from lora.report.notes import BANNERS, NOTES, conditions, encoder_notes, note
from lora.report.runs import (
    CELL,
    OWN,
    facts_of,
    labelled,
    slug_label,
    summarise,
    task_labels,
    task_title,
    task_units,
    told_apart,
    with_records,
)
from lora.report.stats import (
    DIGITS,
    ENOUGH_SEEDS,
    LEVEL,
    ON_ROWS,
    POWER,
    all_pairs,
    ends,
    holm,
    interval_of,
    mean_interval,
    needed_text,
)
from lora.report.tables import collapsed_text, rates_text, score, seeds, trainable
from lora.table import Cell, Table, Value, number

REPEATED = "repeated"  # the folder of runs trained again, below that of the records


def groups_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The methods of one encoder, in the tables' order: label -> runs. Labels distinguish protocols."""
    return {str(label): group for label, group in runs.groupby(told_apart(runs, ["protocol"]), sort=False)}


def method_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """`lora.report.stats.all_pairs` on each encoder, with the columns model, place (the label of the task, or Avg.) and
    p_holm, corrected over all of them. A user's own tasks are not averaged: their metrics may be unlike."""
    found = [all_pairs(groups_of(group)).assign(model=model) for model, group in runs.groupby("model", sort=False)]
    table = with_place(pd.concat(found, ignore_index=True), runs)
    if runs["kind"].eq("own").any():
        table = table[table["task"] != "Avg."]
    return table.assign(p_holm=holm(table["p"].tolist()))


def with_place(pairs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(place=pairs["task"].map(task_labels(runs) | {"Avg.": "Avg."}))


def pairs_table(pairs: pd.DataFrame, analyses: Analyses) -> pd.DataFrame:
    """`method_pairs` as a table."""
    lines = []
    for row in pairs.itertuples():
        line = {"Model": row.model} if pairs["model"].nunique() > 1 else {}
        line |= {"Method": row.one, "Minus": row.other}
        line |= {"Task": row.place, "n": row.n}
        line |= {"Difference": number(row.mean, "+.1f"), f"{LEVEL:.0%} over seeds": ends(row.low, row.high)}
        for sampled in ("examples", "both"):
            line[f"... over {sampled}"] = ends(*analyses.over_rows(row.runs, "best", sampled))
        lines.append(line | {"p": number(row.p, ".2g"), "p (Holm)": number(row.p_holm, ".2g")})
    return pd.DataFrame(lines)


def answers(pairs: pd.DataFrame, analyses: Analyses, origins: Mapping[str, str]) -> list[str]:
    """`LoRA (qv, r8) - Full fine-tuning, my_task: -4.4 (-14.9 to +6.0), n = 3: undecided; ...`, a line per pair and
    task.

    A method is higher or lower if all of the 95% interval over seeds is above or below 0, and not on fewer than
    `ENOUGH_SEEDS` pairs, as for the paper's claims; `on these dev rows` if the interval for other rows includes 0. A
    method is judged against another only if both rates were chosen alike. `origins`: as of `origins_of`.
    """
    lines = []
    for row in pairs.dropna(subset=["mean"]).itertuples():
        one, other = ({origins[run_id] for run_id in side if run_id in origins} for side in zip(*row.runs, strict=True))
        low, high = analyses.over_rows(row.runs, "best")
        if one and other and one != other:
            chosen = " and ".join(" or ".join(sorted(side)) for side in (one, other))
            word = f"not judged, because their learning rates were not chosen alike: {chosen}"
        elif row.n >= ENOUGH_SEEDS and (row.low > 0 or row.high < 0):
            word = "higher" if row.low > 0 else "lower"
            if low <= 0 <= high:
                rows = analyses.own_rows.get(row.task, {}).get("rows")
                word += ON_ROWS + (rows_text(rows_needed(row, analyses, rows[1])) if rows else "")
        else:
            few = f"; a verdict needs at least {ENOUGH_SEEDS} seeds" * (row.n < ENOUGH_SEEDS)
            word = f"undecided{few}{needed_text(row.needed, 'tell them apart')}"
        about = LOWER * row.place.endswith(f"{LOWER})") + f", {row.model}" * (pairs["model"].nunique() > 1)
        both = "" if pd.isna(low) else f", for other seeds and rows {ends(low, high)}"
        value = f"{interval_of(row).shown}{both}, n = {row.n}"
        lines.append(f"{row.one} - {row.other}, {task_title(row.task)}{about}: {value}: {word}")
    return lines


def rows_needed(row: Any, analyses: Analyses, rows: int) -> float:
    """The number of dev rows at which the interval for other seeds and rows would exclude 0 with a probability of
    `POWER`, at this difference, these seeds and this spread over rows; infinite if more rows cannot do it."""
    deviates = special.ndtri((1 + LEVEL) / 2) + special.ndtri(POWER)
    over_rows = (analyses.over_rows(row.runs, "best", "examples")[1] - row.mean) / special.ndtri((1 + LEVEL) / 2)
    over_seeds = (row.high - row.mean) / special.stdtrit(row.n - 1, (1 + LEVEL) / 2)
    left = (row.mean / deviates) ** 2 - over_seeds**2
    return math.ceil(rows * over_rows**2 / left) if left > 0 else math.inf


def rows_text(rows: float) -> str:
    """A part of a sentence about `rows_needed`."""
    needed = f"about {rows:,.0f} dev rows" if math.isfinite(rows) else "more seeds and dev rows"
    return f"; {needed} would show it for others with {POWER:.0%} power"


def origins_of(runs: pd.DataFrame, rates: Iterable[Rate]) -> dict[str, str]:
    """run_id -> how its rate was chosen: `untuned`, or `tuned, of 3 values`. Without runs whose rate was stated."""
    sizes = {(*rate.key, rate.lr): f"tuned, of {rate.tuned_alike}" for rate in rates}
    found = {}
    for run in runs.dropna(subset="rate_from").itertuples():
        if run.rate_from != "stated":
            tuned = sizes.get((run.model, run.protocol, run.task, run.rate_name, run.lr), "tuned")
            found[run.run_id] = tuned if run.rate_from == "tuned" else "untuned"
    return found


def minus(runs: pd.DataFrame, base: str | Mapping[str, str], score: str = "best") -> pd.DataFrame:
    """Each method minus the one of label `base`, or of its label there, per task: rows of
    `lora.report.stats.all_pairs`."""
    groups = groups_of(runs)
    if isinstance(base, str):
        base = {label: base for label in groups if base in groups and label != base}
    pairs = with_place(all_pairs(groups, score, base.items()), runs)
    return pairs[pairs["task"].ne("Avg.")]


def successors_table(
    runs: pd.DataFrame, summary: pd.DataFrame, from_lora: pd.DataFrame, paper: pd.DataFrame | None
) -> pd.DataFrame:
    """One line per method: its rate, and per task its cell, its difference from LoRA, and those that papers print.

    Args:
        from_lora: `minus` of the runs.
        paper: The cells that papers print of the methods and of LoRA.
    """
    texts = {(row.one, row.task): interval_of(row).shown for row in from_lora.itertuples()}
    lines, tasks = [], task_labels(summary)
    for label, group in summary.groupby("label", sort=False):
        line = {"Method": label, "Learning rate": rates_text(runs[runs["label"] == label])}
        line |= {"Trainable": trainable(group), "Seeds": seeds(group)}
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
            change = (best.iloc[:, -1] - best.iloc[:, 0]).dropna().round(DIGITS) if len(titles) > 1 else best[:0]
            lines.append(line | {"Change": mean_interval(change.to_numpy()).shown, "Pairs": len(change)})
    return pd.DataFrame(lines)


def repeated_table(name: str, folder: Path, runs: pd.DataFrame) -> Table | None:
    """The runs that were trained again on another device, whose records are in `<results>/repeated`; None without any.

    Raises: UserError: If a file is not a record, or a run was trained on other rows the second time.
    """
    records, problems = load_records(folder / REPEATED)
    if problems:
        raise UserError("; ".join(problems))
    again, first = load_frame(records), runs.set_index("run_id")["fingerprint"].dropna().to_dict()
    if moved := [run.run_id for run in again.itertuples() if first.get(run.run_id, run.fingerprint) != run.fingerprint]:
        raise UserError(f"repeated on other rows, so not the same run: {', '.join(moved)}")
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
    sides = [labelled(asked), with_records(committed, load_frame(records))]
    for side in sides:
        same = side["columns"].map(lambda named: sorted((k, v) for k, v in named.items() if k not in OF_MACHINES))
        side["settings"] = same.astype(str)
    keys = [key for key in (*CELL, "seed", "settings") if key != "label"]
    title = f"Your runs, and the same runs of the reference ({gathered.name})"
    return twice_table("reference", title, sides[0], sides[1].drop_duplicates(keys), keys)


def twice_table(file: str, title: str, runs: pd.DataFrame, again: pd.DataFrame, on: list[str]) -> Table | None:
    """Runs and their repetitions, one line per cell and pair of devices; None without any. `on`: a run's identity."""
    pairs = runs.dropna(subset="device").merge(again[[*on, "best", "device"]], on=on, suffixes=("", "_2"))
    lines, tasks = [], task_labels(runs)
    for (*_, label, _, task, device, other), cell in pairs.groupby([*CELL, "device", "device_2"], sort=False):
        one, two = 100 * cell["best"], 100 * cell["best_2"]
        changes = (two - one).round(DIGITS)
        line = {"Method": label, "Task": tasks[task], "Devices": f"{device}, {other}"}
        line |= {"Seeds": len(cell), "First": number(one.mean()), "Second": number(two.mean())}
        line |= {"Change": mean_interval(changes.dropna().to_numpy()).shown, "SD of the change": number(changes.std())}
        lines.append(line | {"SD of two seeds": number(math.sqrt(2) * one.std())})
    return Table(file, title, pd.DataFrame(lines), 3, (note(REPEATED),), units=task_units(runs)) if lines else None


TITLE = "Learning rates tried, on seeds outside the tables of results"
ORIGINS = {
    "conf": "in conf/hparams",
    "default": "default, not tuned for this task",
    "tuned": "tuned",
    "stated": "stated by the command",
}


def learning_rate_table(name: str, tried: pd.DataFrame, curves: pd.DataFrame, by_task: bool = False) -> Table | None:
    """One line per row and trained rate; None if no run was trained.

    A row is the runs that are equal in every setting but the rate and the seed. A value is the mean over its seeds,
    whose number is stated where there are several.

    Args:
        by_task: Whether each task has a rate of its own, chosen by the unselected score, as in `layers`.
    """
    rows = tried_rows(tried)
    if by_task:
        names = rows["label"] + ", " + rows["task"].map(task_title)
        rows = rows.assign(label=names, best=rows["split_half"].astype(float))
    runs = rows.dropna(subset="lr")
    if runs.empty:
        return None
    tasks, best, lines = task_labels(runs), taken(rows), []
    for label, of_row in runs.groupby("label", sort=False):
        for rate, of_rate in of_row.groupby("lr"):
            line, means = {"Method": label, "Learning rate": f"{rate:g}"}, []
            for task, title in tasks.items():
                cell = of_rate[of_rate["task"] == task]
                count = f"{len(cell)} seeds" if len(cell) > 1 else ""
                remark = collapsed_text(int(cell["collapsed"].sum()), len(cell)) or count
                means.append(100 * cell["best"].mean())
                line[title] = number(means[-1], ".1f", remark)
            line |= {} if by_task else {"Avg.": number(pd.Series(means).mean(skipna=False))}
            edge = " (edge)" if rate in (of_row["lr"].min(), of_row["lr"].max()) else ""
            lines.append(line | {"Taken": f"yes{edge}" if best.get(label) == rate else ""})
    notes = (note(f"{LEARNING_RATE}_by_task" if by_task else LEARNING_RATE), *encoder_notes(runs["model"]))
    banner = " ".join(filter(None, map(BANNERS.get, runs["kind"].unique())))
    above, drawn = conditions(tried, curves), {"rates": by_rate(runs)}
    title, units = f"{TITLE} ({name})", task_units(runs)
    return Table(LEARNING_RATE, title, pd.DataFrame(lines), 2, notes, banner, above, drawn, units=units)


def tried_rows(tried: pd.DataFrame) -> pd.DataFrame:
    """The tried runs, each with the label of its row, which names the encoder or protocol if there are several."""
    tried = labelled(tried, without=("train.lr",))
    return tried.assign(label=told_apart(tried, ["model", "protocol"]))


def taken(rows: pd.DataFrame) -> dict[str, float]:
    """Label -> the rate with the best mean over tasks, each task first averaged over its seeds; the smaller on a tie.
    Only rates that were tried on every task and seed of the row count. Rows with a missing run are excluded."""
    found, rows = {}, rows.assign(best=rows["best"].astype(float) * rows["metric"].map(better))
    for label, of_row in rows.groupby("label", sort=False):
        if of_row["lr"].notna().all():
            by_rate = of_row.pivot(index="lr", columns=["task", "seed"], values="best").sort_index().dropna()
            if len(by_rate):
                found[str(label)] = float(by_rate.T.groupby("task").mean().mean().idxmax())
    return found


def best_rates(tried: pd.DataFrame) -> pd.DataFrame:
    """The runs at the rate that each method, without other settings, takes on each encoder."""
    found = [tried[:0].assign(label="")]
    plain = ["train.head_lr" not in columns for columns in tried["columns"]]  # no label names what all its rows share
    for _, of_model in tried.loc[plain].groupby("model", sort=False):
        rows = tried_rows(of_model)
        rows = rows[rows["label"].eq(rows["slug"].map(slug_label))]
        found.append(rows[rows["lr"].eq(rows["label"].map(taken(rows)))])
    return pd.concat(found)


def rates_table(runs: pd.DataFrame, rates: Iterable[Rate]) -> pd.DataFrame:
    """Each method's learning rate on each task, and how it was chosen. `rates`: the tuned ones."""
    known, lines = {(*one.key, one.lr): one for one in rates}, []
    runs = runs.assign(label=told_apart(runs, ["model", "protocol"]))
    for run in runs.dropna(subset="lr").drop_duplicates(["label", "task", "lr", "rate_from"]).itertuples():
        chosen = ORIGINS["stated" if pd.isna(run.rate_from) else run.rate_from]
        rate = known.get((run.model, run.protocol, run.task, run.rate_name, run.lr))
        if run.rate_from == "tuned" and rate is not None:  # the file may have changed since
            edge = ", at the edge" * (rate.lr in (min(rate.tried), max(rate.tried)))
            chosen += f", of {rate.tuned_alike.replace(' values', '')}{edge}"
        line = {"Method": run.label, "Task": task_title(run.task)}
        lines.append(line | {"Learning rate": f"{run.lr:g}", "Chosen": chosen})
    return pd.DataFrame(lines)


def tuning_banner(runs: pd.DataFrame) -> str:
    """What stands above the tables if no learning rate was tuned, or stated for every method."""
    origins = set(runs["rate_from"].dropna())
    return NOTES["untuned"] if origins - {"stated"} and "tuned" not in origins else ""
