"""Launch a sweep: announce and check the missing runs, hand them to the launcher, and collect the outcomes."""

import functools
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec

from omegaconf import DictConfig

from lora.config.compose import chosen_option
from lora.config.run import PlannedRun, RuntimeConfig
from lora.data.facts import facts, facts_text
from lora.data.read import read_for_run
from lora.errors import UserError, listed
from lora.files import check_writable
from lora.records.record import has_adapter, load_records
from lora.sweep import pool, slurm
from lora.sweep.notes import read_notes
from lora.sweep.progress import Watch, about, count_of, duration
from lora.sweep.request import check_tuning, grids_text, select_runs, sweep_settings
from lora.sweep.state import State, estimator, own_records, sweep_state
from lora.sweep.worker import Job, add_runs, clean_up, run_job, verify_inputs
from lora.training import processes
from lora.training.processes import world_size

LAUNCHES = 3  # attempts per command at a run whose worker is killed
HELD_SECONDS = 2.0  # between two checks of runs that another sweep trains


def launch_sweep(arguments: Sequence[str]) -> tuple[RuntimeConfig, str]:
    """Train the missing runs among those that the arguments select (`lora.sweep.request.select_runs`).

    Returns: The runtime of the runs, and those that failed or are missing at the end, one per line.
    Raises: UserError: As in `launch_runs`, or if learning rates were chosen on a seed of these runs, or not alike for
        all methods.
    """
    profile = chosen_option("profile", arguments)
    runs = select_runs(profile, arguments, measure="kept")
    settings = sweep_settings(profile, arguments)
    check_tuning(runs, settings.rates)
    for line in grids_text(profile, arguments, runs):
        print(line)
    return runs[0].config.runtime, launch_runs(settings, runs, arguments)[1]


def launch_runs(settings: DictConfig, runs: list[PlannedRun], arguments: Sequence[str]) -> tuple[State, str]:
    """Announce runs and train the missing ones.

    Args:
        settings: Those that the runs share (`lora.sweep.request.sweep_settings`).
    Returns: The state at the end, and the runs that failed, are missing or lack their adapter, one per line.
    Raises: UserError: Before any run starts, if rows, weights or the launcher are unavailable, rows or weights differ
        from those of a record, a processor lacks a run's precision, or a folder cannot be written.
    """
    if world_size() > 1:
        raise UserError(
            f"a sweep must be started by one process, got {world_size()}: use launcher.workers for a sweep, and "
            f"`accelerate launch` or torchrun for a single run (python -m lora without -m)"
        )
    results = settings.runtime.results
    outputs = settings.runtime.outputs
    launcher = settings.launcher
    records, broken = load_records(results)
    now = sweep_state(runs, records, broken)
    for problem in now.problems:
        print(f"left out: {problem}", file=sys.stderr)
    todo = to_train(settings, runs, now)
    verify_inputs(runs, records, {run.run_id for run in todo})
    for key in ("workers", "runs_per_job"):
        if not str(launcher[key]).isdecimal() or int(launcher[key]) < 1:
            raise UserError(f"launcher.{key} must be a whole number >= 1, got {launcher[key]!r}")
    workers = int(launcher.workers)
    if launcher.name == "local":
        stated = any(argument.startswith("launcher.workers=") for argument in arguments)
        workers = pool.local_workers(todo, workers, stated)
    if todo:
        check_launcher(launcher, todo)
        for method in {str(run.config.method): run.config.method for run in todo if run.method == "peft"}.values():
            from lora.methods.bridge import config_class  # loads PEFT, which other sweeps do without

            config_class(method)
        for folder in (results, outputs):
            check_writable(folder)
    planned = add_runs(results, runs)
    todo = [planned[run.run_id] for run in todo]  # an adapter is saved if any launch wanted it
    print("\n".join(announcement(settings, runs, now, todo, workers)), flush=True)
    done = now.ok.keys() - {run.run_id for run in todo}
    reasons = train_missing(todo, done, outputs, lambda wave, ended: launch_once(settings, wave, workers, ended))
    now = sweep_state(runs, *load_records(results))
    for run_id in (*now.ok, *now.failed):
        clean_up(results, outputs, run_id)
    return now, "\n".join(unfinished(now, reasons))


