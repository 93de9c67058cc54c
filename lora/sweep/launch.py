"""Launch a sweep: announce and check the missing runs, hand them to the launcher, and collect the outcomes."""

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from lora.config.options import chosen_option
from lora.data.tasks import TASKS
from lora.errors import UnfinishedError, UserError
from lora.files import check_writable
from lora.records.record import RunRecord, adapter_path
from lora.sweep import pool, ray_cluster, slurm
from lora.sweep.announce import announcement
from lora.sweep.cleanup import clean_up
from lora.sweep.devices import gpu_names, local_workers
from lora.sweep.estimate import estimator, records_of_this_machine
from lora.sweep.expand import PlannedRun, distinct
from lora.sweep.locks import is_held, lock_path
from lora.sweep.progress import Watch, counted
from lora.sweep.ray_cluster import check_ray
from lora.sweep.request import explain_request, select_runs, sweep_settings
from lora.sweep.slurm import check_slurm
from lora.sweep.stand_in import check_inputs
from lora.sweep.state import State, state
from lora.sweep.worker import Job
from lora.training import signals
from lora.training.processes import processes

LAUNCHES = 3  # attempts per command at a run whose worker is killed
HELD_SECONDS = 2.0  # between two checks of runs that another sweep trains


@dataclass(frozen=True)
class Sweep:
    """The request of one command.

    Args:
        launcher: The section `launcher` of the configuration.
        todo: The run_ids to train, some of which may have failed before.
        before: The failed records that existed when the command started.
        expected: run_id -> estimated seconds, or None if unknown.
        workers: Number of runs trained at once.
        adapters: Whether every run must have its adapter too (`runtime.save_adapter`).
    """

    runs: list[PlannedRun]
    launcher: DictConfig
    todo: frozenset[str]
    before: dict[str, RunRecord]
    expected: dict[str, float | None]
    workers: int
    results: str
    outputs: str
    adapters: bool


def launch_sweep(arguments: Sequence[str]) -> State:
    """Train the missing runs among those that the arguments select (`lora.sweep.request.select_runs`).

    Raises: UserError: As in `launch_runs`. UnfinishedError: At the end, if runs failed or are missing.
    """
    profile = chosen_option("profile", arguments)
    lines, runs = explain_request(profile, arguments), select_runs(profile, arguments)
    now, reasons = launch_runs(sweep_settings(profile, arguments), runs, arguments, lines)
    if now.failed or now.missing:
        raise UnfinishedError("\n".join(unfinished(now, reasons)))
    return now


