"""Full fine-tuning and BitFit, which add no parameters but select which of the model's parameters train."""

from torch import nn

from lora.errors import UserError
from lora.methods.configs import BitFitConfig, FullConfig
from lora.models.modules import is_head, train_only


def apply(model: nn.Module, config: FullConfig | BitFitConfig, seed: int) -> tuple[str, ...]:
    """Train all parameters or, with BitFit, the head and every parameter whose name contains `bias`.

    Source: released `run_glue.py`. In MPNet, this includes `relative_attention_bias`, which is added to the scores.

    Raises: UserError: If the body has no bias.
    """
    del seed  # nothing to initialise
    names = [name for name, _ in model.named_parameters()]
    if isinstance(config, FullConfig):
        return train_only(model, names)
    biases = [name for name in names if "bias" in name]
    if all(is_head(model, name) for name in biases):
        raise UserError(f"bitfit has nothing to train in this {type(model).__name__}: no layer of its body has a bias")
    return train_only(model, biases)
