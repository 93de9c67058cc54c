"""The floor of a training step: the time of its matrix products alone, measured on this machine."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lora.cost.shapes import rows_and_tokens
from lora.cost.subjects import clock_of
from lora.cost.timing import Action, interleave
from lora.training.fused.encoder import DTYPES

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


def layouts(product: Product, precision: str, device: str = "cpu") -> dict[str, Action]:
    """The product with its right matrix stored by rows, by columns, and in the layout that oneDNN packs weights in."""
    dtype = DTYPES[precision]
    left = torch.randn(product.stacked, product.rows, product.inner, device=device, dtype=dtype)
    weight = torch.randn(product.stacked, product.columns, product.inner, device=device, dtype=dtype)
    if product.stacked > 1:
        by_rows = weight.mT.contiguous()
        return {"rows": lambda: left @ by_rows, "columns": lambda: left @ weight.mT}
    left, weight = left[0], weight[0]
    by_rows = weight.t().contiguous()
    actions: dict[str, Action] = {"rows": lambda: left @ by_rows, "columns": lambda: F.linear(left, weight)}
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)  # torch's own compiler uses it
    if device == "cpu" and torch.backends.mkldnn.is_available() and pack is not None:
        packed = pack(weight)
        actions["packed"] = lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")
    return actions


@torch.no_grad()
def floor_seconds(products: Sequence[Product], precision: str, device: str = "cpu") -> float:
    """Seconds of a step's products alone, each in the fastest layout: the median of a few calls after a warm-up."""
    by_shape = {(p.rows, p.inner, p.columns, p.stacked): p for p in products}
    fastest = {}
    for shape, product in by_shape.items():
        work = {"": layouts(product, precision, device)}
        times = interleave(work, REPETITIONS, clock=clock_of(device))[""]
        fastest[shape] = min(statistics.median(seconds) for seconds in times.values())
    return sum(p.count * fastest[p.rows, p.inner, p.columns, p.stacked] for p in products)
