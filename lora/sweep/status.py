"""`python -m lora status PROFILE`: which runs are done, running, failed or waiting, and the time left."""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora.config.compose import compose_config
from lora.config.folders import check_data_folder
from lora.records.record import RunRecord, checkpoint_path, note_path
from lora.sweep.estimate import estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun
from lora.sweep.locks import SILENT_SECONDS, Locks, lock_path, read_owner
from lora.sweep.progress import counted, duration, shown
from lora.sweep.request import how_to_run, requested
from lora.sweep.state import state

STATES = ("done", "running", "interrupted", "failed", "waiting")


@dataclass(frozen=True)
class Standing:
    """The state of one run.

    Args:
        state: One of `STATES`. The next launch resumes `interrupted` runs.
        seconds: Training time of a finished run.
        left_seconds: Estimated time left; None if unknown.
        step: The current step out of `steps`; for an interrupted run, the step of its checkpoint.
        where: The worker that trains it: host, process, and batch job if any.
        reason: The error of a failed run.
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


def standings(
    runs: Sequence[PlannedRun], results: str | Path, outputs: str | Path, timed: Sequence[RunRecord] = ()
) -> list[Standing]:
    """The state of every run, in the order in which they are trained.

    The state follows from an `ok` record, else a live lock and its worker's note, else a failed record, else a
    checkpoint or a dead lock.

    Args:
        timed: Records from which training times are estimated (`lora.sweep.estimate.records_of_this_machine`).
    """
    now = state(runs, results)
    expected = estimator(timed)
    locks, found = Locks(outputs), []
    for run in runs:
        run_id = run.run_id
        if run_id in now.ok:
            found.append(Standing(run_id, "done", seconds=now.ok[run_id].seconds))
        elif is_training(locks, run_id):
            found.append(running(run_id, outputs, expected(run)))
        elif run_id in now.failed:
            found.append(Standing(run_id, "failed", reason=now.failed[run_id].error))
        else:
            found.append(not_running(run_id, outputs, expected(run)))
    return found


def others_running(runs: Sequence[PlannedRun], outputs: str | Path) -> list[Standing]:
    """Runs outside the requested ones that are training in the same outputs folder."""
    known, locks = {run.run_id for run in runs}, Locks(outputs)
    held = sorted(path.stem for path in lock_path(outputs, "").parent.glob("[!.]*.json"))
    return [running(run_id, outputs, None) for run_id in held if run_id not in known and is_training(locks, run_id)]


def is_training(locks: Locks, run_id: str) -> bool:
    """Whether a worker trains the run: its process is not known to be dead, and its heartbeat is recent or unknown."""
    if not locks.held(run_id):
        return False
    age = heartbeat_age(lock_path(locks.outputs, run_id))
    return age is None or age < SILENT_SECONDS


def heartbeat_age(path: Path) -> float | None:
    """Seconds since a lock's last heartbeat by the clock of its file system, read from a nameless file in the folder.

    Returns: None if that file cannot be created, or the lock does not exist.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            return (os.fstat(file.fileno()).st_mtime_ns - path.stat().st_mtime_ns) / 1e9
    except OSError:
        return None


def running(run_id: str, outputs: str | Path, expected: float | None) -> Standing:
    found = read_owner(lock_path(outputs, run_id))
    where = since = None
    if found is not None:
        owner = found[0]
        where, since = f"{owner.host}, process {owner.pid}" + (f", {owner.job}" if owner.job else ""), owner.since
    note = read_note(note_path(outputs, run_id))
    if note is None:
        return Standing(run_id, "running", left_seconds=expected, where=where, since=since)
    step, steps, first = note["step"], note["steps"], note["first"]
    pace = (note["time"] - note["since"]) / (step - first) if step > first else None
    left = expected if pace is None else pace * (steps - step)
    return Standing(run_id, "running", None, left, step, steps, note["metric"], where=where, since=since)


def read_note(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_bytes())
        return note if {"step", "steps", "first", "since", "time", "metric"} <= set(note) else None
    except (OSError, ValueError, TypeError):
        return None  # not written yet, or just replaced


