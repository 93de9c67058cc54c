"""What this machine's processors set for a sweep: supported precisions, concurrent runs, and the GPU of each worker."""

import os
from collections.abc import Iterable, Sequence

from lora.config.kernel_choice import check_device, gpus, gpus_have_bf16, takes_gpu
from lora.config.run import RunConfig
from lora.records.provenance import BF16_FLAGS, cpu_flags
from lora.sweep.expand import PlannedRun
from lora.sweep.pool import VISIBLE


def local_workers(todo: Sequence[PlannedRun], workers: int, stated: bool) -> int:
    """The number of runs that this machine trains at a time.

    Args:
        workers: `launcher.workers`.
        stated: Whether the command line sets `workers`; if so, it is returned unchanged.
    Raises: UserError: If a run asks for a GPU that this machine lacks, or its processor does not support its precision.
    """
    configs = [run.config for run in todo]
    for config in configs:
        check_device(config)
    check_precisions(configs)
    return workers if stated else runs_at_once(configs, workers)


def on_gpu(config: RunConfig) -> bool:
    return takes_gpu(config.train.kernels, config.runtime.device)


def check_precisions(configs: Iterable[RunConfig]) -> None:
    """Check, before the first run starts, that every run's processor supports its precision.

    Raises: UserError: If a run requests bf16 and its processor lacks it.
    """
    for gpu in {on_gpu(config) for config in configs if config.train.precision == "bf16"}:
        if not (gpus_have_bf16() if gpu else cpu_flags() & BF16_FLAGS):
            from lora.training.device import check_precision  # torch's answer is final, but loading it takes seconds

            check_precision("bf16", gpu)


def runs_at_once(configs: Iterable[RunConfig], workers: int) -> int:
    """The number of runs to train at a time: one per GPU if runs use GPUs, but at most `workers`.

    Args:
        workers: The number that the cores allow.
    """
    return min(workers, len(gpus())) if any(map(on_gpu, configs)) else workers


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process sees, by the names of CUDA_VISIBLE_DEVICES, or numbered from 0 if it is not set."""
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else map(str, range(len(gpus())))
    return tuple(name.strip() for name in names)[: len(gpus())]