def to_train(settings: DictConfig, runs: Sequence[PlannedRun], now: State) -> list[PlannedRun]:
    """The runs that lack a record, failed ones with runtime.retry_failed, and those that lack a required adapter.

    An adapter is required of all runs with runtime.save_adapter, else of the MNLI runs that others start from.
    """
    begun = {run.run_id for run in now.missing} | (set(now.failed) if settings.runtime.retry_failed else set())
    parents = {run.parent for run in runs if run.run_id in begun}
    needed = now.ok.keys() if settings.runtime.save_adapter else now.ok.keys() & parents
    begun |= {run_id for run_id in needed if not has_adapter(now.ok[run_id], settings.runtime.outputs)}
    return [run for run in runs if run.run_id in begun]


def check_launcher(launcher: DictConfig, todo: Sequence[PlannedRun]) -> None:
    """Raises: UserError: If what the launcher needs is not installed, or runs on a CPU would hold GPUs."""
    name = launcher.name
    package = {"slurm": "submitit", "ray": "ray"}.get(launcher.name)
    if package is not None and find_spec(package) is None:
        raise UserError(f"launcher={name} needs {package}: .venv/bin/python -m pip install --editable '.[{name}]'")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise UserError("launcher=slurm needs Slurm's sbatch on the PATH: use a login node, or launcher=local")
    fused = [run.run_id for run in todo if run.config.train.kernels == "fused"]
    if fused and launcher.get("gpus"):
        raise UserError(
            f"launcher.gpus={launcher.gpus} holds GPUs, but {count_of(len(fused), 'run')} ({fused[0]}, ...) would "
            f"train on the CPU with train.kernels=fused: add train.kernels=stock, or launcher.gpus=null for the CPU"
        )


def announcement(
    settings: DictConfig, runs: Sequence[PlannedRun], now: State, todo: Sequence[PlannedRun], workers: int
) -> list[str]:
    name, results = settings.profile.name, settings.runtime.results
    if not todo:
        failed = f"; {len(now.failed)} of them failed: runtime.retry_failed=true retries them" if now.failed else ""
        return [f"profile {name}: nothing to train, all {len(runs)} runs are in {results} already{failed}"]
    seconds = [*map(estimator(own_records(results)), todo)]
    time_left = "unknown until the first run has ended"
    if None not in seconds:
        time_left = f"about {duration(sum(seconds) / min(workers, len(todo)))}, judging by your records of the encoder"
    parents = {run.parent for run in runs} & {run.run_id for run in todo}
    return [
        f"profile {name}: {count_of(len(runs), 'run')}: {len(now.ok)} done, {len(now.failed)} failed, "
        f"{len(todo)} to train, {workers} at a time",
        f"  tasks:   {', '.join(dict.fromkeys(run.task.name for run in todo))}",
        f"  methods: {', '.join(dict.fromkeys(run.slug for run in todo))}",
        *([f"  MNLI:    {listed(sorted(parents))}, which others start from"] if parents else []),
        *own_facts(todo),
        f"  time:    {time_left}",
        *about(todo, sum(run.run_id in now.ok for run in todo)),
    ]


def own_facts(runs: Iterable[PlannedRun]) -> list[str]:
    """What the rows of each own task are like, a line each; of several sizes, on the most train rows."""
    tasks = {run.task.name: run for run in sorted(runs, key=lambda run: run.train_rows) if run.task.own is not None}
    lines = []
    for run in tasks.values():
        rows = read_for_run(run.task, run.config.rows, run.config.train.selection)
        drawn = f" that seed {run.seed} draws" if run.config.data.train_draw == "seed" else ""
        where = "" if run.config.data.train_rows is None else f", of the {run.train_rows:,} train rows{drawn}"
        lines += [f"{line}{where}" for line in facts_text(facts(run.task, *rows))]
        if run.task.test_splits and "test" not in rows[1]:
            lines.append(f"the test rows have no labels in column {run.task.own.label}, and are not scored")
    return [f"  data:    {line}" for line in lines]


