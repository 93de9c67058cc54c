"""`python -m lora status PROFILE`: which runs are done, running, failed or waiting, and the time left."""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lora.config.plan import locked, outputs_here, read_plan, run_of, trained_by, write_plan
from lora.config.rates import RATES_FILE, TUNING
from lora.config.run import PlannedRun
from lora.config.select import filter_runs, parse_words, place, selecting
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import REFERENCE, RESULTS
from lora.records.record import (
    RunRecord,
    adapter_path,
    checkpoint_path,
    load_records,
    note_path,
    predictions_path,
    record_path,
)
from lora.sweep.notes import read_notes
from lora.sweep.progress import as_percent, count_of, duration, seconds_left
from lora.sweep.request import select_runs
from lora.sweep.state import estimator, own_records, sweep_state

STATES = ("done", "running", "interrupted", "failed", "waiting")
LOOK_SECONDS = 2.0
PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}  # the paper's Table 2
TERAFLOPS = 100  # sustained: about a third of an A100's bf16 peak: an assumption, not a measurement
IDLE_SECONDS = 15.0  # workers of a sweep that has just started may take this long to load their libraries
FOLDER_KEYS = ("runtime.results", "runtime.outputs")  # whose runs are meant


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
    now = sweep_state(runs, *load_records(results))
    notes = read_notes(outputs)
    expected = estimator(timed)
    by_run = {}
    for run in runs:
        run_id, left = run.run_id, expected(run)
        if run_id in now.ok:
            by_run[run_id] = RunStatus("done", now.ok[run_id].seconds)
        elif note := notes.get(run_id):
            left = seconds_left(note, left)
            steps = f"step {note['step']}/{note['steps']}, metric {as_percent(note['metric'])}  "
            rate = f", rate {run.config.train.lr:g}" if run.experiments == (TUNING,) else ""
            time_left = "?" if left is None else duration(left)
            where = f"{steps if note['steps'] else ''}left {time_left}  on {note['where']}, since {note['since']}{rate}"
            by_run[run_id] = RunStatus("running", left, where)
        elif run_id in now.failed:
            by_run[run_id] = RunStatus("failed", None, str(now.failed[run_id].error))
        else:
            begun = checkpoint_path(outputs, run_id).exists() or note_path(outputs, run_id).exists()
            by_run[run_id] = RunStatus("interrupted" if begun else "waiting", left)
    return by_run


def most_seconds(run: PlannedRun) -> float:
    """Upper bound of a run's time on an accelerator: 6 operations per parameter and token, padding included.

    The factor is 2 for forward and 4 for backward; LoRA needs about 4 of 6. NaN if the encoder's size is unknown.
    """
    return 6 * PARAMETERS.get(run.model, math.nan) * run.examples * run.config.data.max_length / (1e12 * TERAFLOPS)


def text(profile: str, by_run: dict[str, RunStatus]) -> str:
    groups = {name: {i: status for i, status in by_run.items() if status.state == name} for name in STATES}
    counts = ", ".join(f"{len(groups[name])} {name}" for name in STATES)
    lines = [f"profile {profile}: {count_of(len(by_run), 'run')}: {counts}"]
    lines.append(f"time spent: {duration(sum(status.seconds for status in groups['done'].values()))}")
    left = [status.seconds for name in ("running", "interrupted", "waiting") for status in groups[name].values()]
    known = [seconds for seconds in left if seconds is not None]
    if left:
        unknown = f", and {count_of(len(left) - len(known), 'run')} of unknown length" if len(known) < len(left) else ""
        about = f"about {duration(sum(known))} if run one after another{unknown}"
        lines.append(f"time left:  {about if known else 'unknown until the first run has ended'}")
    for name in ("running", "interrupted", "failed"):
        if groups[name]:
            lines += [f"\n{name}:", *(f"  {run_id}  {one.text}".rstrip() for run_id, one in groups[name].items())]
    return "\n".join(lines)


