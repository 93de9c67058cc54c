"""`python -m lora.cost.steps OUT.json REPETITIONS OVERRIDES`: our training step, PEFT's, and full fine-tuning's.

All run in one process with one thread. Every subject starts from the same encoder and takes the same batches. All
shapes are warmed up before the subjects take turns.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import saved, shapes
from lora.cost.floor import floor_seconds, lora_step, sizes_of
from lora.cost.subjects import Batch, Subject, changed, clock_of, ours, peft, random_batch
from lora.cost.timing import interleave
from lora.methods.configs import FullConfig
from lora.training.allocator import keep_freed_memory
from lora.training.device import has_bf16

WARMUP = 2
PRECISIONS = ("bf16", "fp32")
SAVED_LORA_DROPOUT = 0.1
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "mkldnn::")
ATTENTIONS = ("eager", "sdpa")


def roster(config: RunConfig, precisions: Sequence[str]) -> dict[str, Callable[[], Subject]]:
    """Name -> builder: `ours`, `ours recomputing`, `full` and PEFT with either attention, in every precision."""
    found: dict[str, Callable[[], Subject]] = {}
    for precision in precisions:
        train = {"precision": precision, "kernels": "fused"}
        plain = changed(config, train=train, runtime={"device": "cpu", "threads": 1})
        own = {
            "ours": plain,
            "ours recomputing": changed(plain, model={"gradient_checkpointing": True}),
            "full": changed(plain, method=FullConfig()),
        }
        peers = {f"peft {attention}": changed(plain, model={"attention": attention}) for attention in ATTENTIONS}
        for make, variants in ((ours, own), (peft, peers)):
            found |= {f"{kind} {precision}": functools.partial(make, variant) for kind, variant in variants.items()}
    return found


def time_steps(
    subjects: Mapping[str, Subject], batches: Mapping[str, Batch], repetitions: int, device: str = "cpu"
) -> dict[str, dict[str, list[float]]]:
    """Shape -> subject -> seconds of every step, excluding the warm-up."""
    work = {
        shape: {name: functools.partial(subject.step, batch) for name, subject in subjects.items()}
        for shape, batch in batches.items()
    }
    return interleave(work, repetitions, warmup=WARMUP, clock=clock_of(device))


def saved_bytes(subject: Subject, batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass: each storage once, without parameters, with casts."""
    found = saved.saved_bytes(subject.model, lambda: subject.loss(batch))
    return found.activations + found.casts


def matmul_seconds(subject: Subject, batch: Batch, steps: int = 2) -> tuple[float, float]:
    """Seconds of a step's matrix products, by torch's profiler, and of the same whole step, by the clock.

    The profiler's total is not the whole step: compiled kernels run outside of torch's operators.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        for _ in range(steps):
            subject.step(batch)
        seconds = time.perf_counter() - started
    products = (event for event in profiled.key_averages() if event.key.startswith(MATRIX_PRODUCTS))
    return sum(event.self_cpu_time_total for event in products) / 1e6 / steps, seconds / steps


def measure(
    config: RunConfig, repetitions: int, precisions: Sequence[str], step_shapes: Sequence[str] = shapes.STEP
) -> dict[str, Any]:
    """Take every measurement of steps on a CPU, for measurements.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    subjects = {name: make() for name, make in roster(config, precisions).items()}
    encoder = subjects[f"ours {precisions[0]}"].model
    batches = {shape: random_batch(encoder, shape) for shape in step_shapes}
    times = time_steps(subjects, batches, repetitions)
    floors = {
        shape: {
            precision: floor_seconds(lora_step(sizes_of(encoder), shape, config.method.rank), precision)
            for precision in precisions
        }
        for shape in step_shapes
    }
    products = {
        shape: {
            name: matmul_seconds(subjects[name], batch)
            for name in subjects
            if name.endswith(precisions[0]) and "sdpa" not in name
        }
        for shape, batch in batches.items()
    }
    dropped = changed(config, method={"dropout": SAVED_LORA_DROPOUT})
    largest = max(step_shapes, key=shapes.size)  # saved bytes matter most for it
    kept = {name: saved_bytes(make(), batches[largest]) for name, make in roster(dropped, precisions).items()}
    return {
        "times": times,
        "floors": floors,
        "matmul_seconds": products,
        "saved_bytes": kept,
        "saved_shape": largest,
    }


def main() -> None:
    out, repetitions, *overrides = sys.argv[1:]
    precisions = PRECISIONS if has_bf16(gpu=False) else ("fp32",)
    measured = measure(compose_run(overrides), int(repetitions), precisions)
    Path(out).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
