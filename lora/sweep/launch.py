"""Launch a sweep: announce and check the missing runs, pass them to Hydra's launcher, and collect the outcomes."""

import functools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from lora.config.options import describe_group
from lora.config.rates import said
from lora.errors import UserError, first_line
from lora.files import check_writable
from lora.records.record import RunRecord, adapter_path
from lora.sweep.announce import announcement
from lora.sweep.devices import begin_worker, gpu_names, local_workers
from lora.sweep.estimate import estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun
from lora.sweep.leftovers import tidy
from lora.sweep.locks import Locks
from lora.sweep.progress import Watch, counted
from lora.sweep.request import default_of, replacements, requested
from lora.sweep.slurm import JobsGoneError, check_queue, ended_jobs, how_to_stop, wait_for_queue, watched_queue
from lora.sweep.stand_in import check_inputs, distinct
from lora.sweep.state import State, state
from lora.sweep.worker import packed
from lora.training import signals
from lora.training.processes import processes

LAUNCHES = 3  # attempts per command at a run whose worker is killed or leaves no record
HELD_SECONDS = 2.0  # between two checks of runs that another sweep trains


class UnfinishedError(Exception):
    """The sweep ended with runs that failed or are missing."""


@dataclass(frozen=True)
class Sweep:
    """The request of one command.

    Args:
        todo: The run_ids to train, some of which may have failed before.
        before: The failed records that existed when the command started.
        expected: run_id -> estimated seconds, or None if unknown.
        adapters: Whether every run must have its adapter too (`runtime.save_adapter`).
    """

    runs: list[PlannedRun]
    todo: frozenset[str]
    before: dict[str, RunRecord]
    expected: dict[str, float | None]
    workers: int
    results: str
    outputs: str
    adapters: bool


def launch_sweep(launcher: Launcher, config: DictConfig, arguments: Sequence[str]) -> State:
    """Train the missing runs among those that the arguments request (`lora.sweep.request.requested`).

    Raises: UserError: As in `launch_runs`. UnfinishedError: At the end, if runs failed or are missing.
    """
    notes = [f"note:    {replacement}" for replacement in replacements(config.profile.name, arguments)]
    if default := default_of(config.profile.name, arguments):
        chosen = " ".join(f"{key}={','.join(values)}" for key, values in default.items())
        others = [name for name in describe_group("experiment") if name not in default["experiment"]]
        notes.append(f"default: {chosen}; experiment=NAME trains others ({', '.join(others)})")
    now, reasons = launch_runs(launcher, config, requested(config.profile.name, arguments), arguments, notes)
    if now.failed or now.missing:
        raise UnfinishedError("\n".join(unfinished(now, reasons)))
    return now


def launch_runs(
    launcher: Launcher, config: DictConfig, runs: list[PlannedRun], arguments: Sequence[str], notes: Sequence[str] = ()
) -> tuple[State, dict[str, str]]:
    """Announce runs and train the missing ones.

    Args:
        config: Composed from the command's arguments.
        notes: Lines for the end of the announcement.
    Returns: The state at the end, and run_id -> why a run has no record.
    Raises: UserError: Before any run starts, if rows, weights or the launcher are unavailable, rows or weights differ
        from those of a record, a processor lacks a run's precision, or a folder cannot be written.
    """
    if processes() > 1:
        raise UserError(
            f"a sweep must be started by one process, got {processes()}: use launcher.workers for a sweep, and "
            f"`accelerate launch` or torchrun for a single run (python -m lora without -m)"
        )
    results, outputs = config.runtime.results, config.runtime.outputs
    now = state(runs, results)
    for problem in now.problems:
        print(f"left out: {problem}", file=sys.stderr)
    adapters = bool(config.runtime.save_adapter)
    todo = to_run(runs, now, bool(config.runtime.retry_failed), outputs, adapters)
    ids = frozenset(run.run_id for run in todo)
    check_inputs(distinct(runs, todo), now.ok.values(), ids)
    workers = int(config.launcher.workers)
    if config.launcher.name == "local":
        stated = any(argument.startswith("launcher.workers=") for argument in arguments)
        workers = local_workers(todo, workers, stated)
    expected = {}
    if todo:
        seconds = estimator(records_of_this_machine(config))
        expected = {run.run_id: seconds(run) for run in todo}
    print(announcement(config.profile.name, runs, now, todo, expected, workers, results), flush=True)
    tuned = said(config.rates, ((run.model, run.protocol, run.task, run.overrides) for run in runs))
    for line in (*([f"rates:   {tuned}"] if tuned else []), *notes):
        print(f"  {line}", flush=True)
    if todo:
        check_queue(config.launcher)
        for folder in (results, outputs):
            check_writable(folder)
    sweep = Sweep(runs, ids, dict(now.failed), expected, workers, results, outputs, adapters)
    now, reasons = run_waves(launcher, config.launcher, sweep, now)
    open_runs = {run.run_id for run in still_to_run(sweep, now, dict.fromkeys(ids, 0))}
    tidy(results, outputs, {*now.ok, *now.failed} - open_runs)
    return now, reasons