def watch(profile: str, look: Callable[[], dict[str, RunStatus]]) -> None:
    """Show the state of the runs until all have ended, nothing has run for `IDLE_SECONDS`, or Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    busy = time.monotonic()
    with Live(auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while time.monotonic() - busy < IDLE_SECONDS:
            by_run = look()
            live.update(Text(text(profile, by_run)), refresh=True)
            states = {status.state for status in by_run.values()}
            if "running" in states:
                busy = time.monotonic()
            elif not states & {"interrupted", "waiting"}:
                break
            time.sleep(LOOK_SECONDS)
        live.console.print("nothing runs")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument("overrides", nargs="*", help="which of the planned runs, such as task=mrpc seed=1,2")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--watch", action="store_true", help="a live view until nothing runs any more, or Ctrl-C")
    mode.add_argument("--json", action="store_true", help="print the state of every run as JSON")
    mode.add_argument("--forget", action="store_true", help="remove unfinished runs from the plan")
    parser.add_argument("--records", action="store_true", help="with --forget: finished runs and all their files too")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    profile, words = arguments.profile, arguments.overrides
    name = profile.removeprefix(f"{REFERENCE}/")
    usual = RESULTS / profile if name != profile else f"results/{name}"
    folder = Path(place(words, "runtime.results") or usual)
    outputs = outputs_here(folder, words)
    records, broken = load_records(folder)
    for problem in (*read_plan(folder).problems, *broken):
        print(f"left out: {problem}", file=sys.stderr)
    if arguments.records and not arguments.forget:
        raise UserError("--records goes with --forget")
    if arguments.forget:
        if name != profile:
            raise UserError("the committed runs are git's: --forget is for your own")
        if idle := [f"{key}=" for key in parse_words(words) if key not in (*selecting(words), *FOLDER_KEYS)]:
            raise UserError(f"{idle[0]} selects no runs, and --forget removes what is selected: leave it out")
        forget(folder, outputs, words, arguments.records)
        return
    if records and not read_plan(folder).runs and isinstance(why := run_of(records[0], TASKS), str):
        raise UserError(f"{folder} has {count_of(len(records), 'record')} and no plan: {why}")
    never = [] if read_plan(folder).runs else select_runs(name, words, measure="assumed")

    def asked() -> list[PlannedRun]:
        return [run for run in filter_runs(read_plan(folder).runs.values(), words) if run.experiments] or never

    def look() -> dict[str, RunStatus]:
        return statuses(asked(), folder, outputs, own_records(folder))

    by_run = look()
    if not by_run:
        raise UserError(f"no planned run of {folder} has {' '.join(words)}: {trained_by(folder, name, words)}")
    if arguments.watch and sys.stdout.isatty():
        watch(profile, look)
        return
    if arguments.json:
        runs = {run_id: status._asdict() for run_id, status in by_run.items()}
        print(json.dumps({"profile": profile, "launched": not never, "runs": runs}, indent=1))
        return
    print(text(profile, by_run))
    if not selecting(words) and (others := {record.run_id for record in records} - by_run.keys()):
        print(f"{count_of(len(others), 'other record')} in {folder}, which no launch asks for now")
    most = sum(most_seconds(run) for run in asked() if by_run[run.run_id] == RunStatus("waiting", None)) / 3600
    if most > 0:
        print(f"at most {most:,.1f} device hours for the unknown ones, at {TERAFLOPS} assumed TFLOP/s sustained")
    if never:
        print(f"never launched: {trained_by(folder, name, words)}")
    elif not selecting(words):
        with suppress(UserError):  # a profile that needs a task
            planned = read_plan(folder).runs
            encoders = {run.model for run in planned.values()}  # the profile's own may be none that was asked for
            more = select_runs(name, [f"runtime.results={folder}"], True, "assumed")
            if count := len({run.run_id for run in more if run.model in encoders} - planned.keys()):
                print(f"the profile has {count_of(count, 'more run')}, which no launch has asked for")


def forget(folder: Path, outputs: str, words: Sequence[str], finished: bool) -> None:
    """Remove runs from a plan, with their checkpoints and failed records. One that an experiment asks for too, besides
    those that the words name, stays for that experiment.

    Args:
        words: Which runs (`lora.config.select`). Without a selection: all, and records that are not in the plan.
        finished: Whether to remove finished runs too, with their records, predictions and adapters.
    """
    if notes := read_notes(outputs):
        raise UserError(f"{min(notes)} is being trained: wait for the sweep, or stop it, before runs are forgotten")
    with locked(folder) as plan:
        records = {record.run_id: record.status for record in load_records(folder)[0]}
        named = parse_words(words).get("experiment", [])
        chosen = [run for run in filter_runs(plan.runs.values(), words) if run.experiments or not named]
        if selecting(words) and not chosen:
            raise UserError(f"no planned run of {folder} has {' '.join(words)}: nothing was removed")
        ids = [run.run_id for run in chosen]
        ids += [] if selecting(words) else sorted(records.keys() - plan.runs.keys())
        kept = {}
        for run in chosen if named else ():
            if others := tuple(name for name in run.experiments if name not in named):
                kept[run.run_id] = replace(run, experiments=others)
                print(f"stays for {', '.join(others)}: {run.run_id}")
        # a record that cannot be read, as a newer version's, may be of a finished run
        unfinished = {i for i in ids if records.get(i) == "failed" or not record_path(folder, i).exists()}
        gone = [i for i in ids if i not in kept and (finished or i in unfinished)]
        for run_id in gone:
            places = (record_path, folder), (predictions_path, folder), (checkpoint_path, outputs), (note_path, outputs)
            try:
                for path, where in places:
                    path(where, run_id).unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot forget {run_id}: {error}") from error
            shutil.rmtree(adapter_path(outputs, run_id).parent, ignore_errors=True)
        runs = {run_id: run for run_id, run in (plan.runs | kept).items() if run_id not in gone}
        write_plan(folder, replace(plan, runs=runs))
    for run_id in gone:
        print(f"forgotten: {run_id}")
    left = count_of(len(ids) - len(gone), "run")
    more = " (--records removes finished ones too)" if not finished and {*ids} - unfinished else ""
    print(f"{count_of(len(gone), 'run')} forgotten, {left} left of those selected{more}")
    if finished and (folder / RATES_FILE).exists():
        print(f"{folder / RATES_FILE} still has the tuned rates: remove it if they were tuned on other rows")
