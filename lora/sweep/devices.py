"""What this machine's processors allow a sweep: the precisions that they have, and runs at once on one GPU."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora.config.compose import compose_run
from lora.config.kernel_choice import gpu_has_bf16, gpu_memory, has_gpu, read_settings, takes_gpu
from lora.config.run import RunConfig
from lora.models.sizes import SIZES
from lora.records.machine import BF16_FLAGS, cpu_flags
from lora.sweep.announce import one_of_each
from lora.sweep.expand import PlannedRun

PARAMETER_BYTES = 16  # weight, gradient and AdamW's two moments in float32, as if all of them trained
PROCESS_BYTES = 2**30  # ours: of CUDA's context, the libraries' kernels, and what the allocator keeps free
SHARE = 0.9  # ours: of the GPU's memory that is handed out


def local_workers(todo: Sequence[PlannedRun], workers: int, stated: bool) -> int:
    """How many runs this machine trains at a time.

    Args:
        workers: `launcher.workers`.
        stated: On the command line, which wins.
    Raises: UserError: If a run's precision is not one that its processor has.
    """
    configs = [compose_run(run.overrides) for run in (todo if has_gpu() else one_of_each(todo))]
    check_precisions(configs)
    return workers if stated else runs_at_once(configs, workers)


def on_gpu(config: RunConfig) -> bool:
    return takes_gpu(config.train.kernels, config.runtime.device)


def check_precisions(configs: Iterable[RunConfig]) -> None:
    """Refuse before the first run what every run would fail with.

    Raises: UserError: If a run asks for bf16 and the processor that it takes has none.
    """
    for gpu in {on_gpu(config) for config in configs if config.train.precision == "bf16"}:
        if not (gpu_has_bf16() if gpu else cpu_flags() & BF16_FLAGS):
            from lora.training.device import check_precision  # torch knows for sure, but loading it takes seconds

            check_precision("bf16", gpu)


def runs_at_once(configs: Iterable[RunConfig], workers: int) -> int:
    """How many of these runs to train at a time: as many as there are workers, and as fit into the memory of a GPU.

    Args:
        workers: As many as the cores allow.
    """
    needs = [run_bytes(config) for config in configs if on_gpu(config)]
    if not needs:
        return workers
    memory = gpu_memory()
    if memory is None or None in needs:
        return 1
    return max(1, min(workers, int(SHARE * memory / max(needs))))


def run_bytes(config: RunConfig) -> float | None:
    """At most what a run takes of a GPU's memory: all parameters as if they trained, and all activations kept.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1: a layer keeps s b h (34 + 5 a s / h) bytes in 16
        bits; here twice as many, for float32.

    Returns: None if the encoder's sizes are not known.
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
    """Of embeddings and matrices; biases and LayerNorms are left out. None if a size is not stated."""
    try:
        width, ffn, layers = (sizes[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        return (sizes["vocab_size"] + sizes["max_position_embeddings"]) * width + layers * (
            4 * width * width + 2 * width * ffn
        )
    except KeyError:
        return None
