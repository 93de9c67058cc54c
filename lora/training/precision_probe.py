"""`python -m lora.training.precision_probe WIDTH FFN`: time an encoder's matrix products in fp32 and bf16.

It prints a `lora.config.precision_choice.Measurement` as JSON.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from lora.config.precision_choice import Measurement
from lora.training.device import has_bf16
from lora.training.fused.encoder import DTYPES
from lora.training.fused.linear import Frozen

ROWS = 16 * 28  # ours: 16 examples of 28 tokens, a batch of the default profile
REPETITIONS = 21  # about 1.5 s together, for MiniLM


def layer_products(width: int, ffn: int, dtype: torch.dtype) -> Callable[[], None]:
    """A function that multiplies an input, then an output gradient, by each frozen weight of a layer.

    Source: Vaswani et al. 2017: four attention projections and two feed-forward layers.
    """
    sides = [(width, width)] * 4 + [(ffn, width), (width, ffn)]
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    layers = [(Frozen(normal(*shape), normal(shape[0])), shape) for shape in sides]
    rows = {size: normal(ROWS, size) for size in (width, ffn)}

    def compute() -> None:
        for frozen, (d_out, d_in) in layers:
            frozen.forward(rows[d_in])
            frozen.backward(rows[d_out])

    return compute


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of this process, which excludes other processes on the same core."""
    began = time.process_time()
    action()
    return time.process_time() - began


@torch.inference_mode()
def measure(width: int, ffn: int, clock: Callable[[Callable[[], None]], float] = cpu_seconds) -> Measurement:
    """Time both precisions in interleaved repetitions."""
    torch.set_num_threads(1)
    usable = [name for name in DTYPES if name == "fp32" or has_bf16(gpu=False)]
    actions = {name: layer_products(width, ffn, DTYPES[name]) for name in usable}
    for action in actions.values():
        action()  # warm-up: the first call generates kernels
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(REPETITIONS):
        for name, action in actions.items():
            times[name].append(clock(action))
    gain = statistics.median(map(lambda a, b: a / b, times["fp32"], times[usable[-1]]))
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return Measurement(fp32_ms=medians["fp32"], bf16_ms=medians.get("bf16"), gain=gain)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure(*map(int, sys.argv[1:3])))))
