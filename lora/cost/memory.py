"""`python -m lora memory`: the accelerator memory that a run needs per process, computed without weights."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost.parameters import model_of_size
from lora.cost.saved import saved_bytes
from lora.errors import UserError
from lora.methods import apply
from lora.models.modules import count_parameters
from lora.models.sizes import SIZES
from lora.training.processes import check_batch

GIB = 2**30
# Runs that the page of experiments/efficiency shows: number of processes, and overrides.
SHOWN = (
    (1, ("model=roberta_large", "method=lora", "protocol=printed", "task=qnli")),
    (1, ("model=deberta_v2_xxl", "method=lora", "protocol=released", "task=mnli")),
    (8, ("model=deberta_v2_xxl", "method=lora", "protocol=released", "task=mnli")),
    (8, ("model=deberta_v2_xxl", "method=full", "protocol=released", "task=mnli")),
)


@dataclass(frozen=True)
class Memory:
    """The memory of one process, in bytes.

    Args:
        weights: All weights in float32; with bf16 also the cast copies that a backward pass holds.
        optimizer: AdamW's two moments, in float32.
        activations: The tensors that autograd keeps at the end of a forward pass; with checkpointing, the inputs of
            all layers and the activations of one.
        rows: Number of examples in a micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    rows: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Parts:
    """The quantities of an estimate: numbers of parameters, and the bytes kept of a micro-batch of `rows` examples."""

    parameters: int
    trained: int
    kept: int
    rows: int
    layers: int
    width: int


def estimate(config: RunConfig, processes: int) -> Memory:
    """The memory that a run needs at its maximum length, excluding the allocator's fragments and the libraries' own.

    For train.kernels=fused, which is for CPUs and keeps less, it is the memory that transformers' modules would need.

    Args:
        processes: Number of processes that share the batch.
    Raises: UserError: If the batch is not divisible among them, or `SIZES` lacks the model.
    """
    return add_up(config, measure(config, processes))


def measure(config: RunConfig, processes: int) -> Parts:
    """Compute the quantities of an estimate, always without gradient checkpointing."""
    check_batch(config.train, processes)
    rows = config.train.batch // (processes * config.train.accumulation)
    with FakeTensorMode():
        model = fake_model(config)
        apply(model, config.method)
        counts = count_parameters(model)
        kept = kept_activations(model.train(), rows, config.data.max_length, config.train.precision)
    trained = counts["trainable_method"] + counts["trainable_head"]
    return Parts(counts["total"], trained, kept, rows, model.config.num_hidden_layers, model.config.hidden_size)


def add_up(config: RunConfig, parts: Parts) -> Memory:
    kept, casts = parts.kept, 2 * parts.parameters if config.train.precision == "bf16" else 0
    if config.model.gradient_checkpointing and config.train.kernels == "stock":
        inputs = parts.layers * parts.rows * config.data.max_length * parts.width * 4
        kept, casts = inputs + kept // parts.layers, casts // parts.layers
    return Memory(4 * parts.parameters + casts, 4 * parts.trained, 8 * parts.trained, kept, parts.rows)


def fake_model(config: RunConfig) -> nn.Module:
    """The configuration's model, with tensors without values. Call it in a FakeTensorMode."""
    if config.model.name not in SIZES:
        raise UserError(
            f"model must be one of {', '.join(SIZES)}, whose sizes are known here, got {config.model.name!r}"
        )
    return model_of_size(config.model.name, outputs=2)


def kept_activations(model: nn.Module, rows: int, length: int, precision: str) -> int:
    """Bytes that autograd keeps of one forward pass, excluding parameters and their casts."""
    inputs = {name: torch.ones(rows, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return saved_bytes(model, lambda: model(**inputs).logits.sum()).activations


@dataclass(frozen=True)
class Need:
    """A run, the number of processes that share its batch, and the memory of each."""

    config: RunConfig
    processes: int
    memory: Memory


def needs(processes: int, overrides: Sequence[str]) -> list[Need]:
    """The needs of one run of profile `paper`, without and with gradient checkpointing."""
    plain, thrifty = (
        compose_run(["profile=paper", f"model.gradient_checkpointing={on}", *overrides]) for on in ("false", "true")
    )
    parts = measure(plain, processes)
    return [Need(config, processes, add_up(config, parts)) for config in (plain, thrifty)]


def table(rows: Sequence[Need]) -> str:
    """A Markdown table, with memory in GiB per process."""
    lines = [
        {
            "Model": need.config.model.name,
            "Method": need.config.method.slug,
            "Precision": need.config.train.precision,
            "GPUs": need.processes,
            "Rows x tokens": f"{need.memory.rows} x {need.config.data.max_length}",
            "Checkpointing": "yes" if need.config.model.gradient_checkpointing else "no",
            "Weights": f"{need.memory.weights / GIB:.1f}",
            "Gradients": f"{need.memory.gradients / GIB:.1f}",
            "Optimizer": f"{need.memory.optimizer / GIB:.1f}",
            "Activations": f"{need.memory.activations / GIB:.1f}",
            "GiB a GPU": f"{need.memory.total / GIB:.1f}",
        }
        for need in rows
    ]
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=1, help="GPUs that share a batch")
    parser.add_argument("overrides", nargs="*", help="overrides of the run; none: the committed table")


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call."""
    if chosen.processes < 1:
        raise UserError(f"--processes must be >= 1, got {chosen.processes}")
    shown = [(chosen.processes, chosen.overrides)] if chosen.overrides else SHOWN
    rows = [need for processes, overrides in shown for need in needs(processes, overrides)]
    print(table(rows))
