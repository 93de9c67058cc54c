"""An encoder of the BERT architecture that computes with the compiled kernels instead of transformers' modules."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lora.config.auto import not_covered
from lora.errors import UserError
from lora.methods.lowrank import LoraLinear
from lora.models.modules import is_head, replace
from lora.training.fused import functions, kernels
from lora.training.fused.functions import Masks, Site, arguments, array, dropped, recomputed

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FusedEncoder(nn.Module):
    """The layers of an encoder of the BERT architecture, with their parameters under the same names.

    The last layer is computed for the first token only, because the classification head reads only that token. It still
    attends to the keys and values of all tokens.

    Args:
        encoder: transformers' encoder with a method applied, and its frozen linear layers cast to `dtype`.
        dtype: Type of activations and matrix products. Trainable parameters stay float32.
    """

    def __init__(self, encoder: nn.Module, heads: int, dtype: torch.dtype, masks: Masks):
        super().__init__()
        self.layer = encoder.layer
        if hasattr(encoder, "relative_attention_bias"):  # MPNet
            self.relative_attention_bias = encoder.relative_attention_bias
            self.bucket = encoder.relative_position_bucket
        self.heads, self.dtype, self.masks = heads, dtype, masks
        self.frozen = {
            module: Frozen(module.weight, module.bias)
            for module in encoder.modules()
            if isinstance(module, nn.Linear | LoraLinear)
            and not (module.weight.requires_grad or module.bias.requires_grad)
        }

    def forward(
        self, hidden_states: Float[Tensor, "batch tokens width"], attention_mask: Tensor | None = None, **unused
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            attention_mask: transformers' prepared mask, (batch, 1, 1 or queries, tokens): true or 0 where a key is
                visible. None if all keys are visible.
        Returns: `last_hidden_state` of shape (batch, 1, width), float32.
        """
        x = hidden_states.to(self.dtype)
        if attention_mask is None:
            visible = torch.ones(x.shape[:2], dtype=torch.bool)
        else:
            visible = attention_mask[:, 0, 0]
            visible = visible if visible.dtype == torch.bool else visible == 0
        bias = self.position_bias(x.shape[1])
        for number, layer in enumerate(self.layer):
            x = self.layer_forward(layer, f"{number}", x, visible, bias, first_only=number == len(self.layer) - 1)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x.float())

    def position_bias(self, tokens: int) -> Float[Tensor, "heads tokens tokens"] | None:
        """MPNet's bias of the attention scores, by relative position. None for other architectures."""
        if not hasattr(self, "relative_attention_bias"):
            return None
        places = torch.arange(tokens)
        return self.relative_attention_bias(self.bucket(places - places[:, None])).permute(2, 0, 1)

    def layer_forward(
        self, layer: nn.Module, site: str, x: Tensor, visible: Tensor, bias: Tensor | None, first_only: bool
    ) -> Tensor:
        """Source: Devlin et al. 2019, with transformers' module names."""
        if bias is None:
            projections, output = layer.attention.self, layer.attention.output
            query, key, value, dense = projections.query, projections.key, projections.value, output.dense
        else:  # MPNet's names
            projections, output = layer.attention.attn, layer.attention
            query, key, value, dense = projections.q, projections.k, projections.v, projections.o
            bias = bias[:, :1] if first_only else bias
        queries = x[:, :1] if first_only else x
        q = self.linear(query, queries, f"{site}.query")
        k = self.linear(key, x, f"{site}.key")
        v = self.linear(value, x, f"{site}.value")
        p = self.site(projections.dropout.p, f"{site}.probabilities", len(x))
        context = functions.attention(q, k, v, visible, self.heads, p, bias)
        a = self.block(output, dense, context, queries, f"{site}.attention")
        h = functions.gelu(self.linear(layer.intermediate.dense, a, f"{site}.intermediate"))
        return self.block(layer.output, layer.output.dense, h, a, f"{site}.output")

    def block(self, block: nn.Module, dense: nn.Module, x: Tensor, residual: Tensor, site: str) -> Tensor:
        """Projection, dropout, Houlsby adapter (if any), residual, and LayerNorm with Pfeiffer adapter (if any)."""
        x = self.linear(dense, x, f"{site}.dense")
        norm = block.LayerNorm
        dropped = self.site(block.dropout.p, site, len(x))
        if hasattr(block.dropout, "adapter"):
            x, dropped = functions.dropout(x, dropped), None
            x = x + self.bottleneck(block.dropout.adapter, x)
        if hasattr(norm, "adapter"):
            x = functions.dropout(x, dropped) + residual
            once = functions.add_norm(x, torch.zeros_like(x), norm.weight, norm.bias, norm.eps, None)
            return functions.add_norm(self.bottleneck(norm.adapter, once), x, norm.weight, norm.bias, norm.eps, None)
        return functions.add_norm(x, residual, norm.weight, norm.bias, norm.eps, dropped)

    def linear(self, module: nn.Module, x: Tensor, site: str) -> Tensor:
        frozen = self.frozen.get(module)
        if isinstance(module, LoraLinear):
            dropped = self.site(module.dropout, f"{site}.lora", len(x))
            return lora_linear(x, frozen, *module.factors(), module.scale, dropped)
        if frozen is not None:
            return frozen_linear(x, frozen)
        return F.linear(x, module.weight.to(x.dtype), module.bias.to(x.dtype))

    def bottleneck(self, adapter: nn.Module, x: Tensor) -> Tensor:
        low = adapter.activation(F.linear(x, adapter.down.weight.to(x.dtype), adapter.down.bias.to(x.dtype)))
        return F.linear(low, adapter.up.weight.to(x.dtype), adapter.up.bias.to(x.dtype))

    def site(self, p: float, name: str, batch: int) -> Site | None:
        return self.masks.site(name, p, batch) if self.training and p > 0 else None


