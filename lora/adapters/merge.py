"""Put an adapter on a model, fold LoRA into the weights that it adapts, and take it out again exactly.

Source: Hu et al. 2021, section 4.1: W0 + BA is computed and stored, so inference costs the same as the base's, and
tasks are switched by exchanging BA.

A merged layer is a plain `nn.Linear` with its own weight. The pretrained weight is never written to. It stays in the
LoRA layer that the merged layer replaced, so unmerging restores that layer bit for bit, in any dtype and after any
number of swaps, and a swap only adds a product to the pretrained weight. The cost is a second copy of the adapted
weights and of no others: 24 of 768 x 768 for q and v of RoBERTa-base, 57 MB in float32.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import kept_layers
from lora.adapters.fit import Fitted, fit
from lora.adapters.head import check_finite, own_head, put_head
from lora.errors import UserError
from lora.methods import Applied, apply, bridge
from lora.methods.configs import LoraConfig, PeftConfig
from lora.methods.lowrank import LoraLayer, LoraSlices, factors, row_norms, trained_in
from lora.models.modules import check_classifier, lasting, replace, train_in_float32, train_only


@lasting
def load_adapter(model: nn.Module, adapter: Adapter | str | Path, allow_other_base: bool = False) -> Adapter:
    """Put an adapter and its head on a model, unmerged: it can be trained further or merged.

    Args:
        model: Plain model, or one with the same method, whose values are replaced. LoRA replaces any other LoRA.
        allow_other_base: Accept a model with other weights than the adapter was trained on.
    Raises: UserError: If the folder is broken or the adapter does not fit the model. The model is then unchanged.
    """
    if hasattr(model, "tuner"):
        bridge.refuse_merged(model)
    fitted = fit(model, adapter, allow_other_base)
    method, weights = fitted.adapter.method, fitted.adapter.weights
    if isinstance(method, LoraConfig):
        put_lora(model, fitted, merged=False)
        return fitted.adapter
    if getattr(model, "applied", None) is None:
        apply(model, method)
    if isinstance(method, PeftConfig):
        bridge.set_state(model, weights)
    else:
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    put_head(model, fitted.head)
    return fitted.adapter


@lasting
def swap(model: nn.Module, adapter: Adapter | str | Path, allow_other_base: bool = False) -> None:
    """Merge a LoRA adapter and its head into the model's base, in place of any earlier adapter.

    The model may have no LoRA, LoRA, or another adapter merged; targets, ranks and numbers of labels may differ between
    the two. A later `unmerge` yields this adapter's LoRA layers.

    Args:
        allow_other_base: Accept an adapter that was trained on other weights, and skip the check, which reads every
            weight of the base once, at a few GB per second.
    Raises: UserError: If the adapter cannot be read, is not LoRA, does not fit, or has another base. The model is then
        unchanged.
    """
    put_lora(model, fit(model, adapter, allow_other_base, lora_alone=True), merged=True)


@lasting
def merge(model: nn.Module) -> None:
    """Fold the model's LoRA into its weights, in place. The model then has the base's modules and parameter names.

    One of PEFT's methods is folded into copies of the weights, in PEFT's own layers. Merging again does nothing.

    Raises: UserError: If the model has no LoRA and no method of PEFT's that can be folded into weights, is compiled or
        wrapped, or a merged weight is not finite. The model is then unchanged.
    """
    set_merged(model, True)


@lasting
def unmerge(model: nn.Module) -> None:
    """Undo `merge` or `swap`, if anything is merged: restore the LoRA layers and pretrained weights, bit for bit.

    Raises: UserError: If the model has no LoRA and no method of PEFT's, or is compiled or wrapped.
    """
    set_merged(model, False)


@lasting
def remove(model: nn.Module) -> None:
    """Take LoRA off: restore the pretrained layers, and the head that the model had before any adapter's."""
    put_layers(model, {}, merged=False)
    put_head(model, own_head(model))
    model.applied, model.kept_head = None, {}


def set_merged(model: nn.Module, merged: bool) -> None:
    check_classifier(model)
    layers, kept = lora_layers(model), kept_layers(model)
    if hasattr(model, "tuner"):
        (bridge.merge if merged else bridge.unmerge)(model)
    elif not layers and not kept:
        applied = getattr(model, "applied", None)
        method = "no method" if applied is None else f"method {applied.method.name}"
        raise UserError(f"this {type(model).__name__} has {method}; merging is for LoRA and PEFT's methods")
    elif changed := layers if merged else kept:
        put_layers(model, changed, merged)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def put_lora(model: nn.Module, fitted: Fitted, merged: bool) -> None:
    """Put a LoRA adapter and its head on a model, in place of any earlier one."""
    put_layers(model, fitted.layers, merged)
    factors = trained_in(fitted.layers)
    if getattr(model, "applied", None) is None:
        train_only(model, factors)  # as lora.apply does: pretrained weights never train with LoRA
        for layer in fitted.layers.values():
            layer.weight.requires_grad_(False)
    if not merged:
        train_in_float32(model)
    put_head(model, fitted.head)
    model.applied = Applied(fitted.adapter.method, (*factors, *fitted.head))


def put_layers(model: nn.Module, layers: Mapping[str, LoraLayer], merged: bool) -> None:
    """Make these the model's LoRA layers. Modules are replaced only after all merged weights are computed.

    Raises: UserError: If a merged weight is not finite. The model is then unchanged.
    """
    new = {name: linear(layer, fold(layer, name)) for name, layer in layers.items()} if merged else layers
    for name, layer in {**lora_layers(model), **kept_layers(model)}.items():
        if name not in layers:
            replace(model, name, linear(layer, layer.weight))
    for name, module in new.items():
        replace(model, name, module)
    if not hasattr(model, "kept_layers"):
        model.register_load_state_dict_pre_hook(bridge.refuse_merged)
    model.kept_layers = dict(layers) if merged else {}


@torch.no_grad()
def fold(layer: LoraLayer, name: str) -> nn.Parameter:
    """W + scale * B A, computed in the factors' dtype, float32 or wider, and rounded once to the dtype of W.

    With DoRA, each row gets its trained norm. Rows of a fused layer that have no LoRA are copied.

    Raises: UserError: If a value is not finite.
    """
    weight = layer.weight.detach().clone() if isinstance(layer, LoraSlices) else torch.empty_like(layer.weight)
    for part in layer.parts(name).values():
        dtype = torch.promote_types(weight.dtype, torch.float32)
        a, b = factors(part)
        exact: Float[Tensor, "d_out d_in"] = torch.addmm(
            layer.weight[part.rows].to(dtype), b.to(dtype), a.to(dtype), alpha=part.scale
        )
        if part.lora_m is not None:
            exact *= (part.lora_m / row_norms(part, layer.weight)).to(dtype)[:, None]
        weight[part.rows] = exact
    check_finite(f"the merged weight of {name}", weight)
    return nn.Parameter(weight, requires_grad=False)


def linear(layer: LoraLayer, weight: nn.Parameter) -> nn.Linear:
    """A linear layer with this weight and the LoRA layer's bias, shared rather than copied."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight, made.bias = weight, layer.bias
    return made
