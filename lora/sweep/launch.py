"""Launch a sweep: announce and check the missing runs, hand them to the launcher, and collect the outcomes."""

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from lora.config.labels import labels
from lora.config.options import chosen_option
from lora.data.tasks import TASKS
from lora.errors import UnfinishedError, UserError
from lora.files import check_writable
from lora.records.record import RunRecord
from lora.sweep import pool, ray_cluster, slurm
from lora.sweep.announce import announcement
from lora.sweep.devices import gpu_names, local_workers
from lora.sweep.estimate import estimator, records_of_this_machine, time_together
from lora.sweep.expand import PlannedRun, distinct
from lora.sweep.notes import read_notes
from lora.sweep.progress import Watch, counted
from lora.sweep.request import explain_request, select_runs, sweep_settings
from lora.sweep.state import State, state
from lora.sweep.verify_inputs import verify_inputs
from lora.sweep.worker import Job, clean_up, has_adapter
from lora.training import processes
from lora.training.processes import world_size

LAUNCHES = 3  # attempts per command at a run whose worker is killed
HELD_SECONDS = 2.0  # between two checks of runs that another sweep trains


@dataclass(frozen=True)
class Sweep:
    """What one command must bring about.

    Args:
        settings: Those that the runs share (`lora.sweep.request.sweep_settings`).
        replaced: The failed records that are to be replaced.
        weights: The run_ids whose adapter is required: all with runtime.save_adapter, else those of parents.
        known: Records from which training times are estimated.
        workers: Number of runs trained at once.
    """

    runs: list[PlannedRun]
    settings: DictConfig
    replaced: Mapping[str, RunRecord]
    weights: frozenset[str]
    known: Sequence[RunRecord] = ()
    workers: int = 1

    @property
    def outputs(self) -> str:
        return self.settings.runtime.outputs

    def now(self) -> State:
        return state(self.runs, self.settings.runtime.results)

    def to_train(self, now: State) -> list[PlannedRun]:
        """The runs that lack a record or a required adapter, and failed ones that are to be replaced."""

        def is_done(run_id: str) -> bool:
            if run_id in now.failed:
                return now.failed[run_id] != self.replaced.get(run_id)
            if run_id not in now.ok:
                return False
            return run_id not in self.weights or has_adapter(now.ok[run_id], self.outputs)

        return [run for run in self.runs if not is_done(run.run_id)]

    def wave(self, now: State, closed: Container[str] = ()) -> list[PlannedRun]:
        """The runs to train that can start: they have no parent, or one that is done.

        Args:
            closed: The run_ids that are not to be launched again.
        """
        left = [run for run in self.to_train(now) if run.run_id not in closed]
        ids = {run.run_id for run in left}
        return [run for run in left if run.parent is None or (run.parent in now.ok and run.parent not in ids)]


def sweep_of(settings: DictConfig, runs: list[PlannedRun], now: State) -> Sweep:
    """
    Args:
        now: The state before the first launch.
    """
    replaced = dict(now.failed) if settings.runtime.retry_failed else {}
    begun = {run.run_id for run in now.missing} | set(replaced)
    parents = {run.parent for run in runs if run.run_id in begun and run.parent}
    weights = {run.run_id for run in runs} if settings.runtime.save_adapter else parents
    return Sweep(runs, settings, replaced, frozenset(weights))


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
    settings: DictConfig, runs: list[PlannedRun], arguments: Sequence[str], lines: Sequence[str] = ()
) -> tuple[State, dict[str, str]]:
    """Announce runs and train the missing ones.

    Args:
        settings: Those that the runs share (`lora.sweep.request.sweep_settings`).
        lines: The end of the announcement.
    Returns: The state at the end, and run_id -> why a run has no record.
    Raises: UserError: Before any run starts, if rows, weights or the launcher are unavailable, rows or weights differ
        from those of a record, a processor lacks a run's precision, or a folder cannot be written.
    """
    if world_size() > 1:
        raise UserError(
            f"a sweep must be started by one process, got {world_size()}: use launcher.workers for a sweep, and "
            f"`accelerate launch` or torchrun for a single run (python -m lora without -m)"
        )
    results, launcher = settings.runtime.results, settings.launcher
    now = state(runs, results)
    for problem in now.problems:
        print(f"left out: {problem}", file=sys.stderr)
    sweep = sweep_of(settings, runs, now)
    todo = sweep.to_train(now)
    verify_inputs(distinct(runs, todo), now.ok.values(), {run.run_id for run in todo})
    workers = int(launcher.workers)
    if launcher.name == "local":
        stated = any(argument.startswith("launcher.workers=") for argument in arguments)
        workers = local_workers(todo, workers, stated)
    if todo:
        sweep = replace(sweep, known=records_of_this_machine(settings), workers=workers)
        check_launcher(launcher, todo)
        for folder in (results, sweep.outputs):
            check_writable(folder)
    seconds = time_together(todo, sweep.known, workers)
    print(announcement(settings.profile.name, runs, now, todo, seconds, workers, results), flush=True)
    for line in lines:
        print(f"  {line}", flush=True)
    now, reasons = train_missing(sweep, now)
    for run_id in {*now.ok, *now.failed} - {run.run_id for run in sweep.to_train(now)}:
        clean_up(results, sweep.outputs, run_id)
    return now, reasons


