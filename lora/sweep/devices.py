"""What this machine's processors set for a sweep: supported precisions, concurrent runs, and the GPU of each worker."""

import os
from collections.abc import Sequence

from lora.config.auto import check_device, gpus, gpus_have_bf16, takes_gpu
from lora.records.provenance import BF16_FLAGS, cpu_flags
from lora.sweep.expand import PlannedRun
from lora.sweep.pool import VISIBLE


def local_workers(todo: Sequence[PlannedRun], workers: int, stated: bool) -> int:
    """The number of runs that this machine trains at a time: at most one per GPU if runs use GPUs.

    Args:
        workers: `launcher.workers`: the number that the cores allow.
        stated: Whether the command line sets `workers`; if so, it is returned unchanged.
    Raises: UserError: If a run asks for a GPU that this machine lacks, or its processor does not support its precision.
    """
    on_gpu = {run.run_id: takes_gpu(run.config.train.kernels, run.config.runtime.device) for run in todo}
    for run in todo:
        check_device(run.config)
    for gpu in {on_gpu[run.run_id] for run in todo if run.config.train.precision == "bf16"}:
        if not (gpus_have_bf16() if gpu else cpu_flags() & BF16_FLAGS):
            from lora.training.device import check_precision  # torch's answer is final, but loading it takes seconds

            check_precision("bf16", gpu)
    return workers if stated or not any(on_gpu.values()) else min(workers, len(gpus()))


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process sees, by the names of CUDA_VISIBLE_DEVICES, or numbered from 0 if it is not set."""
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else map(str, range(len(gpus())))
    return tuple(name.strip() for name in names)[: len(gpus())]