def not_running(run_id: str, outputs: str | Path, expected: float | None) -> Standing:
    """The state of a run without worker and record: `interrupted` with a checkpoint or a dead lock, else `waiting`."""
    checkpoint = checkpoint_path(outputs, run_id)
    step = steps = None
    if checkpoint.exists():
        try:
            with safe_open(checkpoint, "np") as file:
                content = json.loads(file.metadata()["run"])
            step, steps = content["step"], content["steps"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass  # the run will report it and start from the beginning
    elif not lock_path(outputs, run_id).exists():
        return Standing(run_id, "waiting", left_seconds=expected)
    left = expected if expected is None or not steps else expected * (1 - step / steps)
    return Standing(run_id, "interrupted", left_seconds=left, step=step, steps=steps)


def totals(found: Sequence[Standing]) -> dict[str, Any]:
    """Number of runs per state, seconds spent on finished runs, seconds left, and number of runs of unknown length."""
    counts = Counter(one.state for one in found)
    open_runs = [one for one in found if one.state in ("running", "interrupted", "waiting")]
    return {
        "runs": len(found),
        **{name: counts[name] for name in STATES},
        "spent_seconds": sum(one.seconds for one in found if one.seconds is not None),
        "left_seconds": sum(one.left_seconds for one in open_runs if one.left_seconds is not None),
        "unknown": sum(one.left_seconds is None for one in open_runs),
    }


def headline(profile: str, found: Sequence[Standing]) -> list[str]:
    """The lines about all runs: the number in each state, and the time spent and left."""
    sums = totals(found)
    counts = ", ".join(f"{sums[name]} {name}" for name in STATES)
    lines = [
        f"profile {profile}: {counted(sums['runs'], 'run')}: {counts}",
        f"time spent: {duration(sums['spent_seconds'])}",
    ]
    unfinished = sums["runs"] - sums["done"] - sums["failed"]
    if unfinished and sums["unknown"] == unfinished:
        lines.append("time left:  unknown until the first run has ended")
    elif unfinished:
        unknown = f", without {sums['unknown']} runs of unknown length" if sums["unknown"] else ""
        about = duration(sums["left_seconds"])
        lines.append(f"time left:  about {about} if run one after another, by records of this machine{unknown}")
    return lines


def text(profile: str, found: Sequence[Standing], others: Sequence[Standing] = ()) -> str:
    lines = headline(profile, found)
    for name in ("running", "interrupted", "failed"):
        chosen = [one for one in found if one.state == name]
        lines += [f"\n{name}:", *(f"  {line(one)}" for one in chosen)] if chosen else []
    lines += ["\nalso running, started with other overrides:", *(f"  {line(one)}" for one in others)] if others else []
    return "\n".join(lines)


def line(one: Standing) -> str:
    parts = [one.run_id]
    if one.steps:
        parts.append(f"step {one.step}/{one.steps}, metric {shown(one.metric)}")
    if one.state == "running":
        parts.append(f"left {left(one)}")
        parts.append(f"on {one.where}, since {one.since}")
    if one.reason is not None:
        parts.append(one.reason)
    return "  ".join(parts)


def left(one: Standing) -> str:
    return "?" if one.left_seconds is None else duration(one.left_seconds)


def looker(profile: str, overrides: Sequence[str]) -> Callable[[], tuple[list[Standing], list[Standing]]]:
    """
    Returns: A function that returns the current states of the requested runs, and of others that are training.
    Raises: UserError: If the overrides request no valid runs, or name a folder of data that does not exist.
    """
    runs = requested(profile, overrides)
    check_data_folder(overrides)
    config = compose_config([f"profile={profile}", *how_to_run(overrides)])
    results, outputs = config.runtime.results, config.runtime.outputs

    def look() -> tuple[list[Standing], list[Standing]]:
        found = standings(runs, results, outputs, records_of_this_machine(config))
        return found, others_running(runs, outputs)

    return look


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print every run, as JSON")
    shape.add_argument("--watch", action="store_true", help="a live view until nothing runs any more, or Ctrl-C")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    look = looker(arguments.profile, arguments.overrides)
    if arguments.watch and sys.stdout.isatty():
        from lora.sweep.live import watch  # loads rich

        watch(arguments.profile, look)
        return
    found, others = look()
    if arguments.json:
        runs, also = ([dataclasses.asdict(one) for one in several] for several in (found, others))
        print(json.dumps({"totals": totals(found), "runs": runs, "also_running": also}, indent=1))
    else:
        print(text(arguments.profile, found, others))
