"""Methods that add nothing: full fine-tuning and BitFit choose which of the model's own parameters train."""

from torch import nn

from lora.methods.configs import BitFitConfig, FullConfig
from lora.models.modules import train_only


def apply(model: nn.Module, config: FullConfig | BitFitConfig, seed: int) -> tuple[str, ...]:
    """Source: released `run_glue.py`: BitFit trains every parameter whose name contains `bias`, and the head."""
    del seed  # nothing is initialised
    names = (name for name, _ in model.named_parameters())
    return train_only(model, names if isinstance(config, FullConfig) else (name for name in names if "bias" in name))
