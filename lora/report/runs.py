"""The frame of a report: one row per run of a table, trained or not. Every table is made from its rows.

Columns: experiment; the setting of the run (`FACTS`), and all others that name it, by their keys (`train.epochs`);
`terms`, the epochs, length and train rows in which two runs must agree to be compared, and `stated`, the settings of
data and training that a command states: not what conf/ gives each method; `LORA`: its short targets and its rank, else
"" and 0; `RATE`: how its learning rate was chosen, as of the last launch that asked for it, and the number of train
rows of the whole split; `label`, the name of its row; `kind`, one of `KINDS`; and, if it is trained, the columns of
`lora.records.record.load_frame` and `collapsed`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lora.config.rates import MAY_DIFFER
from lora.config.run import DRAW, EPOCHS, LENGTH, SIZE, PlannedRun
from lora.data.tasks import TASKS, task_order
from lora.errors import UserError
from lora.methods.configs import METHOD_TITLES, TARGET_TITLES, LoraConfig, method_words, targets_in_slug, targets_word
from lora.report.experiments import EXPERIMENTS, MAIN, OWN, ROWS
from lora.report.labels import named_settings, setting, setting_columns, setting_labels

METRIC_SHORT = {"accuracy": "acc.", "f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews", "pearson": "Pearson"}
METRIC_SHORT |= {"spearman": "Spearman"}
START_TITLES = {"pretrained": "pretrained", "mnli": "MNLI"}
ENCODER_TITLES = {
    "minilm": "all-MiniLM-L6-v2",
    "mpnet_base": "all-mpnet-base-v2",
    "roberta_base": "RoBERTa-base",
    "roberta_large": "RoBERTa-large",
    "deberta_v2_xxl": "DeBERTa-XXL",
}
VALUE_TITLES = START_TITLES | ENCODER_TITLES
ROW_SUFFIXES = {"start": ", from {}", "model": ", {}", "protocol": ", protocol {}"}  # tell rows of one label apart


def method_label(slug: str) -> str:
    """`LoRA (qv, r8)` of lora-qv-r8, `DoRA (qv, r8)` of lora-qv-r8-dora."""
    title, details = method_words(slug)
    return title + (f" ({', '.join(details)})" if details else "")


def encoder_title(model: str) -> str:
    return ENCODER_TITLES.get(model, model)


def task_title(task: str) -> str:
    """The title of a task; a user-defined one has its name."""
    return TASKS[task].title if task in TASKS else task


def task_labels(runs: pd.DataFrame) -> dict[str, str]:
    """Task -> `CoLA (Matthews)`, in the tables' order. `runs`: any frame with the columns task and metric."""
    return dict(zip(tasks_of(runs), task_units(runs), strict=True))


