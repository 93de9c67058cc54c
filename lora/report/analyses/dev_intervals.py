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
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from lora.data.metrics import METRICS, compute
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import read_object, write_atomically
from lora.records.analysis import EXAMPLES, analysis_json
from lora.records.predictions import dev_predictions, splits_of
from lora.records.record import RunRecord, load_records
from lora.report.comparisons import groups_of
from lora.report.gather import Gathered, config_here, gather
from lora.report.gather import options as options
from lora.report.runs import MAIN
from lora.report.stats import LEVEL
from lora.rng import drawn

RESAMPLES = 2000
CHUNK = 2**22  # draws in memory at once


def resampled(metric: str, runs: Sequence[np.ndarray], labels: np.ndarray, purpose: str) -> Float[np.ndarray, "b runs"]:
    """The metric of every run on each resample of the examples, in points. All runs share the resamples. An undefined
    metric counts as 0, as in the frame (`lora.records.predictions`)."""
    count, score, values = len(labels), METRICS[metric], []
    sides, step = [run.astype(np.float64) for run in runs], max(1, CHUNK // count)
    for start in range(0, RESAMPLES, step):
        for picks in drawn((min(step, RESAMPLES - start), count), count, "examples", purpose, start):
            values.append([100 * (score(side[picks], labels[picks]) or 0.0) for side in sides])
    return np.array(values)


def bounds(differences: Float[np.ndarray, "b pairs"], purpose: str) -> dict[str, float | None]:
    """The intervals of the mean difference over pairs of seeds, from the differences on each resample.

    Deviations between seeds are stretched to the width of Student's t, because bootstrap percentiles of so few values
    are too narrow (Hesterberg 2015, arXiv:1411.5279). A single pair has no interval over both.
    The interval over both errs on the wide side: the seeds differ partly because the examples are few, and resampling
    the examples counts that again.
    """
    tail, pairs = (1 - LEVEL) / 2, differences.shape[1]
    means, both = differences.mean(axis=1), None
    if pairs > 1:
        picks = drawn(differences.shape, pairs, "seeds", purpose)
        stretch = math.sqrt(pairs / (pairs - 1)) * special.stdtrit(pairs - 1, tail) / special.ndtri(tail)
        both = means + stretch * (np.take_along_axis(differences, picks, axis=1).mean(axis=1) - means)
    found: dict[str, float | None] = {}
    for source, values in (("examples", means), ("both", both)):
        ends = (None, None) if values is None else np.quantile(values, (tail, 1 - tail))
        for name, end in zip(("low", "high"), ends, strict=True):
            found[f"{source}_{name}"] = None if end is None else float(f"{end:.6g}")
    return found


def compare(gathered: Gathered, labels: Mapping[str, np.ndarray], results: Path) -> list[dict[str, Any]]:
    """The entries of the analysis: every method compared with every other, per task. `labels`: as of `read_labels`.

    Raises: UserError: If a file of predictions is absent, not the record's, or does not give the record's metric.
    """
    entries = []
    for model, of_model in compared(gathered).groupby("model", sort=False):
        groups = groups_of(of_model)
        for task, true in labels.items():
            run_ids, metric = of_model.loc[of_model["task"] == task, "run_id"], TASKS[task].metric
            records = [gathered.state.ok[run_id] for run_id in run_ids]
            predicted = [dev_predictions(record, results)["best"] for record in records]
            for record, values in zip(records, predicted, strict=True):
                check(record, metric, values, true)
            points = pd.DataFrame(resampled(metric, predicted, true, task), columns=run_ids) if records else None
            for other, one in combinations(groups, 2):
                on_task = [groups[name][groups[name]["task"] == task] for name in (one, other)]
                sides = [runs.set_index("seed")["run_id"] for runs in on_task]
                if len(common := sides[0].index.intersection(sides[1].index).sort_values()):
                    found = [points[side[common]].to_numpy() for side in sides]
                    about = {"model": model, "one": one, "other": other, "task": task, "examples": len(true)}
                    purpose = f"{task} {one} {other}"
                    entries.append({**about, "pairs": len(common), **bounds(found[0] - found[1], purpose)})
    return entries


def check(record: RunRecord, metric: str, predicted: np.ndarray, labels: np.ndarray) -> None:
    """Check that these labels give the record's metric. Raises: UserError: If they do not."""
    value = compute((metric,), predicted, labels)[metric] if len(predicted) == len(labels) else math.nan
    recorded = record.selected["best"]["value"]
    if value != recorded and (None in (value, recorded) or not math.isclose(value, recorded, abs_tol=1e-6)):
        raise UserError(
            f"the predictions of {record.run_id} and the labels at hand give {metric} {value}, its record has "
            f"{recorded}: these are not the rows that it was evaluated on"
        )


def compared(gathered: Gathered) -> pd.DataFrame:
    """The trained runs in tables of methods by tasks, without those that chose learning rates."""
    runs = gathered.runs[gathered.runs["experiment"].isin(MAIN)]
    return runs.dropna(subset="device").drop_duplicates("run_id")


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
    labels = read_labels(gathered)
    entries = compare(gathered, labels, gathered.folder)
    if not entries:
        raise UserError(
            f"{gathered.folder} has no two methods with runs of one seed on a task whose rows are at hand (those of "
            f"one's own are with task=FILE): nothing can be compared"
        )
    runs = compared(gathered)
    made_from = {r: gathered.state.ok[r].predictions for r in runs.loc[runs["task"].isin(list(labels)), "run_id"]}
    path = gathered.folder / "analysis" / EXAMPLES
    if path.exists():  # it may have other tasks, of records that are still the same
        earlier, now = read_object(path), {r.run_id: r.predictions for r in load_records(gathered.folder)[0]}
        if all(now.get(run_id) == digest for run_id, digest in earlier["made_from"].items()):
            entries = [*(one for one in earlier["entries"] if one["task"] not in labels), *entries]
            made_from = earlier["made_from"] | made_from
    write_atomically(path, analysis_json(made_from, entries))
    print(f"{len(entries)} comparisons on {len(labels)} tasks: {path}")
