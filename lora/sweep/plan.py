"""`python -m lora plan PROFILE`: estimate the cost of a sweep, in device hours and disk space."""

import argparse
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from lora.data.tasks import TASKS
from lora.models.sizes import SIZES, closed_form
from lora.sweep.estimate import PARAMETERS, SUSTAINED_FLOPS, compute_seconds, estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun
from lora.sweep.progress import duration
from lora.sweep.request import select_runs, sweep_settings

DEVICES = (1, 8, 64)
RECORD_BYTES = 3000  # ours, from committed records: settings and provenance
EPOCH_BYTES = 250  # ours, from committed records: one epoch's metrics
CHECKPOINT_COPIES = 3  # a parameter and AdamW's two moments, float32


@dataclass(frozen=True)
class Cost:
    """The cost of one run.

    Args:
        seconds: Time on one device. None without a record of this machine if the model's size is unknown too.
        measured: Whether `seconds` comes from records, not from `lora.sweep.estimate.compute_seconds`.
        kept_bytes: Permanent disk space: record, predictions, and the weights that other runs start from.
        checkpoint_bytes: Disk space during training. None if the number of trainable parameters is unknown.
    """

    run: PlannedRun
    seconds: float | None
    measured: bool
    kept_bytes: float
    checkpoint_bytes: float | None


def costs(runs: Sequence[PlannedRun], measured: Callable[[PlannedRun], float | None]) -> list[Cost]:
    """
    Args:
        measured: Returns a run's seconds according to records (`lora.sweep.estimate.estimator`).
    """
    parents = {run.parent for run in runs}
    found = []
    for run in runs:
        config = run.config
        trained = None
        if run.model in SIZES:
            trained = 4 * closed_form(run.model, config.method)  # excludes the head, less than 5% of any of them
        seconds = measured(run)
        rows = sum(TASKS[run.task].official_rows.get(split, 0) for split in TASKS[run.task].validation_splits)
        kept = RECORD_BYTES + EPOCH_BYTES * config.train.epochs + 2 * (4 if not TASKS[run.task].labels else 2) * rows
        kept += (trained or 0) if run.run_id in parents else 0
        checkpoint = None if trained is None else CHECKPOINT_COPIES * trained
        assumed = compute_seconds(run) if seconds is None else seconds
        found.append(Cost(run, assumed, seconds is not None, kept, checkpoint))
    return found


def makespan(found: Sequence[Cost], devices: int) -> float | None:
    """Seconds until all runs are done, one per device, in a sweep's order: runs without a parent first, longest first.

    Returns: None if the time of any run is unknown.
    """
    if any(cost.seconds is None for cost in found):
        return None
    total = 0.0
    for children in (False, True):
        free = [0.0] * devices
        for seconds in sorted((c.seconds for c in found if (c.run.parent is not None) == children), reverse=True):
            heapq.heappush(free, heapq.heappop(free) + seconds)
        total += max(free)
    return total


def disk_bytes(found: Sequence[Cost], devices: int) -> float | None:
    """Permanent bytes plus the largest checkpoints, one per device. None if a checkpoint's size is unknown."""
    checkpoints = [cost.checkpoint_bytes for cost in found]
    if None in checkpoints:
        return None
    return sum(cost.kept_bytes for cost in found) + sum(sorted(checkpoints)[-devices:])


def per_model(found: Sequence[Cost]) -> pd.DataFrame:
    rows = []
    for model in dict.fromkeys(cost.run.model for cost in found):
        own = [cost for cost in found if cost.run.model == model]
        known = all(cost.seconds is not None for cost in own)
        measured = sum(cost.measured for cost in own)
        rows.append(
            {
                "Model": model,
                "Runs": len(own),
                "Train examples": f"{sum(cost.run.examples for cost in own):,}",
                "Device hours": f"{sum(cost.seconds for cost in own) / 3600:,.1f}" if known else "-",
                "From records": f"{measured} of {len(own)} runs",
                "Kept on disk": size(sum(cost.kept_bytes for cost in own)),
            }
        )
    return pd.DataFrame(rows)


def size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def text(profile: str, found: Sequence[Cost]) -> str:
    lines = [f"# Plan of {profile}: {len(found)} runs", "", per_model(found).to_markdown(index=False), ""]
    if any(not cost.measured and cost.seconds is not None for cost in found):
        sizes = ", ".join(f"{model} {value / 1e6:,.0f}M" for model, value in PARAMETERS.items())
        lines += [
            f"Without records of an encoder on this machine, hours are an upper bound: 6 operations per parameter and "
            f"token, padding included, at {SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained ({sizes}). This is an "
            f"assumption, not a measurement.",
            "",
        ]
    if unknown := list(dict.fromkeys(cost.run.model for cost in found if cost.seconds is None)):
        lines += [f"The time of {', '.join(unknown)} is unknown until its first run on this machine has ended.", ""]
    rows = [
        {"Devices": n, "Time": time(makespan(found, n)), "Disk, with checkpoints": size(disk_bytes(found, n))}
        for n in DEVICES
    ]
    note = "One run per device, MNLI runs before those that start from them, the longest first."
    return "\n".join([*lines, pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), "", note, ""])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep will be launched with")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    runs = select_runs(arguments.profile, arguments.overrides)
    config = sweep_settings(arguments.profile, arguments.overrides)
    print(text(arguments.profile, costs(runs, estimator(records_of_this_machine(config)))))
