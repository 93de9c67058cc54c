"""What a launcher leaves running elsewhere: jobs in Slurm's queue, tasks on a Ray cluster."""

import shutil
import subprocess
import time

from omegaconf import DictConfig

from lora.errors import UserError

POLL_SECONDS = 5.0
UNANSWERED_SECONDS = 300.0  # a controller is restarted now and then; its jobs run on meanwhile


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


def how_to_stop(settings: DictConfig) -> str:
    if settings.name == "slurm":
        return f"They run on, with what still waits in the queue; to stop them: scancel --name={settings.job_name}"
    if settings.name == "ray":
        return "Ray stops them with this command; what they lose is the time since their last checkpoint"
    return "They are asked to leave a checkpoint and stop; Ctrl-C again stops them at once"
