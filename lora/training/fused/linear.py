"""Frozen linear layers: alone, and with a LoRA update."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lora.training.fused import kernels
from lora.training.fused.functions import Hidden, Normed, Site, arguments, array, dropped


class Frozen:
    """Weight and bias of a frozen linear layer, packed once for oneDNN's bfloat16 products.

    Otherwise every product packs the weight again, which takes a fifth of its time.
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None):
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.packed = self.packed_t = None
        if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)  # torch's compiler uses it too
            if pack is not None:
                self.packed, self.packed_t = pack(self.weight), pack(self.weight.t().contiguous())

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def backward(self, grad: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_in"]:
        if self.packed_t is None:
            return grad @ self.weight
        return torch.ops.mkldnn._linear_pointwise(grad, self.packed_t, None, "none", [], "")


def frozen_linear(x: Float[Tensor, "*rows d_in"], frozen: Frozen) -> Float[Tensor, "*rows d_out"]:
    """W x + b. Stores nothing for the backward pass."""
    return _FrozenLinear.apply(x, frozen)


def lora_linear(
    x: Hidden,
    frozen: Frozen,
    lora_a: Float[Tensor, "rank width"],
    lora_b: Float[Tensor, "d_out rank"],
    scale: float,
    site: Site | None,
    made: Normed | None,
) -> Float[Tensor, "batch tokens d_out"]:
    """W x + b + scale * B A dropout(x), with W and b frozen.

    Stores A dropout(x) for the backward pass, and x unless `made` can recompute it.
    """
    return _LoraLinear.apply(x, frozen, lora_a, lora_b, scale, site, made)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, frozen: Frozen) -> Tensor:
        ctx.frozen = frozen
        return frozen.forward(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.frozen.backward(grad), None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, frozen, lora_a, lora_b, scale, site, made):
        x = x.contiguous()
        lora_a, lora_b = lora_a.to(x.dtype), (scale * lora_b).to(x.dtype)
        kept = dropped(x, site)
        low = F.linear(kept, lora_a).flatten(0, 1)
        out = frozen.forward(x)
        out.view(-1, out.shape[-1]).addmm_(low, lora_b.t())
        ctx.save_for_backward(lora_a, lora_b, low, *((x,) if made is None else made.tensors))
        ctx.frozen, ctx.scale, ctx.site = frozen, scale, site
        return out

    @staticmethod
    def backward(ctx, grad):
        lora_a, lora_b, low, *source = ctx.saved_tensors
        site, rows = ctx.site, grad.contiguous().flatten(0, 1)
        low_grad = rows @ lora_b
        kept = Normed(*source).again(site) if len(source) > 1 else dropped(source[0], site)
        grad_a = (low_grad.t() @ kept.flatten(0, 1)).float()
        grad_b = (rows.t() @ low).float() * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.frozen.backward(rows)
            if site is None:
                grad_x.addmm_(low_grad, lora_a)
            else:
                update = (low_grad @ lora_a).view(len(grad), -1)
                kernels.add_dropout(array(update), *arguments(site, len(grad)), array(grad_x.view(len(grad), -1)))
            grad_x = grad_x.view(kept.shape)
        return grad_x, None, grad_a, grad_b, None, None, None
