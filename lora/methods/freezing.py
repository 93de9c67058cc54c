"""Full fine-tuning and BitFit, which add no parameters but choose which of the model's own train."""

from torch import nn

from lora.methods.configs import BitFitConfig, FullConfig
from lora.models.modules import train_only


def apply(model: nn.Module, config: FullConfig | BitFitConfig, seed: int) -> tuple[str, ...]:
    """Make everything train, or the head and every parameter whose name contains `bias` (BitFit).

    Source: released `run_glue.py`.
    """
    del seed  # nothing is initialised
    names = (name for name, _ in model.named_parameters())
    return train_only(model, names if isinstance(config, FullConfig) else (name for name in names if "bias" in name))
