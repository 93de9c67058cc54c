"""Read files of LoRA's released code: pickled state dicts, of which only tensors are read and nothing is executed."""

from collections import Counter
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from lora.adapters.adapter import Adapter
from lora.errors import UserError, first_line, listed
from lora.files import at_home
from lora.methods.configs import LoraConfig
from lora.models.modules import lasting

PICKLE_ERRORS = (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, LookupError, AttributeError)


def from_loralib(file: str | Path, alpha: float) -> Adapter:
    """Read a checkpoint made with loralib's `lora_state_dict`, including the head if the file holds one.

    Source: github.com/microsoft/LoRA, `loralib/utils.py`; names like
    `roberta.encoder.layer.0.attention.self.query.lora_A` and `classifier.dense.weight`.

    Args:
        alpha: Alpha that the adapter was trained with; the file does not state it. 16 for the released RoBERTa-base
            adapters.
    Raises: UserError: If the file is not a state dict with LoRA's pairs. Others of its tensors are the head's.
    """
    weights, head = {}, {}
    for name, tensor in read_state_dict(at_home(file)).items():
        module, _, part = name.rpartition(".")
        if part in ("lora_A", "lora_B"):
            weights[f"{module}.{part.lower()}"] = tensor
        else:
            head[name] = tensor
    if not weights:
        raise UserError(f"{file} has no tensor whose name ends in lora_A or lora_B, but {listed(head) or 'nothing'}")
    return Adapter(config_of(weights, alpha), weights, head)


@lasting
def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read name -> tensor. Raises: UserError: If that is impossible without executing anything in the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PICKLE_ERRORS as error:
        raise UserError(
            f"{path} cannot be read as a file of tensors, and nothing else in a pickle is executed: {first_line(error)}"
        ) from error
    items = content.items() if isinstance(content, dict) else ()
    if not items or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in items):
        raise UserError(f"{path} is not a state dict (name -> tensor) but a {type(content).__name__} of other things")
    return {name: tensor.detach().contiguous() for name, tensor in items}


def config_of(weights: dict[str, Tensor], alpha: float) -> LoraConfig:
    """A config with every module's full name and rank. Raises: UserError: If a lora_A is not a matrix."""
    factors = {name: a for name, a in weights.items() if name.endswith(".lora_a")}
    ranks = {name.removesuffix(".lora_a"): a.shape[0] if a.dim() == 2 else 0 for name, a in factors.items()}
    if not ranks or min(ranks.values()) < 1:
        raise UserError(f"every lora_A must be a matrix with a rank above 0; the tensors are {listed(weights)}")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: own for name, own in ranks.items() if own != rank}
    return LoraConfig(targets=tuple(ranks), rank=rank, ranks=others, alpha=float(alpha))
