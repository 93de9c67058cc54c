"""Fold LoRA into the weights that it adapts, and take it out again exactly.

Source: Hu et al. 2021, section 4.1: W0 + BA is computed and stored, so inference costs the same as the base's, and
tasks are switched by exchanging BA.

A merged layer is a plain `nn.Linear` with its own weight. The pretrained weight is never written to. It stays in the
LoRA layer that the merged layer replaced, so unmerging restores that layer bit for bit, in any dtype and after any
number of swaps, and a swap only adds a product to the pretrained weight. The cost is a second copy of the adapted
weights and of no others: 24 of 768 x 768 for q and v of RoBERTa-base, 57 MB in float32.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import check_architecture, check_base, kept_layers
from lora.adapters.folder import read_adapter
from lora.adapters.head import fitted_head, own_head, put_head
from lora.adapters.torch_modes import lasting, thaw
from lora.errors import UserError
from lora.methods import Applied
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLayer, LoraSlices, adapt
from lora.models.architectures import in_order, module_of
from lora.models.modules import is_head, replace, train_only


@lasting
def merge(model: nn.Module) -> None:
    """Fold the model's LoRA into its weights, in place. The model then has the base's modules and parameter names.

    Merging a merged model does nothing.

    Raises: UserError: If the model has no LoRA (no other method can be folded into weights), or a merged weight is not
        finite. The model is then unchanged.
    """
    thaw(model)
    kept, layers = kept_layers(model), lora_layers(model)
    if not layers and not kept:
        raise UserError(f"nothing to merge: {state_of(model)}; merging is for LoRA alone")
    install(model, kept, {**kept, **layers})


@lasting
def unmerge(model: nn.Module) -> None:
    """Undo `merge` or `swap`: restore the LoRA layers with the pretrained weights, bit for bit.

    Unmerging an unmerged model does nothing.

    Raises: UserError: If the model has no LoRA.
    """
    kept = kept_layers(model)
    if not kept and not lora_layers(model):
        raise UserError(f"nothing to unmerge: {state_of(model)}; merging is for LoRA alone")
    for name, layer in kept.items():
        replace(model, name, layer)
    model.kept_layers = {}


@lasting
def swap(
    model: nn.Module,
    adapter: Adapter | str | Path,
    allow_other_base: bool = False,
    allow_changed_architecture: bool = False,
) -> None:
    """Merge a LoRA adapter and its head into the model's base, in place of any earlier adapter.

    The model may have no LoRA, LoRA, or another adapter merged; targets, ranks and numbers of labels may differ between
    the two. A later `unmerge` yields this adapter's LoRA layers.

    Args:
        adapter: Adapter in memory, or its folder.
        allow_other_base: Accept an adapter that was trained on other weights, and skip the check, which reads every
            weight of the base once, at a few GB per second.
        allow_changed_architecture: Accept an encoder with other settings if every tensor fits.
    Raises: UserError: If the adapter cannot be read, is not LoRA, does not fit, or has another base. The model is then
        unchanged.
    """
    if not isinstance(adapter, Adapter):
        adapter = read_adapter(adapter)
    thaw(model)
    kept = kept_layers(model)
    if adapter.base is not None and not allow_changed_architecture:
        check_architecture(model, adapter.base)
    layers = fitted_layers(model, kept, adapter)
    head = fitted_head(model, adapter.head)
    if adapter.base is not None and not allow_other_base:
        check_base(model, adapter.base, adapter.weights)
    install(model, kept, layers)
    put_head(model, head)
    if getattr(model, "applied", None) is None:
        train_only(model, ())  # as lora.apply does: pretrained weights never train with LoRA
        for layer in layers.values():
            layer.weight.requires_grad_(False)
    trained = [f"{name}.{part}" for name in adapter.pairs() for part in ("lora_a", "lora_b")]
    model.applied = Applied(adapter.method, (*trained, *head))


@lasting
def remove(model: nn.Module) -> None:
    """Take LoRA off: restore the pretrained layers, and the head that the model had before any adapter's.

    Raises: UserError: If the model has another method, which cannot be separated from its base.
    """
    applied = getattr(model, "applied", None)
    if applied is not None and not isinstance(applied.method, LoraConfig):
        raise UserError(f"only LoRA can be taken off a model, and {state_of(model)}")
    thaw(model)
    install(model, kept_layers(model), {})
    put_head(model, own_head(model))
    model.applied, model.kept_head = None, {}


def state_of(model: nn.Module) -> str:
    """Which method the model has, for a message."""
    applied = getattr(model, "applied", None)
    return f"this {type(model).__name__} has " + ("no method" if applied is None else f"method {applied.method.name}")


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def fitted_layers(model: nn.Module, kept: Mapping[str, LoraLayer], adapter: Adapter) -> dict[str, LoraLayer]:
    """New LoRA layers with the adapter's A and B and the model's pretrained weights. The model does not change.

    Args:
        kept: `kept_layers` of the model.
    Raises: UserError: If the adapter is not LoRA, or a module is missing, in the head, or of another shape.
    """
    if not isinstance(adapter.method, LoraConfig):
        raise UserError(f"adapters of method {adapter.method.name} cannot be merged: merging is for LoRA alone")
    applied = getattr(model, "applied", None)
    if applied is not None and not isinstance(applied.method, LoraConfig):
        raise UserError(f"a LoRA adapter needs a model without another method, and {state_of(model)}")
    layers: dict[str, LoraLayer] = {}
    pairs = adapter.pairs()
    for name in in_order(pairs):
        (a, b), module = pairs[name], module_of(name)
        linear = kept[module] if module in kept else find_linear(model, module)
        part = adapt(layers, name, linear, len(a), adapter.scale(name), adapter.method.dropout)
        if a.shape[1] != linear.in_features or len(b) != len(part.lora_b):
            raise UserError(
                f"the adapter's factors of {name} are for {b.shape[0]} x {a.shape[1]} weights, and the model's is "
                f"{len(part.lora_b)} x {linear.in_features}"
            )
        with torch.no_grad():
            part.lora_a.copy_(a)
            part.lora_b.copy_(b)
    return layers


def find_linear(model: nn.Module, name: str) -> nn.Linear | LoraLayer:
    """A linear layer of the encoder's body, with or without LoRA. Raises: UserError: If none has that name."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | LoraLayer) or is_head(model, name):
        found = "absent" if module is None else f"a {type(module).__name__} of {type(model).__name__}"
        raise UserError(
            f"the adapter has LoRA on {name}, which is not a linear layer of the encoder's body but {found}"
        )
    return module


