"""`python -m lora plan PROFILE`: estimate the cost of a sweep, in device hours and checkpoints."""

import argparse
from collections.abc import Sequence

import pandas as pd

from lora.models.sizes import SIZES, closed_form
from lora.records.record import RunRecord
from lora.sweep.estimate import PARAMETERS, SUSTAINED_FLOPS, compute_seconds, estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun
from lora.sweep.progress import duration
from lora.sweep.request import select_runs, sweep_settings

DEVICES = (1, 8, 64)
CHECKPOINT_BYTES = 12  # per trainable parameter: itself and AdamW's two moments, float32


def checkpoint_bytes(run: PlannedRun) -> float | None:
    """Disk space of a run while it trains; a third of it for good if others start from it. None if unknown.

    It excludes the head, which is less than 5% of the parameters that any method trains.
    """
    return CHECKPOINT_BYTES * closed_form(run.model, run.config.method) if run.model in SIZES else None


def text(profile: str, runs: Sequence[PlannedRun], known: Sequence[RunRecord]) -> str:
    """
    Args:
        known: Records of this machine (`lora.sweep.estimate.records_of_this_machine`).
    """
    measured = estimator(known)
    seconds = {run.run_id: compute_seconds(run) if measured(run) is None else measured(run) for run in runs}
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        times, sizes = [seconds[run.run_id] for run in own], [*map(checkpoint_bytes, own)]
        rows.append(
            {
                "Model": model,
                "Runs": len(own),
                "Train examples": f"{sum(run.examples for run in own):,}",
                "Device hours": "-" if None in times else f"{sum(times) / 3600:,.1f}",
                "From records": f"{sum(measured(run) is not None for run in own)} of {len(own)} runs",
                "Largest checkpoint": "-" if None in sizes else f"{max(sizes) / 1e6:,.1f} MB",
            }
        )
    lines = [f"# Plan of {profile}: {len(runs)} runs", "", pd.DataFrame(rows).to_markdown(index=False), ""]
    if any(measured(run) is None and seconds[run.run_id] is not None for run in runs):
        millions = ", ".join(f"{model} {value / 1e6:,.0f}M" for model, value in PARAMETERS.items())
        lines += [
            f"Without records of an encoder on this machine, hours are an upper bound: 6 operations per parameter and "
            f"token, padding included, at {SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained ({millions}). This is an "
            f"assumption, not a measurement.",
            "",
        ]
    if unknown := list(dict.fromkeys(run.model for run in runs if seconds[run.run_id] is None)):
        return "\n".join(
            [*lines, f"The time of {', '.join(unknown)} is unknown until its first run here has ended.", ""]
        )
    total, longest = sum(seconds.values()), max(seconds.values())
    hours = ", ".join(f"{n}: {duration(max(total / n, longest))}" for n in DEVICES)
    lines.append(f"Time by number of devices, one run on each: {hours}.")
    return "\n".join([*lines, "Each device holds a checkpoint; MNLI runs keep a third of theirs for others.", ""])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep will be launched with")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    runs = select_runs(arguments.profile, arguments.overrides)
    known = records_of_this_machine(sweep_settings(arguments.profile, arguments.overrides))
    print(text(arguments.profile, runs, known))
