"""What this machine's processors set for a sweep: supported precisions, concurrent runs, and the GPU of each worker."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora.config.kernel_choice import (
    check_device,
    gpu_has_bf16,
    gpu_memory,
    read_settings,
    takes_gpu,
    visible_gpus,
)
from lora.config.run import RunConfig
from lora.models.sizes import SIZES
from lora.records.machine import BF16_FLAGS, cpu_flags
from lora.sweep.expand import PlannedRun
from lora.sweep.pool import VISIBLE

PARAMETER_BYTES = 16  # weight, gradient and AdamW's two moments in float32, as if every parameter were trained
PROCESS_BYTES = 2**30  # ours: CUDA's context, the libraries' kernels, and the allocator's free blocks
SHARE = 0.9  # ours: share of the GPU's memory that runs may fill


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
        if not (gpu_has_bf16() if gpu else cpu_flags() & BF16_FLAGS):
            from lora.training.device import check_precision  # torch's answer is final, but loading it takes seconds

            check_precision("bf16", gpu)


def runs_at_once(configs: Iterable[RunConfig], workers: int) -> int:
    """The number of runs to train at a time: `workers`, or fewer if the GPUs' memory does not hold as many.

    Args:
        workers: The number that the cores allow.
    """
    needs = [run_bytes(config) for config in configs if on_gpu(config)]
    if not needs:
        return workers
    memory, fitting = gpu_memory(), 1
    if memory is not None and None not in needs:
        fitting = max(1, int(SHARE * memory / max(needs)))
    return min(workers, fitting * max(1, visible_gpus()))


def run_bytes(config: RunConfig) -> float | None:
    """Upper bound of a run's GPU memory in bytes, as if it trained all parameters and kept all activations.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1: a layer keeps s b h (34 + 5 a s / h) bytes in 16
        bits. The bound doubles this for float32.

    Returns: None if the encoder's sizes are unknown.
    """
    sizes = SIZES.get(config.model.name) if config.model.source == "hub" else read_settings(config.model)
    parameters = parameter_count(sizes or {})
    if parameters is None:
        return None
    tokens, rows = config.data.max_length, config.train.batch / config.train.accumulation
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    layer = 2 * tokens * rows * (34 * width + 5 * heads * tokens)
    return PARAMETER_BYTES * parameters + sizes["num_hidden_layers"] * layer + PROCESS_BYTES


def parameter_count(sizes: Mapping[str, Any]) -> int | None:
    """Number of parameters in embeddings and matrices, excluding biases and LayerNorms. None if a size is missing."""
    try:
        width, ffn, layers = (sizes[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        return (sizes["vocab_size"] + sizes["max_position_embeddings"]) * width + layers * (
            4 * width * width + 2 * width * ffn
        )
    except KeyError:
        return None


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process sees, by the names of CUDA_VISIBLE_DEVICES, or numbered from 0 if it is not set."""
    count, named = visible_gpus(), os.environ.get(VISIBLE)
    names = named.split(",") if named else map(str, range(count))
    return tuple(name.strip() for name in names)[:count]