def launch_runs(
    config: DictConfig, runs: list[PlannedRun], arguments: Sequence[str], lines: Sequence[str] = ()
) -> tuple[State, dict[str, str]]:
    """Announce runs and train the missing ones.

    Args:
        config: The settings that the runs share (`lora.sweep.request.sweep_settings`).
        lines: The end of the announcement.
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
    if todo and config.launcher.name == "local":
        pool.start_loading()
    check_inputs(distinct(runs, todo), now.ok.values(), ids)
    workers = int(config.launcher.workers)
    if config.launcher.name == "local":
        stated = any(argument.startswith("launcher.workers=") for argument in arguments)
        workers = local_workers(todo, workers, stated)
    expected = {}
    if todo:
        seconds = estimator(records_of_this_machine(config))
        expected = {run.run_id: seconds(run) for run in todo}
        check_launcher(config.launcher, todo)
        for folder in (results, outputs):
            check_writable(folder)
    print(announcement(config.profile.name, runs, now, todo, expected, workers, results), flush=True)
    for line in lines:
        print(f"  {line}", flush=True)
    sweep = Sweep(runs, config.launcher, ids, dict(now.failed), expected, workers, results, outputs, adapters)
    now, reasons = train_missing(sweep, now)
    clean_up(results, outputs, {*now.ok, *now.failed} - {run.run_id for run in still_to_run(sweep, now, ())})
    return now, reasons


def check_launcher(launcher: DictConfig, todo: Sequence[PlannedRun]) -> None:
    """
    Raises: UserError: If what the launcher needs is not installed, or runs that compute on a CPU would hold GPUs.
    """
    if launcher.name == "slurm":
        check_slurm()
    if launcher.name == "ray":
        check_ray()
    fused = [run.run_id for run in todo if run.config.train.kernels == "fused"]
    if fused and launcher.get("gpus"):
        raise UserError(
            f"launcher.gpus={launcher.gpus} holds GPUs, but {counted(len(fused), 'run')} ({fused[0]}, ...) would "
            f"train on the CPU with train.kernels=fused: add train.kernels=stock, or launcher.gpus=null for the CPU"
        )


def train_missing(sweep: Sweep, now: State) -> tuple[State, dict[str, str]]:
    """Launch all runs that can start, again and again, until each has a record or has used up its attempts.

    Returns: The state at the end, and run_id -> why a run has no record.
    """
    tries, reasons, closed, told = Counter(), {}, set(), False
    while wave := next_wave(still_to_run(sweep, now, closed), now):
        free = [run for run in wave if not is_held(lock_path(sweep.outputs, run.run_id))]
        if not free:  # another sweep, which may be stopped at any time, trains all runs that could start
            if not told:
                print(f"waiting for {counted(len(wave), 'run')} that another sweep trains", file=sys.stderr, flush=True)
            told = True
            time.sleep(HELD_SECONDS)
            now = state(sweep.runs, sweep.results)
            continue
        # longest first, so that no long run starts last
        free.sort(key=lambda run: -(sweep.expected.get(run.run_id) or run.examples))
        outcomes = launch_once(sweep, free, len(now.ok))
        now = state(sweep.runs, sweep.results)
        open_runs = {run.run_id for run in still_to_run(sweep, now, closed)}
        for run_id in (run.run_id for run in free if run.run_id in open_runs):
            outcome = outcomes.get(run_id)
            if outcome is None:
                tries[run_id] += 1
                reasons[run_id] = "its worker was killed"
                print(f"{run_id}: {reasons[run_id]}, attempt {tries[run_id]} of {LAUNCHES}", file=sys.stderr)
            elif outcome not in ("ok", "failed", "held"):
                reasons[run_id] = outcome
            if tries[run_id] == LAUNCHES or outcome not in (None, "held"):
                closed.add(run_id)
    return now, reasons


def still_to_run(sweep: Sweep, now: State, closed: Container[str]) -> list[PlannedRun]:
    """The runs that lack a record, a requested adapter, or weights that other runs start from.

    Args:
        closed: Runs that are not to be launched again.
    """
    old = {run_id for run_id, record in now.failed.items() if sweep.before.get(run_id) == record}
    wanted = {run.run_id for run in now.missing} | old
    wanted |= {run.run_id for run in to_run(sweep.runs, now, False, sweep.outputs, sweep.adapters)}
    return [run for run in sweep.runs if run.run_id in wanted & sweep.todo and run.run_id not in closed]


def launch_once(sweep: Sweep, runs: Sequence[PlannedRun], done: int) -> dict[str, str]:
    """Train runs once with the launcher.

    Args:
        done: Number of the sweep's runs that are done.
    Returns: run_id -> outcome, as in `lora.sweep.worker.run_job`, without the runs of killed workers.
    Raises: KeyboardInterrupt: After printing which runs are still training.
    """
    size = int(sweep.launcher.runs_per_job)
    jobs = [job_of(runs[start : start + size]) for start in range(0, len(runs), size)]
    interrupted = functools.partial(say_what_runs, sweep, [run.run_id for run in runs])
    with Watch(runs, done, sweep.expected, sweep.workers, sweep.results, sweep.outputs).shown():
        if sweep.launcher.name == "local":
            return pool.run_jobs(jobs, sweep.workers, gpu_names(), interrupted)
        with signals.raised():
            try:
                if sweep.launcher.name == "slurm":
                    return slurm.run_jobs(jobs, sweep.launcher, sweep.outputs)
                return ray_cluster.run_jobs(jobs, sweep.launcher)
            except KeyboardInterrupt:
                interrupted()
                raise


def job_of(runs: Sequence[PlannedRun]) -> Job:
    """The runs as one job, with their experiment as the group of their W&B copies."""
    configs = (replace(run.config, runtime=replace(run.config.runtime, group=run.experiments[0])) for run in runs)
    tasks = (TASKS[name] for name in {run.task for run in runs})
    return Job(tuple(configs), tuple(task for task in tasks if task.own is not None), os.getcwd())


def say_what_runs(sweep: Sweep, ids: Sequence[str]) -> None:
    """Print, when the command is interrupted, which runs are training and how to stop them."""
    running = [run_id for run_id in ids if is_held(lock_path(sweep.outputs, run_id))]
    how = {
        "local": "They write a checkpoint and stop; press Ctrl-C again to stop them at once",
        "slurm": f"They keep running, and so do the jobs in the queue; to stop them: "
        f"scancel --name={sweep.launcher.get('job_name')}",
        "ray": "Ray stops them with this command; they lose the time since their last checkpoint",
    }[sweep.launcher.name]
    lines = [f"interrupted; still training: {len(running)}", *(f"  {run_id}" for run_id in running), how]
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
