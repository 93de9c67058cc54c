"""Dropout masks, and autograd functions around the kernels.

A mask is a counter-based hash of seed, step, site, example and place. It is independent of padding, of the other
examples in the batch, of the number of processes, and of earlier draws. The backward pass recomputes it.

Activations are float32 or bfloat16 and keep their dtype: `x`, `residual` and all results are (batch, tokens, width).
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor

from lora.training.fused import kernels

# Dropout masks.


class Site(NamedTuple):
    """One dropout operation of a forward pass, as the kernels take it: keys, threshold and scale, 1 / (1 - p).

    A place is kept if its hash is at least the threshold, which rounds p to a multiple of 2^-32.
    """

    keys: UInt32[np.ndarray, "batch 2"]
    threshold: np.uint32
    scale: np.float32


class Masks:
    """The keys of every dropout operation of a model, set by `begin` for a batch."""

    def __init__(self, seed: int):
        self.seed = seed
        self.rows: np.ndarray | None = None
        self.calls: Counter[str] = Counter()

    def begin(self, step: int, rows: np.ndarray) -> None:
        """Start a forward pass over the examples `rows`, given by their indices in the train split."""
        self.calls.clear()
        self.rows = _mix64(_mix64(rows.astype(np.uint64)) ^ np.uint64(_name_hash(f"{self.seed}:{step}")))

    def site(self, name: str, p: float, batch: int) -> Site:
        assert self.rows is not None and len(self.rows) == batch, "dropout without Masks.begin for its batch"
        keys = _mix64(self.rows + np.uint64(_name_hash(name)))
        return Site(keys.view(np.uint32).reshape(-1, 2), np.uint32(round(p * 2**32)), np.float32(1 / (1 - p)))

    def called(self, name: str) -> str:
        """The name of this call of a module. RoBERTa's head calls its dropout twice, which must draw two masks."""
        self.calls[name] += 1
        return name if self.calls[name] == 1 else f"{name}, call {self.calls[name]}"


@functools.lru_cache(maxsize=1024)
def _name_hash(name: str) -> int:
    """A 64-bit hash of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _mix64(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


# Functions.


def dropout(x: Float[Tensor, "batch ..."], site: Site | None) -> Float[Tensor, "batch ..."]:
    """Dropout at a site. Without a site, x itself."""
    return x if site is None else _Dropout.apply(x, site)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, site: Site | None) -> Tensor:
    """LayerNorm(dropout(x) + residual), with what recomputes it as the attribute `source`."""
    out, normed = _AddNorm.apply(x, residual, weight, bias, eps, site)
    out.source = normed, weight, bias
    return out


def recomputed(source: Sequence[Tensor], site: Site | None) -> Tensor:
    """The output of `add_norm`, bit for bit, with dropout at a site."""
    out = torch.empty_like(source[0])
    kernels.affine(*map(array, source), *arguments(site, len(out)), array(out))
    return out


def array(tensor: Tensor) -> np.ndarray:
    """A NumPy view of the same memory for a kernel, with bfloat16 as uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def arguments(site: Site | None, batch: int) -> Site:
    """The site, or one that keeps everything."""
    return Site(np.zeros((batch, 2), np.uint32), np.uint32(0), np.float32(1)) if site is None else site


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, site: Site) -> Tensor:
        ctx.site = site
        return dropped(x, site)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return dropped(grad, ctx.site), None


def dropped(x: Tensor, site: Site | None) -> Tensor:
    if site is None:
        return x
    x = x.contiguous()
    out = torch.empty_like(x)
    kernels.dropout(array(x.flatten(1)), *arguments(site, len(x)), array(out.flatten(1)))
    return out


