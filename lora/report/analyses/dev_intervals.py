"""`python -m lora analyse intervals PROFILE`: compute intervals for other dev rows from the runs' own predictions.

A record keeps its predictions, but no labels: GLUE's may not be redistributed, and marking the right predictions would
reveal them. This analysis therefore runs once, where the rows are available, and stores the intervals in
results/<profile>/analysis/examples.json, from which tables and verdicts are made anywhere.

It covers every comparison of scores in a claim, and every pair of methods in the main tables. Both intervals come from
the jackknife over rows, at the best epoch of each run: `examples` keeps the runs as they are, `both` samples seeds and
rows (`lora.report.stats.seeds_and_rows`). Runs that start from one MNLI run share it: neither interval samples that.
"""

import argparse
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from lora.data.metrics import METRICS, compute
from lora.data.read import read
from lora.errors import UserError
from lora.files import rounded
from lora.records.analysis import EXAMPLES, Compared, add_entries, comparison_key
from lora.records.predictions import dev_predictions
from lora.records.record import RunRecord, load_curves
from lora.report.build import Report, build_report
from lora.report.catalogue import sections_of
from lora.report.experiments import LAYERS, MAIN
from lora.report.gather import Gathered, run_here
from lora.report.gather import options as options
from lora.report.placements import from_base
from lora.report.stats import LEVEL, Interval, interval_of, seeds_and_rows


def comparisons(report: Report) -> dict[Compared, Interval]:
    """The comparisons of a report (`lora.records.analysis.comparison_key`), each with its interval over seeds."""
    intervals: dict[Compared, Interval] = {}
    for verdict in report.verdicts:
        for one in verdict.findings if verdict.claim.metric else ():
            intervals[comparison_key(one.runs, verdict.claim.metric)] = interval_of(one)
    for section in sections_of(report.gathered, load_curves(list(report.state.ok.values())), report.analyses):
        for row in section.pairs.itertuples() if section.experiment.name in MAIN else ():
            intervals[comparison_key(row.runs, "best")] = interval_of(row)
        for row in from_base(section.runs, report.analyses).itertuples() if section.experiment.name == LAYERS else ():
            intervals[comparison_key(row.runs, "unselected")] = interval_of(row)
    return {(pairs, score): interval for (pairs, score), interval in intervals.items() if pairs}


def pseudo_values(metric: str, predicted: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The jackknife's pseudo-values of a metric on R >= 2 rows, in points: R m - (R - 1) m(-i).

    An undefined metric counts as 0, as in the frame (`lora.records.predictions`).
    """
    sides = np.array([predicted, labels], np.float64)
    count = len(labels)
    score = METRICS[metric]
    _, firsts, kinds = np.unique(sides, axis=1, return_index=True, return_inverse=True)  # equal rows leave equal values
    left = [score(*np.delete(sides, row, axis=1)) or 0.0 for row in firsts]
    return 100 * (count * (score(*sides) or 0.0) - (count - 1) * np.array(left)[kinds.ravel()])


def bounds(over_seeds: Interval, tables: Sequence[Float[np.ndarray, "seeds _"]]) -> dict[str, float | None]:
    """The ends of both intervals. `tables`: per task, the pseudo-values of each pair's difference."""
    both = seeds_and_rows(over_seeds, tables)
    variance = sum(table.mean(axis=0).var(ddof=1) / table.shape[1] for table in tables) / len(tables) ** 2
    half = -special.ndtri((1 - LEVEL) / 2) * math.sqrt(variance)
    alone = {"examples_low": over_seeds.mean - half, "examples_high": over_seeds.mean + half}
    return rounded(alone | {"both_low": both.low, "both_high": both.high})


def compare(report: Report, labels: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The entries of the analysis, for the comparisons on tasks with labels. `labels`: as of `read_dev_labels`.

    Raises: UserError: If a file of predictions is absent, not the record's, or does not give the record's metric.
    """

    @functools.cache
    def values(run_id: str) -> Float[np.ndarray, " rows"]:
        record = report.state.ok[run_id]
        task = record.config["task"]
        predicted = dev_predictions(record, report.gathered.folder)["best"]
        metric = report.gathered.tasks[task].metric
        check_metric(record, metric, predicted, labels[task])
        return pseudo_values(metric, predicted, labels[task])

    def task_of(run_id: str) -> str:
        return report.state.ok[run_id].config["task"]

    entries = []
    for (compared, score), over_seeds in comparisons(report).items():
        pairs = sorted(compared)
        tasks = sorted({task_of(one) for one, _ in pairs})
        if all(len(labels.get(task, ())) > 1 for task in tasks):
            tables = [np.array([values(a) - values(b) for a, b in pairs if task_of(a) == task]) for task in tasks]
            entries.append({"pairs": pairs, "score": score, "tasks": tasks, **bounds(over_seeds, tables)})
    return entries


def check_metric(record: RunRecord, metric: str, predicted: np.ndarray, labels: np.ndarray) -> None:
    """Check that these labels give the record's metric. Raises: UserError: If they do not."""
    value = compute((metric,), predicted, labels)[metric] if len(predicted) == len(labels) else math.nan
    recorded = record.selected["best"]["value"]
    if value != recorded and (None in (value, recorded) or not math.isclose(value, recorded, abs_tol=1e-6)):
        raise UserError(
            f"the predictions of {record.run_id} and the labels at hand give {metric} {value}, its record has "
            f"{recorded}: these are not the rows that it was evaluated on"
        )


def read_dev_labels(gathered: Gathered) -> dict[str, np.ndarray]:
    """Task -> labels of the selecting split, read as a run would read them.

    Raises: UserError: If the rows are not available, or are not those of the records.
    """
    labels, runs = {}, gathered.runs.dropna(subset="device")
    for row in runs.drop_duplicates("task").itertuples():
        task = gathered.tasks[row.task]
        if task.metric not in METRICS or (task.is_definition_only and runs["task"].nunique() > 1):
            continue  # a metric that runs alone execute, or the command names the file of another task
        run = run_here(gathered.state.ok[row.run_id], gathered)
        data = read(run.task, **run.config.rows)
        if data.fingerprint != row.fingerprint:
            raise UserError(f"the rows of {row.task} are not those that {row.run_id} was trained on")
        labels[row.task] = np.asarray(data.splits[run.task.scoring_split]["label"])
    return labels


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 nothing to compare, or the rows or predictions are not available or not the records'."""
    report = build_report(given.profile, given.overrides)
    labels, folder = read_dev_labels(report.gathered), report.gathered.folder
    count = write_intervals(report, labels)
    if not count:
        raise UserError(
            f"{folder} has no two methods with runs of one seed on a task whose rows are at hand (those of one's own "
            f"are with task=FILE) and with a metric of this project: nothing can be compared"
        )
    print(f"{count} comparisons on {len(labels)} tasks: {folder / 'analysis' / EXAMPLES}")


def write_intervals(report: Report, labels: Mapping[str, np.ndarray]) -> int:
    """Write the analysis, if the report has any comparisons. Other current ones stay.

    Args:
        labels: As of `read_dev_labels`.
    Returns: The number of comparisons.
    """
    gathered = report.gathered
    entries = compare(report, labels)
    if not entries:
        return 0
    path = gathered.folder / "analysis" / EXAMPLES
    add_entries(path, entries, lambda entry: comparison_key(entry["pairs"], entry["score"]))
    return len(entries)
