"""`python -m lora.training.precision_probe WIDTH FFN`: print bf16's speed-up over fp32 in an encoder's products."""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from lora.training.device import has_bf16
from lora.training.fused.encoder import PRECISION_DTYPES, Frozen

PRODUCT_ROWS = 16 * 28  # ours: 16 examples of 28 tokens, a batch of the default profile
REPETITIONS = 21  # about 1.5 s together, for MiniLM


def layer_products(width: int, ffn: int, dtype: torch.dtype) -> Callable[[], None]:
    """A function that multiplies an input, then an output gradient, by each frozen weight of a layer.

    Source: Vaswani et al. 2017: four attention projections and two feed-forward layers.
    """
    rows = {size: torch.randn(PRODUCT_ROWS, size).to(dtype) for size in (width, ffn)}
    sides = [(width, width)] * 4 + [(ffn, width), (width, ffn)]
    layers = [(Frozen(torch.randn(side).to(dtype), None), side) for side in sides]

    def compute() -> None:
        for frozen, (d_out, d_in) in layers:
            frozen.forward(rows[d_in])
            frozen.backward(rows[d_out])

    return compute


@torch.inference_mode()
def measure_gain(width: int, ffn: int) -> float:
    """Median over interleaved repetitions of the ratio of fp32 time to bf16 time; 1 if torch has no bf16 here."""
    if not has_bf16(gpu=False):
        return 1.0
    torch.set_num_threads(1)
    actions = [layer_products(width, ffn, PRECISION_DTYPES[name]) for name in ("fp32", "bf16")]
    ratios = []
    for _ in range(1 + REPETITIONS):
        clock = [time.process_time()]  # excludes other processes on the same core
        for action in actions:
            action()
            clock.append(time.process_time())
        ratios.append((clock[1] - clock[0]) / (clock[2] - clock[1]))
    return statistics.median(ratios[1:])  # the first repetition generates kernels


if __name__ == "__main__":
    print(measure_gain(*map(int, sys.argv[1:3])))
