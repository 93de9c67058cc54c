"""The accelerator memory that a run needs per process, computed without weights."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost.subjects import saved_bytes
from lora.errors import UserError
from lora.methods import apply
from lora.models.load import model_of_size
from lora.models.modules import count_parameters
from lora.models.sizes import ENCODER_SIZES
from lora.training.processes import check_batch

GIB = 2**30
# Runs that the page of experiments/efficiency shows: number of processes, and overrides.
PAPER_RUNS = (
    (1, ("model=roberta_large", "method=lora", "protocol=printed", "task=qnli")),
    (1, ("model=deberta_v2_xxl", "method=lora", "protocol=released", "task=mnli")),
    (8, ("model=deberta_v2_xxl", "method=lora", "protocol=released", "task=mnli")),
    (8, ("model=deberta_v2_xxl", "method=full", "protocol=released", "task=mnli")),
)


def estimate(config: RunConfig, processes: int) -> tuple[dict[str, int], dict[str, int]]:
    """The memory that a run needs at its maximum length, without and with gradient checkpointing.

    Excludes the allocator's fragments and the libraries' own. For train.kernels=fused, which is for CPUs and keeps
    less, it is the memory that transformers' modules would need.

    Returns: Bytes of one process: `weights`, in float32, with bf16 also the cast copies that a backward pass holds;
        `gradients`; `optimizer`, AdamW's two moments in float32; `activations`, the tensors that autograd keeps at the
        end of a forward pass, with checkpointing the inputs of all layers and the activations of one.
    Raises: UserError: If the batch is not divisible among them, or `ENCODER_SIZES` lacks the model.
    """
    check_batch(config.train, processes)
    if config.model.name not in ENCODER_SIZES:
        known = ", ".join(ENCODER_SIZES)
        raise UserError(f"model must be one of {known}, whose sizes are known here, got {config.model.name!r}")
    rows = config.train.batch // (processes * config.train.accumulation)
    with FakeTensorMode():
        model = model_of_size(config.model.name, outputs=2)
        apply(model, config.method)
        counts = count_parameters(model)
        kept = kept_activations(model.train(), rows, config.data.max_length, config.train.precision)
    trained = counts["trainable_method"] + counts["trainable_head"]
    weights = 4 * counts["total"]
    casts = 2 * counts["total"] if config.train.precision == "bf16" else 0
    layers = model.config.num_hidden_layers
    inputs = layers * rows * config.data.max_length * model.config.hidden_size * 4
    plain = {"weights": weights + casts, "gradients": 4 * trained, "optimizer": 8 * trained, "activations": kept}
    return plain, plain | {"weights": weights + casts // layers, "activations": inputs + kept // layers}


def kept_activations(model: nn.Module, rows: int, length: int, precision: str) -> int:
    """Bytes that autograd keeps of one forward pass, excluding parameters and their casts."""
    inputs = {name: torch.ones(rows, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return saved_bytes(model, lambda: model(**inputs).logits.sum())


def memory_table(runs: Sequence[tuple[int, Sequence[str]]] = PAPER_RUNS) -> str:
    """A Markdown table with two rows per run of profile `paper`: its memory in GiB per process."""
    lines = []
    for processes, overrides in runs:
        config = compose_run(["profile=paper", *overrides])
        rows = config.train.batch // (processes * config.train.accumulation)
        for checkpointing, memory in zip(("no", "yes"), estimate(config, processes), strict=True):
            line = {
                "Model": config.model.name,
                "Method": config.method.slug,
                "Precision": config.train.precision,
                "GPUs": processes,
                "Rows x tokens": f"{rows} x {config.data.max_length}",
                "Checkpointing": checkpointing,
            }
            line |= {part.capitalize(): f"{size / GIB:.1f}" for part, size in memory.items()}
            lines.append(line | {"GiB a GPU": f"{sum(memory.values()) / GIB:.1f}"})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
