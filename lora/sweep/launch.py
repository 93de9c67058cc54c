"""Launching a sweep: what is missing is announced, checked, run by Hydra's launcher, and looked at again."""

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

from lora.errors import UserError, first_line
from lora.files import check_writable
from lora.records.record import RunRecord, adapter_path
from lora.sweep.announce import announcement, reference_records
from lora.sweep.devices import local_workers
from lora.sweep.expand import Cell, State, estimator, requested, state
from lora.sweep.locks import Locks
from lora.sweep.progress import Watch
from lora.sweep.slurm import JobsGoneError, check_queue, ended_jobs, how_to_stop, wait_for_queue, watched_queue
from lora.sweep.stand_in import check_inputs, distinct
from lora.sweep.worker import packed
from lora.training import signals
from lora.training.processes import processes

LAUNCHES = 3  # of one cell whose worker was killed, or which failed to leave a record, within one command
HELD_SECONDS = 2.0  # between two looks at cells that another sweep trains


class UnfinishedError(Exception):
    """The sweep ended with cells that failed or are missing."""


@dataclass(frozen=True)
class Sweep:
    """What one command was asked for.

    Args:
        todo: The run_ids to run, some of which may have failed before.
        before: The failed records that were there when it started.
        expected: Seconds per cell, None where nothing is known.
        adapters: Cells are asked for their adapters too (`runtime.save_adapter`).
    """

    cells: list[Cell]
    todo: frozenset[str]
    before: dict[str, RunRecord]
    expected: dict[str, float | None]
    workers: int
    results: str
    outputs: str
    adapters: bool


def launch_cells(launcher: Launcher, config: DictConfig, arguments: Sequence[str]) -> State:
    """Run what is missing of the cells that the arguments ask for (`lora.sweep.expand.requested`).

    Raises: UserError: Before anything runs, if any cell is invalid, its rows or weights are not to be had, or there is
        nowhere to run or to write. UnfinishedError: At the end, if cells failed or are missing.
    """
    if processes() > 1:
        raise UserError(
            f"a sweep is started by one process, got {processes()}: `accelerate launch` and torchrun start single "
            f"cells (python -m lora without -m), a sweep has launcher.workers"
        )
    cells = requested(config.profile.name, arguments)
    results, outputs = config.runtime.results, config.runtime.outputs
    now = state(cells, results)
    for problem in now.problems:
        print(f"left out: {problem}", file=sys.stderr)
    adapters = bool(config.runtime.save_adapter)
    todo = to_run(cells, now, bool(config.runtime.retry_failed), outputs, adapters)
    check_inputs(distinct(cells, todo), now.ok.values())
    workers = int(config.launcher.workers)
    if config.launcher.name == "local":
        stated = any(argument.startswith("launcher.workers=") for argument in arguments)
        workers = local_workers(todo, workers, stated)
    expected = {}
    if todo:
        seconds = estimator([*reference_records(), *now.ok.values()])
        expected = {cell.run_id: seconds(cell) for cell in todo}
    print(announcement(config.profile.name, cells, now, todo, expected, workers, results), flush=True)
    if todo:
        check_queue(config.launcher)
        for folder in (results, outputs):
            check_writable(folder)
    ids = frozenset(cell.run_id for cell in todo)
    sweep = Sweep(cells, ids, dict(now.failed), expected, workers, results, outputs, adapters)
    now, reasons = run_waves(launcher, config.launcher, sweep, now)
    if now.failed or now.missing:
        raise UnfinishedError("\n".join(unfinished(now, reasons)))
    return now


def run_waves(launcher: Launcher, settings: DictConfig, sweep: Sweep, now: State) -> tuple[State, dict[str, str]]:
    """Launch what can run until nothing is left that may still be tried.

    Returns: The state at the end, and run_id -> why a cell has no record.
    """
    tries, reasons = dict.fromkeys(sweep.todo, 0), {}
    locks, told = Locks(sweep.outputs), False
    while wave := next_wave(still_to_run(sweep, now, tries), now):
        free = [cell for cell in wave if not locks.held(cell.run_id)]
        if not free:  # all that could run is being trained by another sweep, which may be stopped at any time
            if not told:
                print(f"waiting for {len(wave)} cells that another sweep trains", file=sys.stderr, flush=True)
            told = True
            time.sleep(HELD_SECONDS)
            now = state(sweep.cells, sweep.results)
            continue
        free.sort(key=lambda cell: -(sweep.expected.get(cell.run_id) or cell.examples))  # none is left to run alone
        if settings.name == "local":
            free = last_tries_alone(free, tries)
        outcomes, cancelled = launch_once(launcher, settings, sweep, free, len(now.ok))
        now = state(sweep.cells, sweep.results)
        ids = {cell.run_id for cell in free}
        left = {cell.run_id for cell in still_to_run(sweep, now, tries)} & ids
        killed = {run_id: "its worker was killed" for run_id in left if locks.left_behind(run_id)}
        told_of = {run_id: outcomes[run_id] for run_id in left & set(outcomes)}
        reasons |= killed | told_of
        if cancelled:  # somebody wants less to run: what was killed beside waits for the next command
            reasons |= dict.fromkeys(left - (set(killed) - cancelled), "its job was cancelled")
            break
        held = any(locks.held(run_id) for run_id in left)
        for run_id in {**killed, **told_of} or ({} if left < ids or held else ids):  # else it might do nothing for ever
            tries[run_id] += 1
    return now, reasons


