"""`python -m lora analyse intervals PROFILE`: compute intervals over dev examples from the runs' own predictions.

A record keeps the predictions of its best and last epoch, but no labels: GLUE's may not be redistributed, and marking
the right predictions would reveal them. This analysis therefore runs once, where the rows are available, and stores the
intervals in results/<profile>/analysis/examples.json, from which the tables are made anywhere.

Examples are resampled with replacement, the same ones for both methods and all seeds, and the metric is recomputed on
each resample. `examples` keeps the seeds fixed; `both` resamples the pairs of seeds too.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import write_atomically
from lora.records.analysis import EXAMPLES, analysis_json, read_analysis
from lora.records.predictions import dev_predictions, splits_of
from lora.records.record import RunRecord, load_records
from lora.report.analyses.command import check_target, config_here
from lora.report.analyses.command import options as options
from lora.report.comparisons import groups_of
from lora.report.gather import Gathered, gather
from lora.report.runs import MAIN
from lora.report.stats import LEVEL
from lora.rng import drawn

RESAMPLES = 2000
CHUNK = 2**22  # numbers in memory at once
RESAMPLED = ("accuracy", "f1", "macro_f1", "matthews", "pearson")  # functions of sums over examples


def statistics(
    metric: str, predicted: np.ndarray, labels: np.ndarray, classes: int = 2
) -> Float[np.ndarray, "rows parts"]:
    """The contribution of each example to the sums that determine a metric. `classes`: their number for macro F1."""
    x, y = predicted.astype(np.float64), labels.astype(np.float64)
    if metric == "accuracy":
        return (x == y)[:, None].astype(np.float64)
    if metric == "macro_f1":  # predicted and true, predicted, true: of each class
        of_class = [side[:, None] == np.arange(classes) for side in (x, y)]
        return np.concatenate([of_class[0] & of_class[1], *of_class], axis=1).astype(np.float64)
    if metric in ("f1", "matthews"):  # true positives, true negatives, false positives, false negatives
        return np.stack([x * y, (1 - x) * (1 - y), x * (1 - y), (1 - x) * y], axis=1)
    x, y = (
        side - side[0] - (side - side[0]).mean() for side in (x, y)
    )  # Pearson is unchanged; no cancellation, and constants give 0
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def score(metric: str, sums: Float[np.ndarray, "*resamples parts"], count: int) -> Float[np.ndarray, "*resamples"]:
    """The metric from the sums over `count` examples; NaN if undefined, but 0 for Matthews by GLUE's convention."""
    parts = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            value = parts[0] / count
        elif metric == "matthews":
            tp, tn, fp, fn = parts
            product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
            value = np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), 0.0)
        elif metric == "macro_f1":
            both, predicted, true = np.split(parts, 3)
            value = np.nanmean(2 * both / (predicted + true), axis=0)  # a class that occurs in neither has no F1
        elif metric == "f1":
            tp, _, fp, fn = parts
            value = 2 * tp / (2 * tp + fp + fn)
        else:
            x, y, xx, yy, xy = parts / count
            value = (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))
    return np.asarray(value)