def run_waves(launcher: Launcher, settings: DictConfig, sweep: Sweep, now: State) -> tuple[State, dict[str, str]]:
    """Launch all runs that can start, until no run has attempts left or a job is cancelled.

    Returns: The state at the end, and run_id -> why a run has no record.
    """
    tries, reasons = dict.fromkeys(sweep.todo, 0), {}
    locks, told = Locks(sweep.outputs), False
    while wave := next_wave(still_to_run(sweep, now, tries), now):
        free = [run for run in wave if not locks.held(run.run_id)]
        if not free:  # another sweep, which may be stopped at any time, trains all runs that could start
            if not told:
                print(f"waiting for {counted(len(wave), 'run')} that another sweep trains", file=sys.stderr, flush=True)
            told = True
            time.sleep(HELD_SECONDS)
            now = state(sweep.runs, sweep.results)
            continue
        free.sort(
            key=lambda run: -(sweep.expected.get(run.run_id) or run.examples)
        )  # longest first, so that no long run starts last
        if settings.name == "local":
            free = last_tries_alone(free, tries)
        outcomes, cancelled = launch_once(launcher, settings, sweep, free, len(now.ok))
        now = state(sweep.runs, sweep.results)
        ids = {run.run_id for run in free}
        left = {run.run_id for run in still_to_run(sweep, now, tries)} & ids
        killed = {run_id: "its worker was killed" for run_id in left if locks.left_behind(run_id)}
        told_of = {run_id: outcomes[run_id] for run_id in left & set(outcomes)}
        reasons |= killed | told_of
        if cancelled:  # somebody is stopping jobs: killed runs wait for the next command
            reasons |= dict.fromkeys(left - (set(killed) - cancelled), "its job was cancelled")
            break
        held = any(locks.held(run_id) for run_id in left)
        for run_id in {**killed, **told_of} or ({} if left < ids or held else ids):  # prevents an endless loop
            tries[run_id] += 1
    return now, reasons


def last_tries_alone(runs: list[PlannedRun], tries: Mapping[str, int]) -> list[PlannedRun]:
    """The runs to launch now. Runs on their last attempt wait for the others, then run one at a time.

    A killed worker takes down the whole process pool, which costs every run in the pool an attempt. A run that is alone
    in the pool loses an attempt only if its own worker is killed.
    """
    early = [run for run in runs if tries[run.run_id] < LAUNCHES - 1]
    return early or runs[:1]


def still_to_run(sweep: Sweep, now: State, tries: Mapping[str, int]) -> list[PlannedRun]:
    """The runs with attempts left that lack a record, a requested adapter, or weights that other runs start from."""
    old = {run_id for run_id, record in now.failed.items() if sweep.before.get(run_id) == record}
    wanted = ({run.run_id for run in now.missing} | old) & sweep.todo
    wanted |= {run.run_id for run in to_run(sweep.runs, now, False, sweep.outputs, sweep.adapters)} & sweep.todo
    return [run for run in sweep.runs if run.run_id in wanted and tries[run.run_id] < LAUNCHES]