def last_tries_alone(cells: list[Cell], tries: Mapping[str, int]) -> list[Cell]:
    """What to launch now: cells on their last try wait for the others, and then run one at a time.

    A pool of processes falls with any worker that is killed, and its other cells have lost a try that they had no part
    in losing. Alone, a cell answers for itself.
    """
    early = [cell for cell in cells if tries[cell.run_id] < LAUNCHES - 1]
    return early or cells[:1]


def still_to_run(sweep: Sweep, now: State, tries: Mapping[str, int]) -> list[Cell]:
    """What the command was asked for and has not got: a new record, an adapter, weights for those who start from it."""
    old = {run_id for run_id, record in now.failed.items() if sweep.before.get(run_id) == record}
    wanted = ({cell.run_id for cell in now.missing} | old) & sweep.todo
    wanted |= {cell.run_id for cell in to_run(sweep.cells, now, False, sweep.outputs, sweep.adapters)} & sweep.todo
    return [cell for cell in sweep.cells if cell.run_id in wanted and tries[cell.run_id] < LAUNCHES]


def launch_once(
    launcher: Launcher, settings: DictConfig, sweep: Sweep, cells: Sequence[Cell], done: int
) -> tuple[dict[str, str], set[str]]:
    """One call of Hydra's launcher.

    Returns: run_id -> why a worker left a cell without a new record; and the cells whose jobs were cancelled.
    Raises: KeyboardInterrupt: After saying what still runs.
    """
    ids = [cell.run_id for cell in cells]
    grouped = [(*cell.overrides, f"runtime.group={cell.experiments[0]}") for cell in cells]
    size = int(settings.cells_per_job)
    jobs, started = packed(grouped, size), time.time()
    locks = Locks(sweep.outputs)
    workers: Callable[[], list[int]] = list  # none: jobs of a queue run on
    training: Callable[[], list[int]] = list
    if settings.name == "local":
        workers, training = worker_processes, functools.partial(locks.children, ids)
        ours = {"n_jobs": sweep.workers, "initializer": signals.begin_worker, "initargs": (os.getpid(),)}
        launcher.joblib |= ours  # type: ignore[attr-defined]  # what the plugin hands to joblib.Parallel
    # Replaced when it grows; no job is lost.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    with Watch(cells, done, sweep.expected, sweep.workers, sweep.results, sweep.outputs):
        try:
            say = functools.partial(say_what_runs, settings, locks, ids)
            with signals.passed_on(workers, training, say), watched_queue(settings):
                returns = launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:  # the launcher's own: a worker was killed, a queue refused
            print(f"the launcher stopped early: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            wait_for_queue(settings)
            ended = ended_jobs(settings, started)
            places = {place for place, how in ended.items() if how.startswith("CANCELLED")}
            if isinstance(error, JobsGoneError):  # what never started was cancelled while it waited
                places |= set(range(len(jobs))) - set(ended)
            cancelled = {run_id for place, run_id in enumerate(ids) if place // size in places}
            return {}, cancelled or (set(ids) if "CANCELLED" in str(error) else set())
    outcomes = {run_id: text for job in returns for run_id, text in (job.return_value or {}).items()}
    return {run_id: text for run_id, text in outcomes.items() if text not in ("ok", "failed", "held")}, set()


def worker_processes() -> list[int]:
    """Those that this process started and that live, whether they train or not. Only a local pool has any."""
    return [child.pid for child in multiprocessing.active_children()]


def say_what_runs(settings: DictConfig, locks: Locks, ids: Sequence[str]) -> None:
    """Said at Ctrl-C."""
    running = [run_id for run_id in ids if locks.held(run_id)]
    lines = [
        f"interrupted while {len(running)} cells run:",
        *(f"  {run_id}" for run_id in running),
        how_to_stop(settings),
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def next_wave(todo: Sequence[Cell], now: State) -> list[Cell]:
    """The cells whose parent, if they have one, is done and not itself to run."""
    waiting = {cell.run_id for cell in todo}
    return [c for c in todo if c.parent is None or (c.parent in now.ok and c.parent not in waiting)]


def unfinished(now: State, reasons: Mapping[str, str]) -> list[str]:
    lines = [f"failed: {run_id}: {record.error}" for run_id, record in now.failed.items()]
    for cell in now.missing:
        waits = cell.parent is not None and cell.parent not in now.ok
        reason = f" ({reasons[cell.run_id]})" if cell.run_id in reasons else ""
        reason = f" (not started: its MNLI run {cell.parent} is not ok)" if waits else reason
        lines.append(f"missing: {cell.run_id}{reason}")
    return lines


def to_run(cells: Sequence[Cell], now: State, retry_failed: bool, outputs: str, adapters: bool) -> list[Cell]:
    """Cells without a record, failed ones if asked, and trained ones whose weights are gone and needed.

    Args:
        adapters: The weights of every cell are asked for; else only those of the parents of cells to run.
    """
    wanted = {cell.run_id for cell in now.missing} | (set(now.failed) if retry_failed else set())
    kept = {c.run_id for c in cells} if adapters else {c.parent for c in cells if c.run_id in wanted and c.parent}
    wanted |= {run_id for run_id in kept if run_id in now.ok and not adapter_path(outputs, run_id).exists()}
    return [cell for cell in cells if cell.run_id in wanted]
