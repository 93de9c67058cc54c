"""Fit an adapter to a model: every check, before anything in the model changes."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora.adapters.adapter import Adapter, in_scores
from lora.adapters.base import check_base, kept_layers
from lora.adapters.folder import read_adapter
from lora.adapters.head import fitted_head
from lora.errors import UserError, listed
from lora.methods import apply
from lora.methods.bridge import in_full, method_tensors
from lora.methods.configs import LoraConfig, PeftConfig
from lora.methods.lowrank import LoraLayer, adapt
from lora.models.architectures import in_order, module_of
from lora.models.modules import check_classifier, is_head, trainable


@dataclass(frozen=True)
class Fitted:
    """An adapter that fits a model.

    Args:
        layers: Module -> LoRA layer with the adapter's A and B and the model's pretrained weight; {} for other methods.
        head: The whole head by parameter name.
    """

    adapter: Adapter
    layers: dict[str, LoraLayer]
    head: dict[str, Tensor]


def fit(
    model: nn.Module, given: Adapter | str | Path, allow_other_base: bool = False, lora_alone: bool = False
) -> Fitted:
    """Read an adapter and fit it to a model, which does not change.

    Args:
        allow_other_base: Skip the check of the base.
        lora_alone: Refuse other methods, which can neither be swapped nor mixed in a batch.
    Raises: UserError: If the adapter cannot be read, the model is no plain classifier or has another method, the base
        is another one, or a tensor does not fit.
    """
    check_classifier(model)
    adapter = in_scores(given if isinstance(given, Adapter) else read_adapter(given), model.dtype)
    is_lora = isinstance(adapter.method, LoraConfig)
    applied = getattr(model, "applied", None)
    if lora_alone and not is_lora:
        raise UserError(f"swap and AdapterSet are for LoRA alone, and the adapter is of method {adapter.method.name}")
    lora_for_lora = applied is not None and is_lora and isinstance(applied.method, LoraConfig)
    if applied is not None and not lora_for_lora and applied.method != in_full(model, adapter.method):
        raise UserError(f"the model has {applied.method}, and the adapter is of {adapter.method}: load the model anew")
    if not allow_other_base:
        check_base(model, adapter)
    if not is_lora:
        check_shapes(model, adapter)
    return Fitted(adapter, fitted_layers(model, adapter) if is_lora else {}, fitted_head(model, adapter.head))


def fitted_layers(model: nn.Module, adapter: Adapter) -> dict[str, LoraLayer]:
    """New LoRA layers with the adapter's A and B and the model's pretrained weights.

    Raises: UserError: If a module is missing, in the head, or of another shape.
    """
    layers: dict[str, LoraLayer] = {}
    kept = kept_layers(model)
    modules = dict(model.named_modules())
    pairs = adapter.pairs()
    for name in in_order(pairs):
        a, b = pairs[name]
        module = module_of(name)
        linear = kept.get(module, modules.get(module))
        if not isinstance(linear, nn.Linear | LoraLayer) or is_head(model, module):
            raise UserError(f"the adapter has LoRA on {module}, which is not a linear layer of the encoder's body")
        part = adapt(layers, name, linear, len(a), adapter.method)
        if a.shape[1] != linear.in_features or len(b) != len(part.lora_b):
            raise UserError(
                f"the adapter's factors of {name} are for {b.shape[0]} x {a.shape[1]} weights, and the model's is "
                f"{len(part.lora_b)} x {linear.in_features}"
            )
        with torch.no_grad():
            part.lora_a.copy_(a)
            part.lora_b.copy_(b)
            if part.lora_m is not None:
                part.lora_m.copy_(adapter.weights[f"{name}.lora_m"])
    return layers


def check_shapes(model: nn.Module, adapter: Adapter) -> None:
    """Raises: UserError: If the adapter's tensors are not exactly those that its method trains in the body."""
    like = model
    if getattr(model, "applied", None) is None:
        apply(like := copy.deepcopy(model), adapter.method)
    trained = {n: p for n, p in trainable(like) if n in adapter.weights or not is_head(like, n)}
    tensors = method_tensors(like) if isinstance(adapter.method, PeftConfig) else trained
    expected, shapes = ({n: tuple(t.shape) for n, t in side.items()} for side in (tensors, adapter.weights))
    if different := sorted(name for name, _ in set(expected.items()) ^ set(shapes.items())):
        raise UserError(
            f"the adapter's tensors are not those that {adapter.method} trains on this model; missing, unknown or of "
            f"another shape: {listed(dict.fromkeys(different))}"
        )
