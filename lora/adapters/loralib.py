"""The files of LoRA's released code: a pickled state dict, read as tensors and never executed."""

from collections import Counter
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from lora.adapters.adapter import Adapter
from lora.adapters.folder import at_home
from lora.adapters.torch_modes import lasting
from lora.errors import UserError, first_line, listed
from lora.methods.configs import LoraConfig

FACTORS = {"lora_A": "lora_a", "lora_B": "lora_b"}


def from_loralib(file: str | Path, alpha: float | None = None) -> Adapter:
    """Read a checkpoint that loralib's `lora_state_dict` made, and the head beside it.

    Source: github.com/microsoft/LoRA, `loralib/utils.py`; names like
    `roberta.encoder.layer.0.attention.self.query.lora_A` and `classifier.dense.weight`.

    Args:
        alpha: What the adapter was trained with, for the file does not say. 16 for the released RoBERTa-base ones.
    Raises: UserError: Without alpha; if the file holds anything but tensors, or tensors other than LoRA's and a head's.
    """
    if alpha is None:
        raise UserError(
            f"{file} does not say its alpha, and another than it was trained with gives another model: state it, as in "
            f"from_loralib(file, alpha=16), which is that of the released RoBERTa-base adapters"
        )
    weights, rest = {}, {}
    for name, tensor in read_state_dict(at_home(file)).items():
        module, _, part = name.rpartition(".")
        if part in FACTORS:
            weights[f"{module}.{FACTORS[part]}"] = tensor
        else:
            rest[name] = tensor
    if not weights:
        raise UserError(f"{file} has no tensor whose name ends in lora_A or lora_B, but {listed(rest) or 'nothing'}")
    bodies = {name.partition(".")[0] for name in weights}
    strange = [n for n in rest if n.partition(".")[0] in bodies and n.split(".")[1:2] != ["pooler"]]
    if strange:
        raise UserError(
            f"{file} has tensors of the encoder itself: {listed(strange)}; an adapter has LoRA's and a head's"
        )
    return Adapter(config_of(weights, alpha), weights, rest)


@lasting
def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Raises: UserError: If the file cannot be read as tensors by name, without running anything in it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path} cannot be read as a file of tensors, and nothing else in a pickle is executed: {first_line(error)}"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(f"{path} is not a state dict, tensors by name, but holds a {type(content).__name__} of others")
    return {name: tensor.detach().contiguous() for name, tensor in content.items()}


def config_of(weights: dict[str, Tensor], alpha: float) -> LoraConfig:
    """One alpha over whatever ranks the factors have; every module is named in full. Raises: UserError."""
    factors = {name.removesuffix(".lora_a"): a for name, a in weights.items() if name.endswith(".lora_a")}
    ranks = {name: a.shape[0] if a.dim() == 2 else 0 for name, a in factors.items()}
    if not ranks or min(ranks.values()) < 1:
        raise UserError(f"every lora_A must be a matrix of a rank above 0; here are {listed(weights)}")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: own for name, own in ranks.items() if own != rank}
    return LoraConfig(targets=tuple(ranks), rank=rank, ranks=others, alpha=float(alpha))
