"""The methods under comparison: one registry, `METHODS`."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from lora.methods.configs import (
    AdapterDropConfig,
    BitFitConfig,
    FullConfig,
    HoulsbyConfig,
    LoraConfig,
    MethodConfig,
    PfeifferConfig,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Applied:
    """What a model carries as `model.applied`: the arguments of its method, and the names of what trains."""

    method: MethodConfig
    trained: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A method's arguments and the module that applies it.

    The module is named, not imported, so that planning a sweep or building a table never loads torch.
    """

    config: type
    module: str

    def apply(self, model: "nn.Module", config: MethodConfig, seed: int) -> tuple[str, ...]:
        """Change `model` in place so that exactly the method's parameters, and the head, train.

        Args:
            seed: Of the method's own init; each new module draws from a generator named after it.
        Returns: The names of the trainable parameters.
        Raises: UserError: If the model lacks what the config names.
        """
        names = import_module(self.module).apply(model, config, seed)
        model.applied = Applied(config, names)
        return names


METHODS: dict[str, Method] = {
    "full": Method(FullConfig, "lora.methods.freezing"),
    "bitfit": Method(BitFitConfig, "lora.methods.freezing"),
    "houlsby": Method(HoulsbyConfig, "lora.methods.bottleneck"),
    "pfeiffer": Method(PfeifferConfig, "lora.methods.bottleneck"),
    "adapterdrop": Method(AdapterDropConfig, "lora.methods.bottleneck"),
    "lora": Method(LoraConfig, "lora.methods.lowrank"),
}
