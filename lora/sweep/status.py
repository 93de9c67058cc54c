"""`python -m lora status PROFILE`: which runs are done, running, failed or waiting, and the time left."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.records.record import RunRecord, checkpoint_path, note_path
from lora.sweep.estimate import estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun
from lora.sweep.notes import read_notes
from lora.sweep.progress import counted, duration, shown
from lora.sweep.request import select_runs, sweep_settings
from lora.sweep.state import state

STATES = ("done", "running", "interrupted", "failed", "waiting")
LOOK_SECONDS = 2.0
IDLE_SECONDS = 15.0  # workers of a sweep that has just started may take this long to load their libraries
LISTED = 10  # at most this many runs of each state are listed while watching


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    Args:
        state: One of `STATES`. The next launch resumes `interrupted` runs.
        seconds: Training time of a finished run.
        left_seconds: Estimated time left, for an interrupted run from its beginning; None if unknown.
        step: The current step of a running run, out of `steps`.
        where: The worker that trains it: process, host, and batch job if any.
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


def statuses(
    runs: Sequence[PlannedRun], results: str | Path, outputs: str | Path, timed: Sequence[RunRecord] = ()
) -> list[RunStatus]:
    """The state of every run.

    The state follows from an `ok` record, else the note of a live worker, else a failed record, else what a worker that
    ended early has left.

    Args:
        timed: Records from which training times are estimated (`lora.sweep.estimate.records_of_this_machine`).
    """
    now, notes, seconds = state(runs, results), read_notes(outputs), estimator(timed)
    found = []
    for run in runs:
        run_id, expected = run.run_id, seconds(run)
        if run_id in now.ok:
            found.append(RunStatus(run_id, "done", seconds=now.ok[run_id].seconds))
        elif run_id in notes:
            found.append(running(run_id, notes[run_id], expected))
        elif run_id in now.failed:
            found.append(RunStatus(run_id, "failed", reason=now.failed[run_id].error))
        else:
            begun = checkpoint_path(outputs, run_id).exists() or note_path(outputs, run_id).exists()
            found.append(RunStatus(run_id, "interrupted" if begun else "waiting", left_seconds=expected))
    return found


def running(run_id: str, note: Mapping[str, Any], expected: float | None) -> RunStatus:
    step, steps, pace = (note[key] for key in ("step", "steps", "pace"))
    left = expected if pace is None else pace * (steps - step)
    return RunStatus(run_id, "running", None, left, step, steps, note["metric"], note["where"], note["since"])


def text(profile: str, found: Sequence[RunStatus], listed: int = sys.maxsize) -> str:
    """
    Args:
        listed: Number of runs of each state that are listed.
    """
    groups = {name: [status for status in found if status.state == name] for name in STATES}
    left = [status.left_seconds for name in ("running", "interrupted", "waiting") for status in groups[name]]
    known = [seconds for seconds in left if seconds is not None]
    lines = [
        f"profile {profile}: {counted(len(found), 'run')}: "
        f"{', '.join(f'{len(groups[name])} {name}' for name in STATES)}",
        f"time spent: {duration(sum(status.seconds for status in groups['done']))}",
    ]
    if left:
        unknown = f", and {counted(len(left) - len(known), 'run')} of unknown length" if len(known) < len(left) else ""
        about = f"about {duration(sum(known))} if run one after another{unknown}"
        lines.append(f"time left:  {about if known else 'unknown until the first run has ended'}")
    for name in ("running", "interrupted", "failed"):
        if groups[name]:
            lines += [f"\n{name}:", *(f"  {line(status)}" for status in groups[name][:listed])]
        if len(groups[name]) > listed:
            lines.append(f"  and {len(groups[name]) - listed} more")
    return "\n".join(lines)


def line(status: RunStatus) -> str:
    parts = [status.run_id]
    if status.steps:
        parts.append(f"step {status.step}/{status.steps}, metric {shown(status.metric)}")
    if status.where is not None:
        left = "?" if status.left_seconds is None else duration(status.left_seconds)
        parts.append(f"left {left}  on {status.where}, since {status.since}")
    if status.reason is not None:
        parts.append(status.reason)
    return "  ".join(parts)


def watch(profile: str, look: Callable[[], Sequence[RunStatus]]) -> None:
    """Show the state of the runs until all have ended, nothing has run for `IDLE_SECONDS`, or Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    busy = time.monotonic()
    with Live(auto_refresh=False) as live:
        try:
            while True:
                found = look()
                live.update(Text(text(profile, found, LISTED)), refresh=True)
                states = {status.state for status in found}
                if "running" in states:
                    busy = time.monotonic()
                if time.monotonic() - busy >= IDLE_SECONDS or not states & {"running", "interrupted", "waiting"}:
                    live.console.print("nothing runs")
                    return
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            return


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    parser.add_argument("--watch", action="store_true", help="a live view until nothing runs any more, or Ctrl-C")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    runs = select_runs(arguments.profile, arguments.overrides)
    settings = sweep_settings(arguments.profile, arguments.overrides)

    def look() -> list[RunStatus]:
        return statuses(runs, settings.runtime.results, settings.runtime.outputs, records_of_this_machine(settings))

    if arguments.watch and sys.stdout.isatty():
        watch(arguments.profile, look)
    else:
        print(text(arguments.profile, look()))
