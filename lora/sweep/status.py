"""`python -m lora status PROFILE`: which cells are done, which run and where, what failed and why, what is left."""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora.config.compose import compose_config
from lora.records.record import checkpoint_path
from lora.sweep.announce import reference_records
from lora.sweep.expand import Cell, estimator, requested, state
from lora.sweep.locks import SILENT_SECONDS, Locks, heartbeat_age, lock_path, read_owner
from lora.sweep.progress import duration, shown

STATES = ("done", "running", "interrupted", "failed", "waiting")


@dataclass(frozen=True)
class Standing:
    """Where one cell stands.

    Args:
        state: One of `STATES`; `interrupted` cells are half-way, and the next launch goes on with them.
        seconds: What a done cell took.
        left_seconds: What is estimated to be left; None where nothing is known.
        step: Of `steps`; of an interrupted cell, where its checkpoint is.
        where: The worker of a running cell: host, process, job of the batch system.
        reason: Why it failed.
    """

    run_id: str
    state: str
    seconds: float | None = None
    left_seconds: float | None = None
    step: int | None = None
    steps: int | None = None
    metric: float | None = None
    where: str | None = None
    since: str | None = None
    reason: str | None = None


def standings(cells: Sequence[Cell], results: str | Path, outputs: str | Path) -> list[Standing]:
    """Of every cell, in the order in which they run.

    A record is what counts; without one a cell is known by its lock, the note of its worker, and its checkpoint.
    """
    now = state(cells, results)
    expected = estimator([*reference_records(), *now.ok.values()]) if len(now.ok) < len(cells) else lambda cell: None
    locks, found = Locks(outputs), []
    for cell in cells:
        run_id = cell.run_id
        if run_id in now.ok:
            found.append(Standing(run_id, "done", seconds=now.ok[run_id].seconds))
        elif runs(locks, run_id):
            found.append(running(cell, outputs, expected(cell)))
        elif run_id in now.failed:
            found.append(Standing(run_id, "failed", reason=now.failed[run_id].error))
        else:
            found.append(not_running(cell, outputs, expected(cell)))
    return found


def runs(locks: Locks, run_id: str) -> bool:
    """Whether a worker trains the cell: one that is seen to live, or whose heartbeat is recent."""
    if not locks.held(run_id):
        return False
    age = heartbeat_age(lock_path(locks.outputs, run_id))
    return age is None or age < SILENT_SECONDS


def running(cell: Cell, outputs: str | Path, expected: float | None) -> Standing:
    found = read_owner(lock_path(outputs, cell.run_id))
    where = since = None
    if found is not None:
        owner = found[0]
        where, since = f"{owner.host}, process {owner.pid}" + (f", {owner.job}" if owner.job else ""), owner.since
    note = read_note(Path(outputs) / "running" / f"{cell.run_id}.json")
    if note is None:
        return Standing(cell.run_id, "running", left_seconds=expected, where=where, since=since)
    step, steps, first = note["step"], note["steps"], note["first"]
    pace = (note["time"] - note["since"]) / (step - first) if step > first else None
    left = expected if pace is None else pace * (steps - step)
    return Standing(cell.run_id, "running", None, left, step, steps, note["metric"], where=where, since=since)


def read_note(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_bytes())
        return note if {"step", "steps", "first", "since", "time", "metric"} <= set(note) else None
    except (OSError, ValueError, TypeError):
        return None  # not there yet, or just replaced


def not_running(cell: Cell, outputs: str | Path, expected: float | None) -> Standing:
    """A checkpoint, or the lock of a worker that is gone, make a cell interrupted; else it waits."""
    checkpoint = checkpoint_path(outputs, cell.run_id)
    step = steps = None
    if checkpoint.exists():
        try:
            with safe_open(checkpoint, "np") as file:
                run = json.loads(file.metadata()["run"])
            step, steps = run["step"], run["steps"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass  # the run will say so and start from the beginning
    elif not lock_path(outputs, cell.run_id).exists():
        return Standing(cell.run_id, "waiting", left_seconds=expected)
    left = expected if expected is None or not steps else expected * (1 - step / steps)
    return Standing(cell.run_id, "interrupted", left_seconds=left, step=step, steps=steps)


def totals(found: Sequence[Standing]) -> dict[str, Any]:
    """Cells by state, seconds spent on done cells, and seconds left, with the number of cells they are not known of."""
    counts = Counter(one.state for one in found)
    open_cells = [one for one in found if one.state in ("running", "interrupted", "waiting")]
    return {
        "cells": len(found),
        **{name: counts[name] for name in STATES},
        "spent_seconds": sum(one.seconds for one in found if one.seconds is not None),
        "left_seconds": sum(one.left_seconds for one in open_cells if one.left_seconds is not None),
        "unknown": sum(one.left_seconds is None for one in open_cells),
    }


def text(profile: str, found: Sequence[Standing]) -> str:
    sums = totals(found)
    parts = ", ".join(f"{sums[name]} {name}" for name in STATES)
    left = f"about {duration(sums['left_seconds'])}" if sums["unknown"] < sums["cells"] - sums["done"] else "unknown"
    unknown = f", and {sums['unknown']} cells of unknown length" if sums["unknown"] and left != "unknown" else ""
    lines = [f"profile {profile}: {sums['cells']} cells: {parts}", f"work done: {duration(sums['spent_seconds'])}"]
    if sums["done"] + sums["failed"] < sums["cells"]:
        lines.append(f"work left: {left}{unknown}, one cell after another; judged by records of the same encoder")
    for name in ("running", "interrupted", "failed"):
        chosen = [one for one in found if one.state == name]
        lines += [f"\n{name}:", *(f"  {line(one)}" for one in chosen)] if chosen else []
    return "\n".join(lines)


def line(one: Standing) -> str:
    parts = [one.run_id]
    if one.steps:
        parts.append(f"step {one.step}/{one.steps}, metric {shown(one.metric)}")
    if one.state == "running":
        parts.append(f"left {'?' if one.left_seconds is None else duration(one.left_seconds)}")
        parts.append(f"on {one.where}, since {one.since}")
    if one.reason is not None:
        parts.append(one.reason)
    return "  ".join(parts)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    parser.add_argument("--json", action="store_true", help="all cells, as JSON")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a bad call."""
    cells = requested(arguments.profile, arguments.overrides)
    runtime = compose_config(
        [f"profile={arguments.profile}", *(o for o in arguments.overrides if o.startswith("runtime."))]
    ).runtime
    found = standings(cells, runtime.results, runtime.outputs)
    if arguments.json:
        print(json.dumps({"totals": totals(found), "cells": [dataclasses.asdict(one) for one in found]}, indent=1))
    else:
        print(text(arguments.profile, found))
