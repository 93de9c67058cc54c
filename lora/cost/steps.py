"""`python -m lora.cost.steps OUT.json REPETITIONS OVERRIDES`: a training step of every contender.

All run in one process with one thread. Every contender starts from the same encoder and takes the same batches. All
shapes are warmed up; then the contenders take turns, in an order that rotates.
"""

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import saved as memory
from lora.cost.floor import timer
from lora.cost.subjects import Contender, ours, peft, pretrained, random_batch
from lora.cost.timing import interleave
from lora.methods.configs import FullConfig
from lora.training.allocator import keep_freed_memory
from lora.training.device import has_bf16

SHAPES = {"16x28": (16, 28), "32x64": (32, 64)}
WARMUP = 2
PRECISIONS = ("bf16", "fp32")
SAVED_LORA_DROPOUT = 0.1
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "mkldnn::")
ATTENTIONS = ("eager", "sdpa")


def roster(config: RunConfig, precisions: Sequence[str]) -> dict[str, Callable[[], Contender]]:
    """The contenders by name: `ours`, `ours recomputing`, `full` and PEFT with either attention, in every precision."""
    build, method = pretrained(config), config.method
    recomputing = dataclasses.replace(config, model=dataclasses.replace(config.model, gradient_checkpointing=True))
    found: dict[str, Callable[[], Contender]] = {}
    for precision in precisions:
        for kind, settings, chosen in (
            ("ours", config, method),
            ("ours recomputing", recomputing, method),
            ("full", config, FullConfig()),
        ):
            name = f"{kind} {precision}"
            found[name] = functools.partial(ours, build, settings, name, chosen, precision)
        for attention in ATTENTIONS:
            name = f"peft {attention} {precision}"
            found[name] = functools.partial(peft, build, config, name, method, precision, attention=attention)
    return found


def time_steps(
    contenders: Mapping[str, Contender],
    batch: dict[str, Tensor],
    repetitions: int,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of every step of every contender, the warm-up left out."""
    actions = {name: (lambda c=contender: c.step(batch)) for name, contender in contenders.items()}
    interleave(actions, WARMUP)
    return interleave(actions, repetitions, timer(device))


def saved_bytes(contender: Contender, batch: dict[str, Tensor]) -> int:
    """What the forward pass keeps for the backward pass: each storage once, parameters left out, casts of them not."""
    saved = memory.saved_bytes(contender.model, lambda: contender.loss(batch))
    return saved.activations + saved.casts


def matmul_seconds(contender: Contender, batch: dict[str, Tensor], steps: int = 2) -> tuple[float, float]:
    """Seconds of a step's matrix products, by torch's profiler, and of the same step as a whole, by the clock.

    Compiled kernels run outside of torch's operators, so the whole is not what the profiler adds up to.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        for _ in range(steps):
            contender.step(batch)
        seconds = time.perf_counter() - started
    products = (event for event in profiled.key_averages() if event.key.startswith(MATRIX_PRODUCTS))
    return sum(event.self_cpu_time_total for event in products) / 1e6 / steps, seconds / steps


def measure(
    config: RunConfig, shapes: Mapping[str, tuple[int, int]], repetitions: int, precisions: Sequence[str]
) -> dict[str, Any]:
    """Everything about steps on a CPU, as measurements.json has it."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    contenders = {name: make() for name, make in roster(config, precisions).items()}
    vocabulary = next(iter(contenders.values())).model.config.vocab_size
    batches = {name: random_batch(*shape, vocabulary) for name, shape in shapes.items()}
    times = {name: time_steps(contenders, batch, repetitions) for name, batch in batches.items()}
    products = {
        shape: {
            name: matmul_seconds(contenders[name], batch)
            for name in contenders
            if name.endswith(precisions[0]) and "sdpa" not in name
        }
        for shape, batch in batches.items()
    }
    dropped = dataclasses.replace(config, method=dataclasses.replace(config.method, dropout=SAVED_LORA_DROPOUT))
    shape = max(shapes, key=lambda name: math.prod(shapes[name]))  # where it matters most
    kept = {name: saved_bytes(make(), batches[shape]) for name, make in roster(dropped, precisions).items()}
    return {"times": times, "matmul_seconds": products, "saved_bytes": kept, "saved_shape": shape}


def main() -> None:
    out, repetitions, *overrides = sys.argv[1:]
    precisions = PRECISIONS if has_bf16(gpu=False) else ("fp32",)
    measured = measure(compose_run(overrides), SHAPES, int(repetitions), precisions)
    Path(out).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
