"""The computations of the compiled kernels in torch operations that autograd differentiates.

Every function has a namesake in `functions` or `encoder` with the same arguments.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lora.training.fused.encoder import Frozen
from lora.training.fused.functions import Site
from lora.training.fused.kernels import GOLDEN, MAX_TOKENS, MIX_1, MIX_2


def hidden_places(*shape: int) -> Tensor:
    """Places of one example's activation, of shape (tokens, width) or, after the encoder, (width)."""
    return torch.arange(math.prod(shape)).view(shape)


def attention_places(heads: int, queries: int, keys: int) -> Tensor:
    """Places of one example's attention probabilities, of shape (heads, queries, keys)."""
    head, query, key = (torch.arange(n) for n in (heads, queries, keys))
    return (head[:, None, None] * MAX_TOKENS + query[:, None]) * MAX_TOKENS + key


def keep(site: Site, places: Tensor) -> Tensor:
    """Which places of every example are kept, by the kernels' hash computed in 64-bit integers."""
    word = 0xFFFFFFFF
    keys = torch.from_numpy(site.keys.astype(np.int64))
    first, second = (keys[:, column].view(-1, *[1] * places.dim()) for column in (0, 1))
    x = (places * GOLDEN + first) & word
    x = ((x ^ (x >> 16)) * MIX_1) & word
    x = x ^ second
    x = ((x ^ (x >> 15)) * MIX_2) & word
    return (x ^ (x >> 16)) >= int(site.threshold)


def dropout(x: Tensor, site: Site | None) -> Tensor:
    if site is None:
        return x
    return x * keep(site, hidden_places(*x.shape[1:])) * float(site.scale)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, site: Site | None) -> Tensor:
    return F.layer_norm(dropout(x, site) + residual, weight.shape, weight, bias, eps)


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, heads: int, site: Site | None, bias: Tensor | None = None
) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + (0 if bias is None else bias)
    hidden = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, -torch.inf)
    probabilities = (scores + hidden[:, None, None, :]).softmax(-1)
    if site is not None:
        probabilities = probabilities * keep(site, attention_places(*probabilities.shape[1:])) * float(site.scale)
    return (probabilities @ v).transpose(1, 2).flatten(2)


def frozen_linear(x: Tensor, frozen: Frozen) -> Tensor:
    return F.linear(x, frozen.weight, frozen.bias)


def lora_linear(x: Tensor, frozen: Frozen, lora_a: Tensor, lora_b: Tensor, scale: float, site: Site | None) -> Tensor:
    return frozen_linear(x, frozen) + scale * F.linear(F.linear(dropout(x, site), lora_a), lora_b)