def train_missing(
    todo: Sequence[PlannedRun],
    done: set[str],
    outputs: str,
    launch: Callable[[Sequence[PlannedRun], int], Mapping[str, str]],
) -> dict[str, str]:
    """Launch all runs that can start, again and again, until each has ended or has used up its attempts.

    Args:
        done: The run_ids of the sweep's runs that are done, from which others may start.
        launch: Trains runs once (`launch_once`); the number is that of the runs that are done.
    Returns: run_id -> why a run has no record, or not the adapter for which it was trained.
    """
    left, done = {run.run_id: run for run in todo}, set(done)
    kills, reasons, held = Counter(), {}, set()
    while wave := [run for run in left.values() if run.parent is None or run.parent in done]:
        training = held & read_notes(outputs).keys()
        free = [run for run in wave if run.run_id not in training]
        if not free:  # another sweep, which may be stopped at any time, trains all runs that could start
            time.sleep(HELD_SECONDS)
            continue
        outcomes = launch(free, len(done))
        for run_id in (run.run_id for run in free):
            outcome = outcomes.get(run_id)
            if outcome == "held":
                if not held:
                    print("waiting for runs that another sweep trains", file=sys.stderr, flush=True)
                held.add(run_id)
                continue
            if outcome is None:
                kills[run_id] += 1
                outcome = "its worker was killed"
                print(f"{run_id}: {outcome}, attempt {kills[run_id]} of {LAUNCHES}", file=sys.stderr, flush=True)
                if kills[run_id] < LAUNCHES:
                    continue
            del left[run_id]
            if outcome == "ok":
                done.add(run_id)
            elif outcome != "failed":
                reasons[run_id] = outcome
    return reasons


def launch_once(settings: DictConfig, runs: Sequence[PlannedRun], workers: int, done: int) -> dict[str, str]:
    """Train runs once with the launcher, the longest first, so that no long run starts last.

    Returns: run_id -> outcome, as in `lora.sweep.worker.run_job`, without the runs of killed workers.
    """
    launcher, outputs = settings.launcher, settings.runtime.outputs
    size = int(launcher.runs_per_job)
    jobs = [Job(tuple(runs[start : start + size]), os.getcwd()) for start in range(0, len(runs), size)]
    interrupted = functools.partial(say_what_runs, settings, {run.run_id for run in runs})
    with Watch(runs, done, settings.runtime.results, outputs, workers).shown():
        if launcher.name == "local":
            return pool.run_jobs(jobs, workers, pool.gpu_names(), interrupted)
        with processes.raised():
            try:
                if launcher.name == "slurm":
                    return slurm.run_jobs(jobs, launcher, outputs)
                return run_on_ray(jobs, launcher)
            except KeyboardInterrupt:
                interrupted()
                raise


def run_on_ray(jobs: Sequence[Job], settings: DictConfig) -> dict[str, str]:
    """Train jobs on a cluster. Returns: run_id -> outcome, as in `run_job`, without the runs of killed tasks."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=settings.address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray at launcher.address={settings.address} does not answer: {error}") from error
    options = {"num_cpus": settings.threads, "num_gpus": settings.gpus, "max_retries": settings.retries}
    tasks = [ray.remote(**options)(run_job).remote(job) for job in jobs]
    outcomes: dict[str, str] = {}
    for task in tasks:
        try:
            outcomes |= ray.get(task)
        except ray.exceptions.RayError:  # its worker was killed more often than `retries` allows
            continue
    return outcomes


def say_what_runs(settings: DictConfig, ids: set[str]) -> None:
    """Print, when the command is interrupted, which runs are training and how to stop them."""
    running = [run_id for run_id in read_notes(settings.runtime.outputs) if run_id in ids]
    how = {
        "local": "Workers write a checkpoint of what they train and stop; press Ctrl-C again to stop them at once",
        "slurm": f"They and the jobs in the queue go on; scancel --name={settings.launcher.get('job_name')} stops them",
        "ray": "Ray stops them with this command; they lose the time since their last checkpoint",
    }[settings.launcher.name]
    print("\n  ".join([f"interrupted; still training: {len(running)}", *running]), file=sys.stderr)
    print(how, file=sys.stderr, flush=True)


def unfinished(now: State, reasons: Mapping[str, str]) -> list[str]:
    lines = [f"failed: {run_id}: {record.error}" for run_id, record in now.failed.items()]
    for run in now.missing:
        reason = f" ({reasons[run.run_id]})" if run.run_id in reasons else ""
        if run.parent is not None and run.parent not in now.ok:
            reason = f" (not started: its MNLI run {run.parent} is not ok)"
        lines.append(f"missing: {run.run_id}{reason}")
    return lines + [f"unfinished: {run_id} ({reason})" for run_id, reason in reasons.items() if run_id in now.ok]
