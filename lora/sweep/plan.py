"""`python -m lora plan PROFILE`: what a sweep will cost before it is launched, in device hours and in disk."""

import argparse
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from lora.config.compose import compose_config, compose_run
from lora.data.tasks import TASKS
from lora.models.sizes import SIZES, closed_form
from lora.records.record import load_records
from lora.sweep.announce import PARAMETERS, SUSTAINED_FLOPS, compute_seconds, reference_records
from lora.sweep.expand import Cell, estimator, requested
from lora.sweep.progress import duration

DEVICES = (1, 8, 64)
RECORD_BYTES = 3000  # ours, of records at hand: settings, provenance; and per epoch:
EPOCH_BYTES = 250
CHECKPOINT_COPIES = 3  # a parameter and AdamW's two moments, float32


@dataclass(frozen=True)
class Cost:
    """Of one cell.

    Args:
        seconds: Of one device; None if neither a record nor the size of the model is known.
        measured: Whether `seconds` comes from records; else from operations (`lora.sweep.announce.compute_seconds`).
        kept_bytes: What stays: record, predictions, and the weights that other cells start from.
        checkpoint_bytes: While it runs; None if the size of the trained part is not known.
    """

    cell: Cell
    seconds: float | None
    measured: bool
    kept_bytes: float
    checkpoint_bytes: float | None


def costs(cells: Sequence[Cell], measured: Callable[[Cell], float | None]) -> list[Cost]:
    """
    Args:
        measured: Seconds of a cell from records (`lora.sweep.expand.estimator`).
    """
    parents = {cell.parent for cell in cells}
    found = []
    for cell in cells:
        config = compose_run(cell.overrides)
        trained = None
        if cell.model in SIZES:
            trained = 4 * closed_form(cell.model, config.method)  # the head is left out: less than 5% of any of them
        seconds = measured(cell)
        rows = sum(TASKS[cell.task].official_rows.get(split, 0) for split in TASKS[cell.task].validation_splits)
        kept = RECORD_BYTES + EPOCH_BYTES * config.train.epochs + 2 * (4 if not TASKS[cell.task].labels else 2) * rows
        kept += (trained or 0) if cell.run_id in parents else 0
        checkpoint = None if trained is None else CHECKPOINT_COPIES * trained
        assumed = compute_seconds(cell) if seconds is None else seconds
        found.append(Cost(cell, assumed, seconds is not None, kept, checkpoint))
    return found


def makespan(found: Sequence[Cost], devices: int) -> float:
    """Seconds until all cells are done, one per device, as a sweep hands them out: parents first, longest first."""
    total = 0.0
    for children in (False, True):
        free = [0.0] * devices
        for seconds in sorted((c.seconds for c in found if (c.cell.parent is not None) == children), reverse=True):
            heapq.heappush(free, heapq.heappop(free) + seconds)
        total += max(free)
    return total


def disk_bytes(found: Sequence[Cost], devices: int) -> float | None:
    """What is kept, and the checkpoints of as many cells as run at once, the largest ones."""
    checkpoints = [cost.checkpoint_bytes for cost in found]
    if None in checkpoints:
        return None
    return sum(cost.kept_bytes for cost in found) + sum(sorted(checkpoints)[-devices:])


def per_model(found: Sequence[Cost]) -> pd.DataFrame:
    rows = []
    for model in dict.fromkeys(cost.cell.model for cost in found):
        own = [cost for cost in found if cost.cell.model == model]
        known = all(cost.seconds is not None for cost in own)
        measured = sum(cost.measured for cost in own)
        rows.append(
            {
                "Model": model,
                "Cells": len(own),
                "Train examples": f"{sum(cost.cell.examples for cost in own):,}",
                "Device hours": f"{sum(cost.seconds for cost in own) / 3600:,.1f}" if known else "-",
                "From records": f"{measured} of {len(own)} cells",
                "Kept on disk": size(sum(cost.kept_bytes for cost in own)),
            }
        )
    return pd.DataFrame(rows)


def size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def text(profile: str, found: Sequence[Cost]) -> str:
    lines = [f"# Plan of {profile}: {len(found)} cells", "", per_model(found).to_markdown(index=False), ""]
    if any(not cost.measured for cost in found):
        sizes = ", ".join(f"{model} {value / 1e6:,.0f}M" for model, value in PARAMETERS.items())
        lines += [
            f"Without records of an encoder: at most 6 operations per parameter and token, padding included, at "
            f"{SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained ({sizes}); an assumption, not a measurement.",
            "",
        ]
    if any(cost.seconds is None for cost in found):
        return "\n".join([*lines, "How long it takes is not known: run one cell of each encoder first.", ""])
    rows = [
        {"Devices": n, "Time": duration(makespan(found, n)), "Disk, with checkpoints": size(disk_bytes(found, n))}
        for n in DEVICES
    ]
    note = "One cell per device, MNLI runs before the cells that start from them, the longest first."
    return "\n".join([*lines, pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), "", note, ""])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="those that the sweep will be launched with")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a bad call."""
    cells = requested(arguments.profile, arguments.overrides)
    own = [override for override in arguments.overrides if override.startswith("runtime.")]
    results = compose_config([f"profile={arguments.profile}", *own]).runtime.results
    found = costs(cells, estimator([*reference_records(), *load_records(results)[0]]))
    print(text(arguments.profile, found))