def install(model: nn.Module, kept: Mapping[str, LoraLayer], layers: Mapping[str, LoraLayer]) -> None:
    """Merge exactly these layers. Modules are replaced only after all weights are computed; a failure restores all.

    Args:
        kept: `kept_layers` of the model.
    Raises: UserError: If a merged weight is not finite.
    """
    weights, written, scratch, checked = {}, [], {}, not surely_finite(layers)
    try:
        for name, layer in layers.items():
            if name in kept:  # the currently merged weight can be overwritten: it can be recomputed
                weights[name] = model.get_submodule(name).weight
                written.append(name)
            else:
                weights[name] = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            fold(layer, weights[name], name, scratch, checked)
    except BaseException:
        for name in written:
            fold(kept[name], weights[name], name, scratch, checked=False)
        raise
    for name, layer in {**kept, **lora_layers(model)}.items():
        if name not in layers:
            replace(model, name, plain(layer, layer.weight))
    for name, layer in layers.items():
        if name not in kept:
            replace(model, name, plain(layer, weights[name]))
    model.kept_layers = dict(layers)


@torch.no_grad()
def surely_finite(layers: Mapping[str, LoraLayer]) -> bool:
    """Whether the norm of the factors alone rules out an overflow in every merged weight.

    No entry of B A exceeds the product of their norms, which in turn is at most the squared norm of all factors.
    """
    parts = [part for name, layer in layers.items() for part in layer.parts(name).values()]
    if not parts:
        return True
    factors = [factor.flatten() for part in parts for factor in (part.lora_a, part.lora_b)]
    largest = torch.linalg.vector_norm(torch.cat(factors)).item() ** 2
    smallest_range = min(torch.finfo(layer.weight.dtype).max for layer in layers.values())
    return largest * max(part.scale for part in parts) < smallest_range / 4


@torch.no_grad()
def fold(
    layer: LoraLayer, out: Float[Tensor, "d_out d_in"], name: str, scratch: dict[torch.Size, Tensor], checked: bool
) -> None:
    """out = W + scale * B A, computed in float32 (float64 if W is) and rounded once to the dtype of W.

    Rows of a fused layer that have no LoRA are copied.

    Args:
        scratch: Shape -> float32 buffer for the sum, reused across layers: allocating memory costs more than the sum.
        checked: Check that every value of the sum is finite.
    Raises: UserError: If one is not; `out` is then invalid.
    """
    if isinstance(layer, LoraSlices):
        out.copy_(layer.weight)
    for part in layer.parts(name).values():
        weight, a, b = layer.weight[part.rows], part.lora_a, part.lora_b
        if weight.dtype in (torch.float32, torch.float64):
            torch.addmm(weight, b, a, alpha=part.scale, out=out[part.rows])
        else:
            if weight.shape not in scratch:
                scratch[weight.shape] = torch.empty_like(weight, dtype=torch.float32)
            exact = scratch[weight.shape].copy_(weight).addmm_(b.float(), a.float(), alpha=part.scale)
            out[part.rows].copy_(exact)
    if checked and not math.isfinite(out.abs().sum(dtype=torch.float64)):
        raise UserError(f"the merged weight of {name} has values that are not finite in {out.dtype}")


def plain(layer: LoraLayer, weight: nn.Parameter) -> nn.Linear:
    """A linear layer with this weight and the LoRA layer's bias, shared rather than copied."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight, linear.bias = weight, layer.bias
    return linear
