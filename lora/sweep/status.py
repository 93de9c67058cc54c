"""`python -m lora status PROFILE`: which runs are done, running, failed or waiting, and the time left."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lora.config.run import PlannedRun
from lora.files import REFERENCE, RESULTS
from lora.records.record import RunRecord, checkpoint_path, load_records, note_path
from lora.sweep.expand import estimator, own_records, state_of
from lora.sweep.notes import read_notes
from lora.sweep.progress import counted, duration, seconds_left, shown
from lora.sweep.request import select_runs, sweep_settings

STATES = ("done", "running", "interrupted", "failed", "waiting")
LOOK_SECONDS = 2.0
PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}  # the paper's Table 2
TERAFLOPS = 100  # sustained: about a third of an A100's bf16 peak: an assumption, not a measurement
IDLE_SECONDS = 15.0  # workers of a sweep that has just started may take this long to load their libraries
LISTED = 10  # at most this many runs of each state are listed while watching


class RunStatus(NamedTuple):
    """The state of one run.

    Args:
        state: One of `STATES`. The next launch resumes `interrupted` runs.
        seconds: Training time of a finished run; of any other, the estimated time left, None if unknown.
        text: What is known of it: the step and worker of a running run, the error of a failed one.
    """

    state: str
    seconds: float | None
    text: str = ""


def statuses(
    runs: Sequence[PlannedRun], results: str | Path, outputs: str | Path, timed: Sequence[RunRecord] = ()
) -> dict[str, RunStatus]:
    """run_id -> its state, for every run.

    The state follows from an `ok` record, else the note of a live worker, else a failed record, else what a worker that
    ended early has left. Training times are estimated from the records `timed`.
    """
    now, notes, expected = state_of(runs, *load_records(results)), read_notes(outputs), estimator(timed)
    found = {}
    for run in runs:
        run_id, left = run.run_id, expected(run)
        if run_id in now.ok:
            found[run_id] = RunStatus("done", now.ok[run_id].seconds)
        elif note := notes.get(run_id):
            left = seconds_left(note, left)
            where = f"step {note['step']}/{note['steps']}, metric {shown(note['metric'])}  " if note["steps"] else ""
            where += f"left {'?' if left is None else duration(left)}  on {note['where']}, since {note['since']}"
            found[run_id] = RunStatus("running", left, where)
        elif run_id in now.failed:
            found[run_id] = RunStatus("failed", None, str(now.failed[run_id].error))
        else:
            begun = checkpoint_path(outputs, run_id).exists() or note_path(outputs, run_id).exists()
            found[run_id] = RunStatus("interrupted" if begun else "waiting", left)
    return found


def most_seconds(run: PlannedRun) -> float:
    """Upper bound of a run's time on an accelerator: 6 operations per parameter and token, padding included.

    The factor is 2 for forward and 4 for backward; LoRA needs about 4 of 6. NaN if the encoder's size is unknown.
    """
    return 6 * PARAMETERS.get(run.model, math.nan) * run.examples * run.config.data.max_length / (1e12 * TERAFLOPS)


def text(profile: str, found: dict[str, RunStatus], listed: int = sys.maxsize) -> str:
    groups = {name: {i: status for i, status in found.items() if status.state == name} for name in STATES}
    counts = ", ".join(f"{len(groups[name])} {name}" for name in STATES)
    lines = [f"profile {profile}: {counted(len(found), 'run')}: {counts}"]
    lines.append(f"time spent: {duration(sum(status.seconds for status in groups['done'].values()))}")
    left = [status.seconds for name in ("running", "interrupted", "waiting") for status in groups[name].values()]
    known = [seconds for seconds in left if seconds is not None]
    if left:
        unknown = f", and {counted(len(left) - len(known), 'run')} of unknown length" if len(known) < len(left) else ""
        about = f"about {duration(sum(known))} if run one after another{unknown}"
        lines.append(f"time left:  {about if known else 'unknown until the first run has ended'}")
    for name in ("running", "interrupted", "failed"):
        members = [f"  {run_id}  {status.text}".rstrip() for run_id, status in groups[name].items()]
        lines += [f"\n{name}:", *members[:listed], *(["  ..."] if len(members) > listed else [])] if members else []
    return "\n".join(lines)


def watch(profile: str, look: Callable[[], dict[str, RunStatus]]) -> None:
    """Show the state of the runs until all have ended, nothing has run for `IDLE_SECONDS`, or Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    busy = time.monotonic()
    with Live(auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while time.monotonic() - busy < IDLE_SECONDS:
            found = look()
            live.update(Text(text(profile, found, LISTED)), refresh=True)
            states = {status.state for status in found.values()}
            if "running" in states:
                busy = time.monotonic()
            elif not states & {"interrupted", "waiting"}:
                break
            time.sleep(LOOK_SECONDS)
        live.console.print("nothing runs")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    parser.add_argument("--watch", action="store_true", help="a live view until nothing runs any more, or Ctrl-C")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    profile, overrides = arguments.profile, arguments.overrides
    if profile.startswith(f"{REFERENCE}/"):
        overrides = [f"runtime.results={RESULTS / profile}", *overrides]
        profile = profile.removeprefix(f"{REFERENCE}/")
    runs = select_runs(profile, overrides)
    runtime = sweep_settings(profile, overrides).runtime

    def look() -> dict[str, RunStatus]:
        return statuses(runs, runtime.results, runtime.outputs, own_records(runtime.results))

    if arguments.watch and sys.stdout.isatty():
        watch(arguments.profile, look)
    else:
        found = look()
        print(text(arguments.profile, found))
        most = sum(most_seconds(run) for run in runs if found[run.run_id] == RunStatus("waiting", None)) / 3600
        if most > 0:
            print(f"at most {most:,.1f} device hours for the unknown ones, at {TERAFLOPS} assumed TFLOP/s sustained")
