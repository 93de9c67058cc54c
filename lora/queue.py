"""What a launcher leaves running elsewhere: jobs in Slurm's queue, tasks on a Ray cluster."""

import shutil
import subprocess
import time

from omegaconf import DictConfig

from lora.errors import UserError

POLL_SECONDS = 5.0
UNANSWERED_SECONDS = 300.0  # a controller is restarted now and then; its jobs run on meanwhile
ACCOUNTED_SECONDS = 60.0  # accounting may tell of a job's end later than the queue
CLOCKS_SECONDS = 3600.0  # those of two machines differ by less
GOING_ON = ("COMPLETING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "SUSPENDED")


def check_queue(settings: DictConfig) -> None:
    """
    Raises: UserError: If the launcher needs a program that is not here.
    """
    if settings.name == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm needs Slurm's sbatch on the PATH, and here is none: run it on a login node of the cluster, "
            "or take launcher=local"
        )


def queued(settings: DictConfig) -> list[str]:
    """The ids of this launch's jobs that wait or run.

    Raises: UserError: If Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--format=%i", f"--name={settings.job_name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"squeue: {answer.stderr.strip()}")
    return answer.stdout.split()


def wait_for_queue(settings: DictConfig) -> None:
    """Until no job of this launch is in the queue: the launcher stops at the first that was killed, others go on.

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


def cancelled_jobs(settings: DictConfig, since: float) -> set[int]:
    """Which jobs of the last launch, by their place in it, were cancelled after they had started.

    From Slurm's accounting, which keeps nothing of an array's job that is cancelled while it waits. submitit names the
    first job that went wrong, whatever became of the others.

    Args:
        since: When it was launched, in seconds since the epoch.
    """
    if settings.name != "slurm":
        return set()
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
    return {int(place or 0) for (job, _, place), state in ended if int(job) == last and state.startswith("CANCELLED")}


def how_to_stop(settings: DictConfig) -> str:
    if settings.name == "slurm":
        return f"They run on, with what still waits in the queue; to stop them: scancel --name={settings.job_name}"
    if settings.name == "ray":
        return "Ray stops them with this command; what they lose is the time since their last checkpoint"
    return "They are asked to leave a checkpoint and stop; Ctrl-C again stops them at once"