class FusedDropout(nn.Module):
    """Dropout outside the encoder's layers."""

    def __init__(self, p: float, name: str, masks: Masks):
        super().__init__()
        self.p, self.name, self.masks = p, name, masks

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        if not self.training or self.p == 0:
            return x
        return functions.dropout(x, self.masks.site(self.masks.called(self.name), self.p, len(x)))


def fuse(model: nn.Module, precision: str, seed: int) -> Masks:
    """Make a transformers model compute with the kernels, in place. Apply the method first.

    Returns: The source of the dropout masks. Call its `begin` before every forward pass in training.
    Raises: UserError: If the architecture, its settings or the method are not supported. The model is then unchanged.
    """
    settings = model.config
    method = getattr(getattr(model, "applied", None), "method", None)
    lacked = hasattr(model, "tuner") or getattr(method, "dora", False)
    reason = "DoRA and PEFT's methods" if lacked else not_covered(settings.to_dict())
    if reason is not None:
        raise UserError(f"train.kernels=fused does not cover {reason}: use train.kernels=stock")
    assert isinstance(model.base_model.encoder.layer[0].intermediate.intermediate_act_fn, GELUActivation)
    masks, dtype = Masks(seed), PRECISION_DTYPES[precision]
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout and ".layer." not in name:
            replace(model, name, FusedDropout(module.p, name, masks))
    encoder = f"{model.base_model_prefix}.encoder"
    for name, parameter in model.named_parameters():
        wide = "LayerNorm" in name or name.endswith("lora_a")  # A may be frozen
        if name.startswith(f"{encoder}.layer.") and not (parameter.requires_grad or wide or is_head(model, name)):
            parameter.data = parameter.data.to(dtype)
    fused = FusedEncoder(model.get_submodule(encoder), settings.num_attention_heads, dtype, masks)
    replace(model, encoder, fused)
    return masks


# Linear layers.


class Frozen:
    """Weight and bias of a frozen linear layer, packed once for oneDNN's bfloat16 products.

    Otherwise every product packs the weight again, which takes a fifth of its time.
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None):
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.packed = self.packed_t = None
        if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            pack = torch.ops.mkldnn._reorder_linear_weight  # torch's compiler uses it too
            self.packed_t = pack(self.weight.t().contiguous())
            self.packed = pack(self.weight)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def backward(self, grad: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_in"]:
        if self.packed_t is None:
            return grad @ self.weight
        return torch.ops.mkldnn._linear_pointwise(grad, self.packed_t, None, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """W x + b. Stores nothing for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, frozen: Frozen) -> Tensor:
        ctx.frozen = frozen
        return frozen.forward(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.frozen.backward(grad), None


class _LoraLinear(torch.autograd.Function):
    """W x + b + scale * B A dropout(x), with W and b frozen.

    Stores A dropout(x) for the backward pass, and x unless it is the output of `add_norm`, which is recomputed.
    """

    @staticmethod
    def forward(ctx, x, frozen, lora_a, lora_b, scale, site):
        source, x = getattr(x, "source", None), x.contiguous()
        lora_a, lora_b = lora_a.to(x.dtype), (scale * lora_b).to(x.dtype)
        low = F.linear(dropped(x, site), lora_a).flatten(0, 1)
        out = frozen.forward(x)
        out.view(-1, out.shape[-1]).addmm_(low, lora_b.t())
        ctx.save_for_backward(lora_a, lora_b, low, *((x,) if source is None else source))
        ctx.frozen, ctx.scale, ctx.site = frozen, scale, site
        return out

    @staticmethod
    def backward(ctx, grad):
        lora_a, lora_b, low, *source = ctx.saved_tensors
        site = ctx.site
        rows = grad.contiguous().flatten(0, 1)
        low_grad = rows @ lora_b
        kept = recomputed(source, site) if len(source) > 1 else dropped(source[0], site)
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
        return grad_x, None, grad_a, grad_b, None, None


frozen_linear, lora_linear = _FrozenLinear.apply, _LoraLinear.apply
