"""The floor of a training step: the time of its matrix products alone, measured on this machine."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from lora.cost.shapes import rows_and_tokens
from lora.cost.subjects import clock_of
from lora.cost.timing import Action
from lora.training.fused.encoder import DTYPES
from lora.training.fused.linear import Frozen

REPETITIONS = 7


@dataclass(frozen=True)
class Product:
    """`count` calls, each of `stacked` products of (rows, inner) by (inner, columns) matrices."""

    rows: int
    inner: int
    columns: int
    count: int
    stacked: int = 1

    @property
    def operations(self) -> int:
        """Number of multiplications and additions in all products."""
        return 2 * self.rows * self.inner * self.columns * self.stacked * self.count


def sizes_of(model: nn.Module) -> tuple[int, int, int, int] | None:
    """Layers, width, heads and FFN width; None for an encoder that does not name them as BERT does."""
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    values = tuple(getattr(model.config, key, None) for key in keys)
    return None if None in values else values


def lora_step(sizes: tuple[int, int, int, int], shape: str, rank: int) -> list[Product]:
    """The products that a LoRA step on Wq and Wv requires.

    Forward: every linear layer, A and B once, and attention's two products. Backward: the gradients of A and B, and
    every gradient on the way to them, but none of frozen weights or of the first layer's input. Only the first token
    of the last layer is read, so its queries, output and feed-forward have one token. The head, small, is excluded.

    Source: Vaswani et al. 2017 for the layers; Hu et al. 2021, section 4.1, for the update.
    """
    layers, d, heads, f = sizes
    batch, tokens = rows_and_tokens(shape)
    every, head_width, stacked = batch * tokens, d // heads, batch * heads
    products: list[Product] = []
    for layer in range(layers):
        queries = 1 if layer == layers - 1 else tokens
        read = batch * queries
        backward = 1 if layer else 0  # the first layer's input needs no gradient
        products += [
            Product(every, d, d, 2 + 2 * backward),  # Wk, Wv
            Product(read, d, d, 2 + backward + 1),  # Wq, Wo; Wo is above an adapted layer in the first layer too
            Product(read, d, f, 2),  # the feed-forward's first forward, its second backward
            Product(read, f, d, 2),
            Product(queries, head_width, tokens, 2, stacked),  # scores; backward, the probabilities' gradient
            Product(queries, tokens, head_width, 2, stacked),  # context; backward, the queries' gradient
            Product(tokens, queries, head_width, 1 + backward, stacked),  # backward: the values', then the keys'
        ]
        for rows in (read, every):  # of Wq and of Wv
            products += [
                Product(rows, d, rank, 2),  # A x; backward, B's side of the gradient of A x
                Product(rows, rank, d, 1 + backward),  # B (A x); backward, the input's gradient
                Product(rank, rows, d, 2),  # the gradients of A and of B
            ]
    return products


def multiply(product: Product, precision: str, device: str = "cpu") -> Action:
    """One call of the product, with a frozen weight packed as the compiled kernels pack it."""
    dtype = DTYPES[precision]
    left = torch.randn(product.stacked, product.rows, product.inner, device=device, dtype=dtype)
    weight = torch.randn(product.stacked, product.columns, product.inner, device=device, dtype=dtype)
    if product.stacked > 1 or device != "cpu":
        return lambda: left @ weight.mT
    return partial(Frozen(weight[0], None).forward, left[0])


@torch.no_grad()
def floor_seconds(products: Sequence[Product], precision: str, device: str = "cpu") -> float:
    """Seconds of a step's products alone: the median of a few calls of each, after a first one that plans it."""
    clock, counts, seconds = clock_of(device), Counter[Product](), 0.0
    for product in products:
        counts[replace(product, count=1)] += product.count
    for product, count in counts.items():
        call = multiply(product, precision, device)
        call()
        seconds += count * statistics.median(clock(call) for _ in range(REPETITIONS))
    return seconds
