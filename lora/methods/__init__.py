"""The compared methods: the registry `METHODS`, and `apply`, which applies one to a model."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from lora.errors import UserError
from lora.methods.configs import (
    AdapterDropConfig,
    BitFitConfig,
    FullConfig,
    HoulsbyConfig,
    LoraConfig,
    MethodConfig,
    PeftConfig,
    PfeifferConfig,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Applied:
    """The method applied to a model, stored as `model.applied`.

    Args:
        trained: Names of the trainable parameters, including the head's.
    """

    method: MethodConfig
    trained: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A method's config class, and the name of the module that applies it.

    The module is imported only by `apply`, so that planning a sweep or building a table never loads torch.
    """

    config: type
    module: str


METHODS: dict[str, Method] = {
    "full": Method(FullConfig, "lora.methods.freezing"),
    "bitfit": Method(BitFitConfig, "lora.methods.freezing"),
    "houlsby": Method(HoulsbyConfig, "lora.methods.bottleneck"),
    "pfeiffer": Method(PfeifferConfig, "lora.methods.bottleneck"),
    "adapterdrop": Method(AdapterDropConfig, "lora.methods.bottleneck"),
    "lora": Method(LoraConfig, "lora.methods.lowrank"),
    "peft": Method(PeftConfig, "lora.methods.bridge"),
}


def stored_bytes(model: "nn.Module") -> int:
    """Bytes of the tensors that an adapter of the model holds: those that train, and what of its method is frozen, such
    as VeRA's matrices, LoRA-FA's A, or PiSSA's start, which makes a LoRA of twice the rank."""
    every = (*model.named_parameters(), *model.named_buffers())
    names = {
        name for name, tensor in every if tensor.requires_grad or name.endswith((".lora_a", ".start_a", ".start_b"))
    }
    added: list[Tensor] = []
    if model.applied.method.name == "peft":
        bridge = import_module("lora.methods.bridge")
        names = {name for name in names if not bridge.is_added(name)}
        added = [*bridge.method_tensors(model).values()]
    tensors = [tensor for name, tensor in every if name in names] + added
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def apply(model: "nn.Module", config: MethodConfig, seed: int = 0) -> tuple[str, ...]:
    """Apply a method to a transformers sequence-classification model, in place.

    Afterwards, exactly the method's parameters and the head are trainable, and in float32 or wider.

    Args:
        config: One of LoraConfig, FullConfig, BitFitConfig, HoulsbyConfig, PfeifferConfig, AdapterDropConfig,
            PeftConfig.
        seed: Seed of the method's init. Each new module draws from a generator named after it.
    Returns: The names of the trainable parameters, including the head's.
    Raises: UserError: If the model is compiled, wrapped, without a head, or quantized; the config does not fit it, such
        as one that names a module the model lacks; or it has modules of a method already, which the second one's saved
        adapter would lack.
    """
    modules = import_module("lora.models.modules")
    modules.check_classifier(model)
    earlier = getattr(model, "applied", None)
    if earlier is not None and not isinstance(earlier.method, FullConfig | BitFitConfig):
        raise UserError(
            f"this {type(model).__name__} has method {earlier.method.name} already: apply another to a model loaded "
            f"anew, or exchange one LoRA adapter for another with lora.swap"
        )
    module = import_module(METHODS[config.name].module)
    names = module.apply(model, config, seed)
    modules.train_in_float32(model)
    model.applied = Applied(module.resolved(model, config) if config.name == "peft" else config, names)
    return names