def resampled(metric: str, runs: Sequence[np.ndarray], labels: np.ndarray, purpose: str) -> Float[np.ndarray, "b runs"]:
    """The metric of every run on each resample of the examples, in points. All runs share the resamples.

    Pearson's correlation of a constant is undefined and counts as 0, as in the frame (`lora.records.predictions`).
    """
    count, values = len(labels), []
    classes = 1 + int(max(values.max() for values in (*runs, labels)))
    parts = np.concatenate([statistics(metric, predicted, labels, classes) for predicted in runs], axis=1)
    step = max(1, CHUNK // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        picks = drawn((rows, count), count, "examples", purpose, start)
        flat = picks + count * np.arange(rows)[:, None]
        times = np.bincount(flat.ravel(), minlength=rows * count).reshape(rows, count)
        sums = (times @ parts).reshape(rows, len(runs), -1)
        values.append(100 * np.nan_to_num(score(metric, sums, count)))
    return np.concatenate(values)


def bounds(differences: Float[np.ndarray, "b pairs"], purpose: str) -> dict[str, float | None]:
    """The intervals of the mean difference over pairs of seeds, from the differences on each resample.

    Deviations between seeds are stretched to the width of Student's t, because bootstrap percentiles of so few values
    are too narrow (Hesterberg 2015, arXiv:1411.5279). A single pair has no interval over both.
    The interval over both errs on the wide side: the seeds differ partly because the examples are few, and resampling
    the examples counts that again.
    """
    tail = (1 - LEVEL) / 2
    means = differences.mean(axis=1)
    found = dict(zip(("examples_low", "examples_high"), quantiles(means, tail), strict=True))
    pairs = differences.shape[1]
    if pairs < 2:
        return {**found, "both_low": None, "both_high": None}
    picks = drawn(differences.shape, pairs, "seeds", purpose)
    stretch = math.sqrt(pairs / (pairs - 1)) * stats.t.ppf(tail, pairs - 1) / stats.norm.ppf(tail)
    both = means + stretch * (np.take_along_axis(differences, picks, axis=1).mean(axis=1) - means)
    return found | dict(zip(("both_low", "both_high"), quantiles(both, tail), strict=True))


def quantiles(values: np.ndarray, tail: float) -> list[float]:
    return [float(f"{value:.6g}") for value in np.quantile(values, (tail, 1 - tail))]


def compare(gathered: Gathered, labels: Mapping[str, np.ndarray], results: Path) -> list[dict[str, Any]]:
    """The entries of the analysis: every method compared with every other, per task.

    Args:
        labels: Task -> labels of the selecting split, in its order.
    Raises: UserError: If a file of predictions is absent, not the record's, or does not give the record's metric.
    """
    entries = []
    for experiment in MAIN:
        planned = gathered.planned.get(experiment, ())
        for model in dict.fromkeys(p.model for p in planned):
            groups = groups_of([p for p in planned if p.model == model])
            ids = {run_id for group in groups.values() for run_id in group}
            for task in labels:
                runs = gathered.frame[(gathered.frame["task"] == task) & gathered.frame["run_id"].isin(ids)]
                if len(runs):
                    entries += of_task(gathered, runs, groups, task, labels[task], results, model)
    return entries


def of_task(
    gathered: Gathered,
    runs: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    task: str,
    labels: np.ndarray,
    results: Path,
    model: str,
) -> list[dict[str, Any]]:
    metric = TASKS[task].metric
    if metric not in RESAMPLED:
        raise UserError(f"the examples of {task} are not resampled: its metric is {metric}, not {', '.join(RESAMPLED)}")
    records = [gathered.state.ok[run_id] for run_id in runs["run_id"]]
    predicted = [dev_predictions(record, results)["best"] for record in records]
    for record, values in zip(records, predicted, strict=True):
        check(record, metric, values, labels)
    points = resampled(metric, predicted, labels, task)
    place = {run_id: i for i, run_id in enumerate(runs["run_id"])}
    seeds = dict(zip(runs["run_id"], runs["seed"], strict=True))
    entries, names = [], list(groups)
    for later, one in enumerate(names):
        for other in names[:later]:
            mine = {seeds[r]: place[r] for r in groups[one] if r in place}
            theirs = {seeds[r]: place[r] for r in groups[other] if r in place}
            common = sorted(set(mine) & set(theirs))
            if common:
                differences = points[:, [mine[s] for s in common]] - points[:, [theirs[s] for s in common]]
                entry = {"model": model, "one": one, "other": other, "task": task, "examples": len(labels)}
                entries.append({**entry, "pairs": len(common), **bounds(differences, f"{task} {one} {other}")})
    return entries


def check(record: RunRecord, metric: str, predicted: np.ndarray, labels: np.ndarray) -> None:
    """Check that these labels give the record's metric. Raises: UserError: If they do not."""
    value = math.nan
    if len(predicted) == len(labels):
        classes = 1 + int(max(predicted.max(), labels.max()))
        value = float(score(metric, statistics(metric, predicted, labels, classes).sum(axis=0), len(labels)))
    recorded = record.selected["best"]["value"]
    if not (math.isclose(value, recorded or 0.0, abs_tol=1e-6) or (recorded is None and math.isnan(value))):
        raise UserError(
            f"the predictions of {record.run_id} and the labels at hand give {metric} {value:.6f}, its record has "
            f"{recorded}: these are not the rows that it was evaluated on"
        )


def compared(gathered: Gathered) -> pd.DataFrame:
    """The frame's rows of the runs in tables of methods by tasks, without those that chose learning rates."""
    ids = {p.run_id for experiment in MAIN for p in gathered.planned.get(experiment, ())}
    return gathered.frame[gathered.frame["run_id"].isin(ids)]


def read_labels(gathered: Gathered) -> dict[str, np.ndarray]:
    """Task -> labels of the selecting split, read as a run would read them.

    Raises: UserError: If the rows are not available, or are not those of the records.
    """
    from lora.data.read import read  # loads the library of data sets

    labels, runs = {}, compared(gathered)
    for row in runs.drop_duplicates("task").itertuples():
        if TASKS[row.task].is_definition_only and runs["task"].nunique() > 1:
            continue  # the command names the file of another task
        data, task = config_here(gathered.state.ok[row.run_id], gathered).data, TASKS[row.task]
        found = read(task, data.source, data.path, data.revision, data.train_rows)
        if found.fingerprint != row.fingerprint:
            raise UserError(f"the rows of {row.task} are not those that {row.run_id} was trained on")
        splits = splits_of(gathered.state.ok[row.run_id])
        labels[row.task] = np.concatenate([np.asarray(found.splits[split]["label"]) for split in splits])
    return labels


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 nothing to compare, or the rows or predictions are not available or not the records'."""
    gathered = gather(given.profile, given.overrides)
    check_target(gathered, given.reference)
    labels = read_labels(gathered)
    entries = compare(gathered, labels, gathered.folder)
    if not entries:
        raise UserError(
            f"{gathered.folder} has no two methods with runs of one seed on a task whose rows are at hand: nothing can "
            f"be compared"
        )
    runs = compared(gathered)
    made_from = {r: gathered.state.ok[r].predictions for r in runs.loc[runs["task"].isin(list(labels)), "run_id"]}
    path = gathered.folder / "analysis" / EXAMPLES
    kept_from, kept = of_other_tasks(path, gathered, set(labels))
    write_atomically(path, analysis_json(kept_from | made_from, [*kept, *entries]))
    print(f"{len(entries)} comparisons on {len(labels)} tasks: {path}")


def of_other_tasks(path: Path, gathered: Gathered, tasks: set[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What an earlier analysis has of other tasks: the hashes that it was made from, and its entries.

    A task of which a record has changed since is left out.
    """
    if not path.exists():
        return {}, []
    content, records = read_analysis(path), {record.run_id: record for record in load_records(gathered.folder)[0]}
    task_of = {run_id: records[run_id].config["task"] for run_id in content["made_from"] if run_id in records}
    changed = {
        task_of.get(run_id)
        for run_id, digest in content["made_from"].items()
        if run_id not in records or records[run_id].predictions != digest
    }
    kept = [one for one in content["entries"] if one["task"] not in tasks and one["task"] not in changed]
    names = {one["task"] for one in kept}
    return {r: digest for r, digest in content["made_from"].items() if task_of.get(r) in names}, kept