def task_units(runs: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The label of each task -> its title, and its metric."""
    metrics = dict(zip(runs["task"], runs["metric"], strict=True))
    parts = [(task_title(task), METRIC_SHORT.get(metrics[task], metrics[task])) for task in tasks_of(runs)]
    return {f"{title} ({metric})": (title, metric) for title, metric in parts}


def targets_and_ranks(runs: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """The label of each row of LoRA -> its target set in the paper's notation, with the words that follow in the label,
    and its rank. For variants, modules named in full and several ranks, the label instead of the target set."""
    by_label = {}
    for run in runs.drop_duplicates("label").itertuples():
        name = run.label
        if run.slug == f"lora-{run.targets}-r{run.rank}":
            name = ", ".join(map(TARGET_TITLES.get, run.targets)) + name.removeprefix(method_label(run.slug))
        by_label[run.label] = name, run.rank
    return by_label


def human_count(value: float) -> str:
    """A number of parameters as the paper prints it: 0.3M, 125.0M; below 0.1M in thousands."""
    return f"{value / 1e6:.1f}M" if value >= 99_500 else f"{value / 1e3:.0f}k"


FACTS = ["model", "protocol", "slug", "method", "start", "task", "seed"]
LORA = ["targets", "rank"]
RATE = ["rate_from", "rate_name", "whole_rows"]  # by which an entry of the user's rates is found
PLACE = ["protocol", "slug", "start", "task", "seed"]  # where a run stands in the tables of any encoder
ROW = ["model", "protocol", "slug", "method", "label"]  # the columns that identify a line of a table
CELL = [*ROW, "start", "task"]  # the columns that identify a cell
KINDS = ("whole", "part", "embedded", "own")  # of a task's train rows; a table holds one kind


def cell_key(row: Any) -> str:
    """The cell of a row of a frame with the columns `CELL`."""
    return " ".join(row[column] for column in CELL)


def facts_of(expected: Iterable[tuple[str, PlannedRun]]) -> pd.DataFrame:
    """What is known of runs before they are trained; of several that are the same run on all rows, however these were
    asked for, of the first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for experiment, run in expected:
        facts = {"experiment": experiment} | {name: getattr(run, name) for name in ("run_id", *FACTS)}
        if run.train_rows == run.whole_rows:
            run = replace(run, config=replace(run.config, data=replace(run.config.data, train_rows=None)))
        named = named_settings(run.config)
        stated = run.stated if experiment in (*MAIN, OWN) else {}  # others may compare lengths
        stated = {EPOCHS: run.config.train.epochs} if experiment == ROWS else stated  # which follow from the size
        terms = {key: stated.get(key, "usual") for key in (EPOCHS, LENGTH)} | {key: named[key] for key in (SIZE, DRAW)}
        facts |= {"task": run.task.name, "metric": run.task.metric, "terms": tuple(terms.values())}
        facts |= {"stated": tuple(key for key in stated if key in named and key not in MAY_DIFFER)}
        method = run.config.method
        is_lora = isinstance(method, LoraConfig)
        facts |= {"targets": targets_word(method.targets) if is_lora and targets_in_slug(method.targets) else ""}
        facts |= {"rank": method.rank if is_lora else 0}
        runtime = run.config.runtime
        facts |= {"rate_from": runtime.rate_from or "stated", "rate_name": runtime.rate_name}
        facts |= {"whole_rows": run.whole_rows}
        rows.setdefault((experiment, run.run_id), facts | named)
    settings = setting_columns(dict.fromkeys(key for row in rows.values() for key in row))
    columns = ["experiment", "run_id", *FACTS, "metric", "terms", "stated", *LORA, *RATE, *settings]
    return pd.DataFrame([*rows.values()], columns=columns, dtype=object)


def with_records(runs: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Add the label of the method, the kind of the train rows, and the columns of the records, missing without one.

    A GLUE task without a record is `part` if all those with records are, else `whole`.
    """
    families = {name: task.family for name, task in TASKS.items()}
    glue = {task for task in records["task"] if families.get(task) == "glue"}
    part = glue & set(records.loc[records["is_part"].eq(True), "task"])
    part = set(TASKS) if part and part == glue else part
    kinds = {name: "part" if name in part else "whole" for name, family in families.items() if family == "glue"}
    kind = runs["task"].map(families | kinds).fillna("own")
    runs = runs.fillna("null")  # settings that only other runs have
    runs = runs.assign(label=runs["slug"].map(method_label), kind=kind)
    return runs.merge(records.drop(columns=FACTS), on="run_id", how="left")


def with_labels(runs: pd.DataFrame, main: pd.DataFrame | None = None, without: Collection[str] = ()) -> pd.DataFrame:
    """The same runs, with labels that distinguish the rows of one method.

    Args:
        main, without: As of `lora.report.labels.setting_labels`; a table has a column for settings that name no row.
    """
    words = setting_labels(runs, runs[:0] if main is None else main, without)
    names = zip(runs["slug"].map(method_label), runs["run_id"].map(words), strict=True)
    runs = runs.assign(label=[", ".join(filter(None, parts)) for parts in names])
    return runs if "start" in without else runs.assign(label=row_names(runs, ["start"]))


def shared_settings(runs: pd.DataFrame, keys: Iterable[str], columns: Iterable[str] = ()) -> list[str]:
    """The settings in which all runs of a method on a task agree, or those of them that agree in `columns`."""
    counts = runs.groupby(["model", "slug", "start", "task", *columns])[[key for key in keys if key in runs]].nunique()
    return [key for key in counts if counts[key].eq(1).all()]


def row_names(runs: pd.DataFrame, by: Sequence[str] = ("model", "protocol", "start")) -> pd.Series:
    """The label of each run, with its protocol or start where runs of its label differ in it, and its encoder where any
    runs do: methods of two encoders are no comparison."""
    names = runs["label"]
    for key in by:
        places = [names, runs["task"]] if key == "start" else names  # starts may differ by task within a row
        differs = pd.Series(runs["model"].nunique() > 1, index=runs.index)
        if key != "model":
            differs = runs.groupby(places)[key].transform("nunique").gt(1).groupby(names).transform("any")
        titles = [ROW_SUFFIXES[key].format(VALUE_TITLES.get(value, value)) for value in runs[key]]
        titles = ["" if name.endswith(title) else title for name, title in zip(names, titles, strict=True)]
        names = names + pd.Series(titles, index=runs.index, dtype=object).where(differs, "")
    return names


def in_table_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by method and task as the tables list them, independently of the order of training."""
    methods, order = list(METHOD_TITLES), tasks_of(runs)

    def place(run) -> tuple:
        targets = run.targets  # a variant follows plain LoRA
        rank = run.rank
        size = (len(targets), [*TARGET_TITLES].index(targets[0]), targets, rank) if targets else ()
        at = order.index(run.task), run.seed, [*START_TITLES].index(run.start)
        return run.model, methods.index(run.method), run.protocol, size, run.slug, run.label, *at

    runs = runs.reset_index(drop=True)
    return runs.loc[[run.Index for run in sorted(runs.itertuples(), key=place)]]


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, aggregated over its seeds; in the table of train rows, per cell and `size`.

    Returns: Columns `CELL`, n, planned, median, mean, std, min, max (of `best` over seeds; std with ddof 1),
        last_median, trainable_method, trainable_head, seconds (mean), train_rows, collapsed (number of collapsed runs),
        kind, metric. Metrics are in percent; values that were not measured are NaN.
    Raises: UserError: If two runs of one cell have the same seed.
    """
    keys = [*CELL, "size"] if "size" in runs else CELL
    twice = runs[runs.duplicated([*keys, "seed"], keep=False)]
    if len(twice):
        raise UserError(f"two runs of one seed cannot be in one cell: {', '.join(twice['run_id'])}")
    runs = runs.assign(best=100 * runs["best"], last=100 * runs["last"], collapsed=runs["collapsed"].eq(1))
    table = runs.groupby(keys, sort=False).agg(
        n=("best", "count"),
        planned=("run_id", "size"),
        **{name: ("best", name) for name in ("median", "mean", "std", "min", "max")},
        last_median=("last", "median"),
        trainable_method=("trainable_method", "first"),
        trainable_head=("trainable_head", "first"),
        seconds=("seconds", "mean"),
        train_rows=("train_rows", "first"),
        collapsed=("collapsed", "sum"),
        kind=("kind", "first"),
        metric=("metric", "first"),
    )
    return table.reset_index().astype(dict.fromkeys(("trainable_method", "trainable_head", "train_rows"), "Int64"))


def with_others_epoch(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The same runs with `others_epoch`, a score without selection bias: the metric at the epoch that is best on the
    mean of the cell's other seeds; NaN for a single run."""
    values = {run_id: of_run["value"].to_numpy() for run_id, of_run in curves.groupby("run_id")}
    runs = runs.reset_index(drop=True)
    scores = pd.Series(np.nan, index=runs.index)
    for _, cell in runs[runs["best"].notna()].groupby(["experiment", *CELL]):
        if len(cell) > 1:
            scores[cell.index] = chosen_by_others(np.column_stack([values[run_id] for run_id in cell["run_id"]]))
    return runs.assign(others_epoch=scores)


def chosen_by_others(values: Float[np.ndarray, "epochs runs"]) -> Float[np.ndarray, " runs"]:
    """The value of each run of a cell at the epoch that is best on the mean of the others. An epoch in which some run's
    metric is undefined is chosen only if every epoch has such a run."""
    means = (values.sum(axis=1, keepdims=True) - values) / (values.shape[1] - 1)
    best = np.where(np.isnan(means), -np.inf, means).argmax(axis=0)
    return values[best, np.arange(values.shape[1])]


def with_edges(runs: pd.DataFrame, tried: pd.DataFrame) -> pd.DataFrame:
    """The same runs with `edge`: whether a run's rate is the lowest or the highest of those tried for its method on its
    task and number of train rows, in an experiment that chooses a rate for each."""
    keys = ["slug", "task", SIZE]
    chosen = [name for name, one in EXPERIMENTS.items() if one.rate_score]
    ends = tried.assign(**{SIZE: setting(tried, SIZE)}).groupby(keys)["lr"].agg(["min", "max"])
    ends = runs.assign(**{SIZE: setting(runs, SIZE)})[keys].join(ends, on=keys)
    at_end = runs["lr"].eq(ends["min"]) | runs["lr"].eq(ends["max"])
    return runs.assign(edge=runs["experiment"].isin(chosen) & at_end)


def tasks_of(runs: pd.DataFrame) -> list[str]:
    """The tasks, in the tables' order."""
    return task_order(set(runs["task"]))
