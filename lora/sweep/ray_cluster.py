"""Tasks on a Ray cluster, or on a Ray that starts on this machine."""

from collections.abc import Sequence

from omegaconf import DictConfig

from lora.errors import UserError
from lora.sweep.worker import Job, run_job


def check_ray() -> None:
    """Raises: UserError: If Ray is not installed."""
    try:
        import ray  # noqa: F401 - an optional extra
    except ImportError as error:
        raise UserError("launcher=ray needs Ray: .venv/bin/python -m pip install --editable '.[ray]'") from error


def run_jobs(jobs: Sequence[Job], settings: DictConfig) -> dict[str, str]:
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
