"""What matrix products alone cost here: their rate, and the floor that they set under a training step."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora.cost.timing import interleave, wall_seconds
from lora.training.fused.encoder import DTYPES

REPETITIONS = 7


@dataclass(frozen=True)
class Product:
    """`count` products of (rows, inner) by (inner, columns) matrices, `stacked` of them in one call."""

    rows: int
    inner: int
    columns: int
    count: int
    stacked: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions of all of them."""
        return 2 * self.rows * self.inner * self.columns * self.stacked * self.count


@dataclass(frozen=True)
class Encoder:
    """The sizes that a step's operations follow from."""

    layers: int
    width: int
    heads: int
    ffn: int


def sizes_of(model: nn.Module) -> Encoder:
    settings = model.config
    return Encoder(
        settings.num_hidden_layers, settings.hidden_size, settings.num_attention_heads, settings.intermediate_size
    )


def lora_step(encoder: Encoder, batch: int, tokens: int, rank: int) -> list[Product]:
    """The products that a LoRA step on Wq and Wv cannot do without.

    Forward: every frozen layer once, attention twice. Backward: the same again for what reaches an adapted layer, but
    no gradient of frozen weights, and none below the first layer's projections. Of the last layer only the first token
    is read, so its queries, output and feed-forward are of one token. The head, which is small, is left out.

    Source: Vaswani et al. 2017 for the layers; Hu et al. 2021, section 4.1, for the update.
    """
    d, f, every = encoder.width, encoder.ffn, batch * tokens
    head_width, stacked = d // encoder.heads, batch * encoder.heads
    found: list[Product] = []
    for layer in range(encoder.layers):
        queries = 1 if layer == encoder.layers - 1 else tokens
        read = batch * queries
        backward = 1 if layer else 0  # the first layer's input needs no gradient
        found += [
            Product(every, d, d, 2 + 2 * backward),  # Wk, Wv
            Product(read, d, d, 2 + backward + 1),  # Wq, Wo; Wo is above an adapted layer in the first layer too
            Product(read, d, f, 2),  # the feed-forward's first forward, its second backward
            Product(read, f, d, 2),
            Product(queries, head_width, tokens, 2, stacked),  # scores; backward, the probabilities' gradient
            Product(queries, tokens, head_width, 2, stacked),  # context; backward, the queries' gradient
            Product(
                tokens, queries, head_width, 1 + backward, stacked
            ),  # backward: the values', then the keys' gradient
        ]
        for rows in (read, every):  # of Wq and of Wv
            found += [
                Product(rows, d, rank, 2),  # A x; backward, B's side of the gradient of A x
                Product(rows, rank, d, 1 + backward),  # B (A x); backward, the input's gradient
                Product(rank, rows, d, 2),  # the gradients of A and of B
            ]
    return found


def timer(device: str) -> Callable[[Callable[[], Any]], float]:
    """What times an action: the clock, or on a GPU events in its own stream, so that no launch is missed."""
    return wall_seconds if device == "cpu" else event_seconds


def event_seconds(action: Callable[[], Any]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    action()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1000


def product_seconds(product: Product, precision: str, device: str = "cpu", repetitions: int = REPETITIONS) -> float:
    """One call's time: the median of a few, the first ones left out. The right matrix is laid out as torch likes it."""
    dtype = DTYPES[precision]
    shapes = (product.rows, product.inner), (product.inner, product.columns)
    left, right = (torch.randn(product.stacked, *shape, device=device, dtype=dtype) for shape in shapes)
    if product.stacked == 1:
        left, right = left[0], right[0]
    actions = {"product": lambda: left @ right}
    interleave(actions, 2)
    return statistics.median(interleave(actions, repetitions, timer(device))["product"])


def floor_seconds(products: Sequence[Product], precision: str, device: str = "cpu") -> float:
    """The time of a step that does nothing but its products, each as fast as torch does it alone."""
    shapes = {(p.rows, p.inner, p.columns, p.stacked): p for p in products}
    measured = {shape: product_seconds(product, precision, device) for shape, product in shapes.items()}
    return sum(p.count * measured[p.rows, p.inner, p.columns, p.stacked] for p in products)
