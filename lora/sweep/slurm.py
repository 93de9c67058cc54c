"""Jobs in Slurm's queue, through submitit: submit them, wait until they have left it, and read their outcomes."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lora.errors import UserError, first_line
from lora.files import remove_empty
from lora.sweep.worker import Job, run_job

QUEUE_SECONDS = 5.0
SIGNAL_SECONDS = 120  # a job's notice before its time limit, for a checkpoint
TIMEOUTS = 1000  # high, because a run makes progress each time its job runs out of time
UNANSWERED_SECONDS = 300.0  # controllers are occasionally restarted, while their jobs keep running
CANCELLED = "its job was cancelled"


class Restartable:
    """A job that Slurm may put back into its queue: submitit then submits it again, and its runs resume."""

    def __call__(self, job: Job) -> dict[str, str]:
        return run_job(job)

    def checkpoint(self, job: Job):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run_jobs(jobs: Sequence[Job], settings: DictConfig, outputs: str) -> dict[str, str]:
    """Train jobs on a cluster.

    Returns: run_id -> outcome, as in `run_job`, without the runs of killed jobs; `CANCELLED` for cancelled ones.
    Raises: UserError: If Slurm refuses the jobs, or has not answered for `UNANSWERED_SECONDS`.
    """
    import submitit

    folder = Path(outputs) / "slurm" / settings.job_name
    given = {
        "timeout_min": settings.minutes,
        "cpus_per_task": settings.threads,
        "gpus_per_node": settings.gpus,
        "mem_gb": settings.memory_gb,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_array_parallelism": settings.workers,
        "slurm_additional_parameters": OmegaConf.to_container(settings.sbatch) if settings.sbatch else None,
    }
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    executor.update_parameters(
        name=settings.job_name,
        stderr_to_stdout=True,
        slurm_signal_delay_s=SIGNAL_SECONDS,
        **{key: value for key, value in given.items() if value is not None},
    )
    try:
        submitted = executor.map_array(Restartable(), jobs)
    except (RuntimeError, OSError) as error:  # submitit's errors are RuntimeErrors
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(folder.parent)
        raise UserError(f"Slurm refused the jobs: {first_line(error)}") from error
    wait_for_queue(settings.job_name)
    outcomes: dict[str, str] = {}
    for job, handle in zip(jobs, submitted, strict=True):
        if handle.paths.result_pickle.exists():
            try:
                outcomes |= handle.result()
            except submitit.core.utils.FailedJobError:
                outcomes |= dict.fromkeys(job.run_ids, f"its job failed: {handle.paths.stdout}")
        elif not handle.paths.stdout.exists() or "CANCELLED" in handle.state:  # it waited, or it ran
            outcomes |= dict.fromkeys(job.run_ids, CANCELLED)
    return outcomes


def wait_for_queue(name: str) -> None:
    """Wait until no job of this name is queued or running."""
    answered = time.monotonic()
    while True:
        command = ["squeue", "--noheader", "--format=%i", f"--name={name}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            answered = time.monotonic()
            if not answer.stdout.strip():
                return
        elif time.monotonic() - answered > UNANSWERED_SECONDS:
            raise UserError(f"squeue: {answer.stderr.strip()}")
        time.sleep(QUEUE_SECONDS)
