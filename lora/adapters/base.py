"""The pretrained weights under an adapter: their description, and the check that a model has them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import Tensor, nn

from lora.errors import UserError
from lora.methods.bridge import REBUILT, is_added
from lora.methods.configs import PeftConfig
from lora.methods.lowrank import LOW_RANK, LoraLayer, factor_dtype
from lora.models.modules import checksum, is_head

if TYPE_CHECKING:
    from lora.adapters.adapter import Adapter

NARROWER = {  # dtypes that weights can be rounded to and still be recognised in
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class Base:
    """A pretrained model.

    Args:
        name: Name in the configuration, or the one passed to transformers.
        revision: The hub's commit; None for other sources.
        hashes: Dtype -> SHA-256 of the body weights that the method does not train, in that dtype. For float32 weights
            the half-precision hashes are stored too, so that an adapter recognises its base when served in bfloat16.
    """

    name: str | None
    revision: str | None
    hashes: dict[str, str]


def kept_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The LoRA layers that merged layers have replaced, by name, moved to the model's current device and dtype."""
    kept = getattr(model, "kept_layers", {})
    for name, layer in kept.items():
        live = model.get_submodule(name).weight
        for part, parameter in (*layer.named_parameters(), *layer.named_buffers()):
            dtype = live.dtype if part in ("weight", "bias") else factor_dtype(live.dtype)
            parameter.data = parameter.data.to(live.device, dtype)
    return kept


def carried_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by name, as if nothing were merged."""
    parameters = dict(model.named_parameters())
    for name, layer in kept_layers(model).items():
        parameters |= {f"{name}.{part}": parameter for part, parameter in layer.named_parameters()}
    return parameters


def base_tensors(model: nn.Module, trained: Iterable[str] = ()) -> dict[str, Tensor]:
    """The body weights that neither the model's method nor `trained` names, in a fixed order."""
    applied = getattr(model, "applied", None)
    touched = set(trained) | set(() if applied is None else applied.trained)
    return {
        name.replace(".base_layer.", "."): parameter  # PEFT's name for what it wraps
        for name, parameter in carried_parameters(model).items()
        if not (name in touched or LOW_RANK.fullmatch(name) or is_added(name) or is_head(model, name))
    }


def describe_base(model: nn.Module, name: str | None = None, revision: str | None = None) -> Base:
    """Describe the model that an adapter is trained on. Hashing takes about a second per 400 MB.

    Args:
        name: None uses the name passed to transformers, or the last part of a folder's path, since machines differ.
    """
    tensors = base_tensors(model)
    dtype = common_dtype(tensors)
    hashes = {short(d): hash_in(tensors, d) for d in (dtype, *NARROWER.get(dtype, ()))}
    if name is None:
        asked = model.name_or_path
        name = (Path(asked).name if Path(asked).is_dir() else asked) or None
    return Base(name, revision, hashes)


def check_base(model: nn.Module, adapter: "Adapter") -> None:
    """Check that a model has the weights that an adapter was trained on, bit for bit, if it states them.

    A successful check is not repeated while the weights stay the same. To know that, every call reads them once: a
    change through `.data`, or by a library that shares their memory, changes neither a version nor an address.

    Raises: UserError: If they differ, or the adapter has no hash for their dtype, or takes no other than its own.
    """
    base, method = adapter.base, adapter.method
    if base is None:
        return
    tensors = base_tensors(model, adapter.weights)
    dtype, stated = common_dtype(tensors), [*base.hashes]  # that of training first
    if isinstance(method, PeftConfig) and method.type in REBUILT and short(dtype) not in stated[:1]:
        raise UserError(
            f"PEFT computes a part of {method.type} from the pretrained weights again, which rounding changes: the "
            f"adapter was trained in {', '.join(stated[:1])}, and the model is in {short(dtype)}"
        )
    state = checksum(tensors.items(), xxhash.xxh3_128)  # SHA-256 takes several times as long
    if getattr(model, "checked_base", None) == (base.hashes, state):
        return
    common = next((d for d in (dtype, *NARROWER.get(dtype, ())) if short(d) in base.hashes), None)
    if common is None or hash_in(tensors, common) != base.hashes[short(common)]:
        raise UserError(
            f"the model's weights are not those that the adapter was trained on ({base.name}, known in "
            f"{', '.join(stated)}; the model is in {short(dtype)}); load_adapter and swap take it with "
            f"allow_other_base=True, if every tensor fits"
        )
    model.checked_base = (base.hashes, state)


def common_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype of the tensors; float32 if they differ or there are none (full fine-tuning trains every weight)."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def hash_in(tensors: dict[str, Tensor], dtype: torch.dtype) -> str:
    return checksum((name, tensor.detach().to(dtype)) for name, tensor in tensors.items())


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
