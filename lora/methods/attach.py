"""The public way to put a method on a model of one's own."""

from torch import nn

from lora.methods import METHODS
from lora.methods.configs import MethodConfig


def apply(model: nn.Module, config: MethodConfig, seed: int = 0) -> tuple[str, ...]:
    """Put a method on a transformers sequence-classification model, in place.

    Args:
        config: One of LoraConfig, FullConfig, BitFitConfig, HoulsbyConfig, PfeifferConfig, AdapterDropConfig.
        seed: Of the new modules' init.
    Returns: The names of the trainable parameters, the head's among them; everything else is frozen.
    Raises: UserError: If the model lacks what the config names.
    """
    return METHODS[config.name].apply(model, config, seed)
