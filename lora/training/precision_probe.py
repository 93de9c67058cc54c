"""`python -m lora.training.precision_probe WIDTH FFN`: print bf16's speed-up over fp32 in an encoder's products."""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from lora.training.device import has_bf16
from lora.training.fused.encoder import DTYPES, Frozen

ROWS = 16 * 28  # ours: 16 examples of 28 tokens, a batch of the default profile
REPETITIONS = 21  # about 1.5 s together, for MiniLM


def layer_products(width: int, ffn: int, dtype: torch.dtype) -> Callable[[], None]:
    """A function that multiplies an input, then an output gradient, by each frozen weight of a layer.

    Source: Vaswani et al. 2017: four attention projections and two feed-forward layers.
    """
    draw = torch.Generator().manual_seed(0)
    rows = {size: torch.randn(ROWS, size, generator=draw).to(dtype) for size in (width, ffn)}
    layers = []
    for d_out, d_in in [(width, width)] * 4 + [(ffn, width), (width, ffn)]:
        weight = torch.randn(d_out, d_in, generator=draw).to(dtype)
        layers.append((Frozen(weight, None), rows[d_in], rows[d_out]))

    def compute() -> None:
        for frozen, x, grad in layers:
            frozen.forward(x)
            frozen.backward(grad)

    return compute


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of this process, which excludes other processes on the same core."""
    began = time.process_time()
    action()
    return time.process_time() - began


@torch.inference_mode()
def measure_gain(width: int, ffn: int, clock: Callable[[Callable[[], None]], float] = cpu_seconds) -> float:
    """Median over interleaved repetitions of the ratio of fp32 time to bf16 time; 1 if torch has no bf16 here."""
    if not has_bf16(gpu=False):
        return 1.0
    torch.set_num_threads(1)
    slow, fast = (layer_products(width, ffn, DTYPES[name]) for name in ("fp32", "bf16"))
    for action in (slow, fast):
        action()  # warm-up: the first call generates kernels
    return statistics.median(clock(slow) / clock(fast) for _ in range(REPETITIONS))


if __name__ == "__main__":
    print(measure_gain(*map(int, sys.argv[1:3])))