class _Gelu(torch.autograd.Function):
    """The exact GELU, x * Phi(x), accurate to 1e-7."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        kernels.gelu(array(x.view(-1)), array(out.view(-1)))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        kernels.gelu_backward(array(x.view(-1)), array(grad.contiguous().view(-1)), array(out.view(-1)))
        return out


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps, site):
        x, residual = x.contiguous(), residual.contiguous()
        out, normed = torch.empty_like(x), torch.empty_like(x)
        rstd = torch.empty(x.shape[:2])
        inputs = map(array, (x, residual, weight, bias))
        outputs, work = map(array, (out, normed, rstd)), kernels.scratch(x.shape[-1])
        kernels.norm(*inputs, np.float32(eps), *arguments(site, len(x)), *outputs, work)
        ctx.save_for_backward(normed, rstd, weight)
        ctx.mark_non_differentiable(normed)
        ctx.site = site
        return out, normed

    @staticmethod
    def backward(ctx, grad, _):
        normed, rstd, weight = ctx.saved_tensors
        grad, site = grad.contiguous(), ctx.site
        grad_x = torch.empty_like(normed)
        grad_residual = grad_x if site is None else torch.empty_like(normed)
        affine = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        inputs = map(array, (grad, weight, normed, rstd))
        outputs = map(array, (grad_x, grad_residual))
        sums = map(array, (grad_weight, grad_bias))
        work = kernels.scratch(grad.shape[-1])
        kernels.norm_backward(*inputs, *arguments(site, len(grad)), *outputs, affine, *sums, work)
        return grad_x, grad_residual, *((grad_weight, grad_bias) if affine else (None, None)), None, None


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention with dropout of the probabilities. Each example needs at least one visible key.

    It stores q, k, v and one number per query and head, from which the backward pass recomputes the probabilities.

    Args:
        q, k, v: (batch, queries, width), and twice (batch, tokens, width).
        visible: (batch, tokens), bool.
        bias: (heads, queries, tokens), added to the scaled scores of every example, for MPNet's relative positions.
    """

    @staticmethod
    def forward(ctx, q, k, v, visible, heads, site, bias):
        q, k, v = (_by_head(x, heads) for x in (q, k, v))
        hidden = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        scores = _scores(q, k, bias)
        lse = torch.empty(scores.shape[:3])
        softmax_scale = np.float32(q.shape[-1] ** -0.5)
        site_arguments = arguments(site, len(scores))
        work = _attention_work(scores, 1)
        kernels.attend(array(scores), array(hidden), *site_arguments, softmax_scale, array(lse), *work)
        out = torch.bmm(scores.flatten(0, 1), v.flatten(0, 1))
        ctx.save_for_backward(q, k, v, hidden, lse)
        ctx.site, ctx.bias = site, None if bias is None else bias.detach()
        return _by_token(out.view(q.shape))

    @staticmethod
    def backward(ctx, grad):
        q, k, v, hidden, lse = ctx.saved_tensors
        grad = _by_head(grad, q.shape[1])
        scores = _scores(q, k, ctx.bias)
        slopes = torch.bmm(grad.flatten(0, 1), v.flatten(0, 1).mT).view(scores.shape)
        softmax_scale = np.float32(q.shape[-1] ** -0.5)
        site, work = arguments(ctx.site, len(scores)), _attention_work(scores, 2)
        kernels.attend_backward(array(scores), array(hidden), *site, softmax_scale, array(lse), array(slopes), *work)
        probabilities, slopes = scores.flatten(0, 1), slopes.flatten(0, 1)
        grad_q = torch.bmm(slopes, k.flatten(0, 1)).view(q.shape)
        grad_k = torch.bmm(slopes.mT, q.flatten(0, 1)).view(k.shape)
        grad_v = torch.bmm(probabilities.mT, grad.flatten(0, 1)).view(v.shape)
        grad_bias = None
        if ctx.needs_input_grad[6]:  # slopes are gradients of the unscaled scores
            grad_bias = slopes.view(scores.shape).sum(0, dtype=torch.float32) * q.shape[-1] ** 0.5
        return *map(_by_token, (grad_q, grad_k, grad_v)), None, None, None, grad_bias


def _scores(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The unscaled scores, q k^T, plus the bias divided by the softmax's scale."""
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).view(*q.shape[:3], k.shape[2])
    return scores if bias is None else scores.add_(bias * q.shape[-1] ** 0.5)


def _attention_work(scores: Tensor, count: int) -> list[np.ndarray]:
    """Working memory of the attention kernels: `count` buffers for the scores of a head, and one for their places."""
    size = scores.shape[2] * scores.shape[3]
    return [*(kernels.scratch(size) for _ in range(count)), np.empty(size, np.uint32)]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Reshape (batch, tokens, width) to (batch, heads, tokens, width of a head)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def _by_token(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


gelu, attention = _Gelu.apply, _Attention.apply
