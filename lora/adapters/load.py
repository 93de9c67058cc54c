"""Put an adapter of any method on a model, after every check."""

import copy
from pathlib import Path

import torch
from torch import nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import base_tensors, check_architecture, check_base, common_dtype, kept_layers
from lora.adapters.folder import read_adapter
from lora.adapters.head import check_range, fitted_head, put_head
from lora.adapters.torch_modes import lasting, thaw
from lora.errors import UserError, listed
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.models.modules import is_head, trainable


@lasting
def load_adapter(
    model: nn.Module,
    adapter: Adapter | str | Path,
    allow_other_base: bool = False,
    allow_other_alpha: bool = False,
    allow_changed_architecture: bool = False,
) -> Adapter:
    """Put an adapter and its head on a model, unmerged: it can be trained further or merged.

    Args:
        model: Plain model, or one with the same method on the same modules; then only values change.
        adapter: Adapter in memory, or its folder.
        allow_other_base: Accept a model with other weights than the adapter was trained on.
        allow_other_alpha: If the model has LoRA with another alpha, keep the model's.
        allow_changed_architecture: Accept an encoder with other settings if every tensor fits.
    Returns: The adapter.
    Raises: UserError: If the folder is broken or the adapter does not fit the model. The model is then unchanged.
    """
    if not isinstance(adapter, Adapter):
        adapter = read_adapter(adapter)
    thaw(model)
    if kept_layers(model):
        raise UserError("an adapter is merged into this model: unmerge it first, or use swap, which merges the new one")
    if adapter.base is not None and not allow_changed_architecture:
        check_architecture(model, adapter.base)
    applied = getattr(model, "applied", None)
    if applied is not None:
        check_method(model, adapter, allow_other_alpha)
    check_shapes(model, adapter)
    head = fitted_head(model, adapter.head)
    dtype = common_dtype(base_tensors(model, adapter.weights) or dict(model.named_parameters()))
    for name, tensor in adapter.weights.items():
        check_range(name, tensor, tensor.to(dtype))
    if adapter.base is not None and not allow_other_base:
        check_base(model, adapter.base, adapter.weights)
    if applied is None:
        apply(model, adapter.method)
    for name, tensor in adapter.weights.items():
        model.get_parameter(name).copy_(tensor)
    put_head(model, head)
    return adapter


def check_method(model: nn.Module, adapter: Adapter, allow_other_alpha: bool) -> None:
    """Raises: UserError: If the model has another method, or LoRA with another scale."""
    mine, its = model.applied.method, adapter.method
    if type(mine) is not type(its):
        raise UserError(
            f"the model has method {mine.name}, and the adapter is of method {its.name}: load it on a plain model"
        )
    if not isinstance(its, LoraConfig):
        if mine != its:
            raise UserError(f"the model has {mine}, and the adapter was trained as {its}: load it on a plain model")
        return
    for name in adapter.pairs():
        scale = getattr(dict(model.named_modules()).get(name), "scale", adapter.scale(name))
        if scale != adapter.scale(name) and not allow_other_alpha:
            raise UserError(
                f"the model has LoRA with alpha {mine.alpha:g} (a factor of {scale:g} on {name}), and the adapter was "
                f"trained with alpha {its.alpha:g} (a factor of {adapter.scale(name):g}); allow_other_alpha=True keeps "
                f"the model's"
            )


def check_shapes(model: nn.Module, adapter: Adapter) -> None:
    """Check that the adapter has exactly the tensors that its method trains in the body.

    Raises: UserError: If one is missing, unknown or of another shape.
    """
    if getattr(model, "applied", None) is None:
        with torch.device("meta"):  # names and shapes only, at no cost in memory or time
            like = type(model)(copy.deepcopy(model.config))
        apply(like, adapter.method)
    else:
        like = model
    expected = {n: tuple(p.shape) for n, p in trainable(like) if n in adapter.weights or not is_head(like, n)}
    found = {name: tuple(tensor.shape) for name, tensor in adapter.weights.items()}
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise UserError(
            f"the adapter does not have the tensors that {adapter.method} trains on this model: missing: "
            f"{listed(missing) or 'none'}; not expected: {listed(extra) or 'none'}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"the adapter's {name} is {found[name]}, and the model's {shape}: another architecture")