def check_launcher(launcher: DictConfig, todo: Sequence[PlannedRun]) -> None:
    """
    Raises: UserError: If what the launcher needs is not installed, or runs that compute on a CPU would hold GPUs.
    """
    if launcher.name == "slurm":
        slurm.check_slurm()
    if launcher.name == "ray":
        ray_cluster.check_ray()
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
    kills, reasons, closed, held = Counter(), {}, set(), set()
    while True:
        wave = sweep.wave(now, closed)
        if not wave:
            return now, reasons
        training = held & read_notes(sweep.outputs).keys()
        free = [run for run in wave if run.run_id not in training]
        if not free:  # another sweep, which may be stopped at any time, trains all runs that could start
            time.sleep(HELD_SECONDS)
        outcomes = launch_once(sweep, free, len(now.ok)) if free else {}
        now = sweep.now()
        missing = {run.run_id for run in sweep.to_train(now)}
        for run_id in [run.run_id for run in free]:
            outcome = outcomes.get(run_id)
            if outcome == "held":
                if not held:
                    print("waiting for runs that another sweep trains", file=sys.stderr, flush=True)
                held.add(run_id)
            elif outcome is not None or run_id not in missing:
                closed.add(run_id)
                if outcome not in ("ok", "failed", None):
                    reasons[run_id] = outcome
            else:
                kills[run_id] += 1
                reasons[run_id] = "its worker was killed"
                print(f"{run_id}: {reasons[run_id]}, attempt {kills[run_id]} of {LAUNCHES}", file=sys.stderr)
                if kills[run_id] == LAUNCHES:
                    closed.add(run_id)


def launch_once(sweep: Sweep, runs: Sequence[PlannedRun], done: int) -> dict[str, str]:
    """Train runs once with the launcher, the longest first, so that no long run starts last.

    Args:
        done: Number of the sweep's runs that are done.
    Returns: run_id -> outcome, as in `lora.sweep.worker.run_job`, without the runs of killed workers.
    Raises: KeyboardInterrupt: After printing which runs are still training.
    """
    launcher, outputs = sweep.settings.launcher, sweep.outputs
    seconds = estimator(sweep.known)
    runs = sorted(runs, key=lambda run: -(seconds(run) or run.examples))
    size = int(launcher.runs_per_job)
    jobs = [job_of(runs[start : start + size]) for start in range(0, len(runs), size)]
    interrupted = functools.partial(say_what_runs, sweep, {run.run_id for run in runs})

    def left(waiting: Iterable[PlannedRun], ended: Sequence[RunRecord]) -> float | None:
        return time_together(waiting, [*sweep.known, *ended], sweep.workers)

    with Watch(runs, done, left, labels(runs), sweep.settings.runtime.results, outputs).shown():
        if launcher.name == "local":
            return pool.run_jobs(jobs, sweep.workers, gpu_names(), interrupted)
        with processes.raised():
            try:
                if launcher.name == "slurm":
                    return slurm.run_jobs(jobs, launcher, outputs)
                return ray_cluster.run_jobs(jobs, launcher)
            except KeyboardInterrupt:
                interrupted()
                raise


def job_of(runs: Sequence[PlannedRun]) -> Job:
    tasks = (TASKS[name] for name in {run.task for run in runs})
    return Job(tuple(run.config for run in runs), tuple(task for task in tasks if task.own is not None), os.getcwd())


def say_what_runs(sweep: Sweep, ids: set[str]) -> None:
    """Print, when the command is interrupted, which runs are training and how to stop them."""
    running = [run_id for run_id in read_notes(sweep.outputs) if run_id in ids]
    how = {
        "local": "They write a checkpoint and stop; press Ctrl-C again to stop them at once",
        "slurm": f"They keep running, and so do the jobs in the queue; to stop them: "
        f"scancel --name={sweep.settings.launcher.get('job_name')}",
        "ray": "Ray stops them with this command; they lose the time since their last checkpoint",
    }[sweep.settings.launcher.name]
    lines = [f"interrupted; still training: {len(running)}", *(f"  {run_id}" for run_id in running), how]
    print("\n".join(lines), file=sys.stderr, flush=True)


def unfinished(now: State, reasons: Mapping[str, str]) -> list[str]:
    lines = [f"failed: {run_id}: {record.error}" for run_id, record in now.failed.items()]
    for run in now.missing:
        waits = run.parent is not None and run.parent not in now.ok
        reason = f" ({reasons[run.run_id]})" if run.run_id in reasons else ""
        reason = f" (not started: its MNLI run {run.parent} is not ok)" if waits else reason
        lines.append(f"missing: {run.run_id}{reason}")
    return lines