def launch_once(
    launcher: Launcher, settings: DictConfig, sweep: Sweep, runs: Sequence[PlannedRun], done: int
) -> tuple[dict[str, str], set[str]]:
    """Call Hydra's launcher once.

    Returns: run_id -> why a worker left a run without a new record, and the runs whose jobs were cancelled.
    Raises: KeyboardInterrupt: After printing which runs are still training.
    """
    ids = [run.run_id for run in runs]
    grouped = [(*run.overrides, f"runtime.group={run.experiments[0]}") for run in runs]
    size = int(settings.runs_per_job)
    jobs, started = packed(grouped, size), time.time()
    locks = Locks(sweep.outputs)
    workers: Callable[[], list[int]] = list  # no processes of ours: queued jobs keep running
    training: Callable[[], list[int]] = list
    if settings.name == "local":
        workers, training = worker_processes, functools.partial(locks.children, ids)
        ours = {"n_jobs": sweep.workers, "initializer": begin_worker, "initargs": (os.getpid(), gpu_names())}
        launcher.joblib |= ours  # type: ignore[attr-defined]  # passed on to joblib.Parallel by the plugin
    # joblib replaces a worker whose memory grows, without losing a job.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    with Watch(runs, done, sweep.expected, sweep.workers, sweep.results, sweep.outputs):
        try:
            say = functools.partial(say_what_runs, settings, locks, ids)
            with signals.passed_on(workers, training, say), watched_queue(settings):
                returns = launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:  # from the launcher: a worker was killed, or the queue refused a job
            print(f"the launcher stopped early: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            wait_for_queue(settings)
            ended = ended_jobs(settings, started)
            places = {place for place, how in ended.items() if how.startswith("CANCELLED")}
            if isinstance(error, JobsGoneError):  # jobs that never started were cancelled while they waited
                places |= set(range(len(jobs))) - set(ended)
            cancelled = {run_id for place, run_id in enumerate(ids) if place // size in places}
            return {}, cancelled or (set(ids) if "CANCELLED" in str(error) else set())
    outcomes = {run_id: text for job in returns for run_id, text in (job.return_value or {}).items()}
    return {run_id: text for run_id, text in outcomes.items() if text not in ("ok", "failed", "held")}, set()


def worker_processes() -> list[int]:
    """Pids of this process's live children, training or not. Only the local launcher's pool has any."""
    return [child.pid for child in multiprocessing.active_children()]


def say_what_runs(settings: DictConfig, locks: Locks, ids: Sequence[str]) -> None:
    """Print at Ctrl-C which runs are training and how to stop them."""
    running = [run_id for run_id in ids if locks.held(run_id)]
    lines = [
        f"interrupted; still training: {len(running)}",
        *(f"  {run_id}" for run_id in running),
        how_to_stop(settings),
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def next_wave(todo: Sequence[PlannedRun], now: State) -> list[PlannedRun]:
    """The runs that can start: those without a parent, and those whose parent is done and not in `todo`."""
    waiting = {run.run_id for run in todo}
    return [r for r in todo if r.parent is None or (r.parent in now.ok and r.parent not in waiting)]


def unfinished(now: State, reasons: Mapping[str, str]) -> list[str]:
    lines = [f"failed: {run_id}: {record.error}" for run_id, record in now.failed.items()]
    for run in now.missing:
        waits = run.parent is not None and run.parent not in now.ok
        reason = f" ({reasons[run.run_id]})" if run.run_id in reasons else ""
        reason = f" (not started: its MNLI run {run.parent} is not ok)" if waits else reason
        lines.append(f"missing: {run.run_id}{reason}")
    return lines


def to_run(
    runs: Sequence[PlannedRun], now: State, retry_failed: bool, outputs: str, adapters: bool
) -> list[PlannedRun]:
    """Runs without a record, failed ones if `retry_failed`, and finished ones whose required weights are missing.

    Args:
        adapters: Whether the weights of every run are required, or only those of the parents of runs to train.
    """
    wanted = {run.run_id for run in now.missing} | (set(now.failed) if retry_failed else set())
    parents = {run.parent for run in runs if run.run_id in wanted and run.parent}
    kept = {run.run_id for run in runs} if adapters else parents
    wanted |= {run_id for run_id in kept if run_id in now.ok and not adapter_path(outputs, run_id).exists()}
    return [run for run in runs if run.run_id in wanted]
