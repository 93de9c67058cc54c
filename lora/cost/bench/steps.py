"""One training step of this project, of full fine-tuning and of PEFT, on one thread of this CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lora.config.run import RunConfig
from lora.cost import harness, shapes
from lora.cost.saved import saved_bytes
from lora.cost.subjects import Batch, Subject, changed, ours, peft, random_batch
from lora.methods.configs import FullConfig
from lora.training.allocator import keep_freed_memory
from lora.training.device import has_bf16

WARMUP = 2
SAVED_LORA_DROPOUT = 0.1
ATTENTIONS = ("eager", "sdpa")


def contenders(config: RunConfig, precisions: Sequence[str]) -> dict[str, Callable[[], Subject]]:
    """Name -> builder: `ours`, `ours recomputing`, `full` and PEFT with either attention, in every precision."""
    builders: dict[str, Callable[[], Subject]] = {}
    for precision in precisions:
        train = {"precision": precision, "kernels": "fused"}
        plain = changed(config, train=train, runtime={"device": "cpu", "threads": 1})
        builders |= {
            f"ours {precision}": partial(ours, plain),
            f"ours recomputing {precision}": partial(ours, changed(plain, model={"gradient_checkpointing": True})),
            f"full {precision}": partial(ours, changed(plain, method=FullConfig())),
        }
        for attention in ATTENTIONS:
            builders[f"peft {attention} {precision}"] = partial(peft, changed(plain, model={"attention": attention}))
    return builders


def measure(config: RunConfig, rounds: int, step_shapes: Sequence[str] = shapes.STEP) -> dict[str, Any]:
    """Every measurement of steps, for measurements.json: `times`, `floors`, and `saved_bytes` at `saved_shape`.

    Every subject starts from the same encoder and takes the same batches, in turns.
    """
    precisions = ("bf16", "fp32") if has_bf16(gpu=False) else ("fp32",)
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    subjects = {name: make() for name, make in contenders(config, precisions).items()}
    encoder = next(iter(subjects.values())).model
    batches = {shape: random_batch(encoder, shape) for shape in step_shapes}
    steps = {name: subject.step for name, subject in subjects.items()}
    times = harness.times(steps, batches, rounds, "cpu", warmup=WARMUP)
    rank = config.method.rank
    floors = {
        shape: {p: harness.floor_ms(encoder, shape, rank, p, "cpu") / 1000 for p in precisions} for shape in batches
    }
    largest = max(step_shapes, key=shapes.size)  # saved bytes matter most for it
    dropped = contenders(changed(config, method={"dropout": SAVED_LORA_DROPOUT}), precisions)
    kept = {name: all_saved(make(), batches[largest]) for name, make in dropped.items()}
    return {"times": times, "floors": floors, "saved_bytes": kept, "saved_shape": largest}


def all_saved(subject: Subject, batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass: each storage once, without parameters, with casts."""
    saved = saved_bytes(subject.model, partial(subject.loss, batch))
    return saved.activations + saved.casts
