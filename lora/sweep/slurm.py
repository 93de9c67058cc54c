"""Watching and stopping what runs outside this process: jobs in Slurm's queue, tasks on a Ray cluster."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from omegaconf import DictConfig

from lora.errors import UserError

POLL_SECONDS = 5.0
WATCH_SECONDS = 20.0  # between two queries of the queue: they continue for hours, and other users query it too
UNANSWERED_SECONDS = 300.0  # controllers are occasionally restarted, while their jobs keep running
ACCOUNTED_SECONDS = 60.0  # accounting may record a job's end later than the queue
CLOCKS_SECONDS = 3600.0  # upper bound of the difference between two machines' clocks
GOING_ON = ("COMPLETING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "SUSPENDED")


class JobsGoneError(Exception):
    """All jobs of a launch have left the queue, while the launcher still waits for one of them."""


def check_queue(settings: DictConfig) -> None:
    """
    Raises: UserError: If the launcher needs a program that is not installed.
    """
    if settings.name == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm needs Slurm's sbatch on the PATH, which has none: use a login node of the "
            "cluster, or launcher=local"
        )


def queued(settings: DictConfig) -> dict[str, str]:
    """This launch's pending and running jobs: id -> Slurm's reason for waiting.

    Raises: UserError: If squeue fails.
    """
    command = ["squeue", "--array", "--noheader", "--format=%i|%r", f"--name={settings.job_name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"squeue: {answer.stderr.strip()}")
    return dict(line.split("|", 1) for line in answer.stdout.splitlines())


@contextlib.contextmanager
def watched_queue(settings: DictConfig) -> Iterator[None]:
    """While the block waits for this launch's jobs, report those that Slurm holds, and end the block if none is left.

    submitit queries Slurm's accounting, which has no entry for an array job that is cancelled while pending. It would
    wait for that job forever.

    Raises: JobsGoneError: Within the block, if two consecutive queries find no job after an earlier one found some.
    """
    if settings.name != "slurm":
        yield
        return
    over = threading.Event()

    def watch() -> None:
        seen, empty, held = False, 0, set()
        while not over.wait(WATCH_SECONDS):
            try:
                jobs = queued(settings)
            except UserError:
                continue
            seen = seen or bool(jobs)
            empty = empty + 1 if seen and not jobs else 0
            for job in sorted(job for job, reason in jobs.items() if "held" in reason.lower()):
                if job not in held:
                    held.add(job)
                    hint = f"scontrol release {job} lets it start, scancel {job} ends it"
                    print(f"Slurm holds job {job} ({jobs[job]}): {hint}", file=sys.stderr, flush=True)
            if empty > 1 and not over.is_set():  # each time: submitit swallows exceptions raised in its sacct call
                os.kill(os.getpid(), signal.SIGALRM)

    def handle(signum: int, frame: object) -> None:
        if not over.is_set():
            raise JobsGoneError("its jobs have left the queue, and at least one of them left no result")

    thread = threading.Thread(target=watch, daemon=True)
    earlier = signal.signal(signal.SIGALRM, handle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGALRM, earlier)


def wait_for_queue(settings: DictConfig) -> None:
    """Wait until no job of this launch is queued: the launcher stops at the first killed job, the others keep running.

    Raises: UserError: If squeue has failed for `UNANSWERED_SECONDS`.
    """
    if settings.name != "slurm":
        return
    answered = time.monotonic()
    while True:
        try:
            if not queued(settings):
                return
            answered = time.monotonic()
        except UserError:
            if time.monotonic() - answered > UNANSWERED_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


def ended_jobs(settings: DictConfig, since: float) -> dict[int, str]:
    """The final states of the last launch's jobs: index in the launch -> state, for jobs that had started.

    They come from Slurm's accounting, which has no entry for an array job that is cancelled while pending. submitit
    names only the first job that failed.

    Args:
        since: Time of the launch, in seconds since the epoch.
    """
    if settings.name != "slurm":
        return {}
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - CLOCKS_SECONDS))
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
    command += [f"--name={settings.job_name}", f"--starttime={start}"]
    deadline = time.monotonic() + ACCOUNTED_SECONDS
    while True:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        states = dict(line.split("|") for line in answer.stdout.splitlines() if "[" not in line)
        if not any(state.startswith(GOING_ON) for state in states.values()) or time.monotonic() > deadline:
            break
        time.sleep(1)
    ended = [(name.partition("_"), state) for name, state in states.items()]  # 7 or, in an array, 7_0, 7_1, ...
    last = max((int(job) for (job, _, _), _ in ended), default=0)
    return {int(place or 0): state for (job, _, place), state in ended if int(job) == last}


def how_to_stop(settings: DictConfig) -> str:
    if settings.name == "slurm":
        return f"They keep running, and so do the jobs in the queue; to stop them: scancel --name={settings.job_name}"
    if settings.name == "ray":
        return "Ray stops them with this command; they lose the time since their last checkpoint"
    return "They write a checkpoint and stop; press Ctrl-C again to stop them at once"
