"""What a launcher leaves running elsewhere: jobs in Slurm's queue, tasks on a Ray cluster."""

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
WATCH_SECONDS = 20.0  # between two looks at the queue: for hours, and other users of the cluster ask it too
UNANSWERED_SECONDS = 300.0  # a controller is restarted now and then; its jobs keep running
ACCOUNTED_SECONDS = 60.0  # accounting may learn of a job's end later than the queue
CLOCKS_SECONDS = 3600.0  # the clocks of two machines differ by less
GOING_ON = ("COMPLETING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "SUSPENDED")


class JobsGoneError(Exception):
    """None of a launch's jobs is in the queue any more, and its launcher still waits for one."""


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
    """This launch's jobs that wait or run: id -> why it waits, in Slurm's words.

    Raises: UserError: If Slurm does not answer.
    """
    command = ["squeue", "--array", "--noheader", "--format=%i|%r", f"--name={settings.job_name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"squeue: {answer.stderr.strip()}")
    return dict(line.split("|", 1) for line in answer.stdout.splitlines())


@contextlib.contextmanager
def watched_queue(settings: DictConfig) -> Iterator[None]:
    """While the block waits for this launch's jobs, report those that Slurm holds, and end the block if none is left.

    submitit asks Slurm's accounting, which forgets a job of an array that is cancelled while it waits. submitit would
    wait for that job for ever.

    Raises: JobsGoneError: Within the block, when two looks in a row found none of the jobs that were there before.
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
            if empty > 1 and not over.is_set():  # again at each look: submitit swallows what its call of sacct raises
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
    """Wait until no job of this launch is in the queue: the launcher stops at the first killed job, the others run on.

    Raises: UserError: If Slurm has not answered for `UNANSWERED_SECONDS`.
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
    """How the jobs of the last launch ended: index in the launch -> state, for those that had started.

    Taken from Slurm's accounting, which forgets a job of an array that is cancelled while it waits. submitit names only
    the first job that went wrong.

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
    ended = [(name.partition("_"), state) for name, state in states.items()]  # 7 or, of an array, 7_0, 7_1, ...
    last = max((int(job) for (job, _, _), _ in ended), default=0)
    return {int(place or 0): state for (job, _, place), state in ended if int(job) == last}


def how_to_stop(settings: DictConfig) -> str:
    if settings.name == "slurm":
        return f"They keep running, and so do the jobs in the queue; to stop them: scancel --name={settings.job_name}"
    if settings.name == "ray":
        return "Ray stops them with this command; they lose the time since their last checkpoint"
    return "They write a checkpoint and stop; press Ctrl-C again to stop them at once"
