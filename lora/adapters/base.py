"""The pretrained weights beneath an adapter: which they are, and whether a model has them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn
from transformers import PretrainedConfig

from lora.errors import UserError
from lora.methods.lowrank import LoraLinear
from lora.models.modules import checksum, is_head

# What decides, beside the weights, what an encoder computes; each architecture has some of them.
ARCHITECTURE_KEYS = (
    "model_type vocab_size embedding_size hidden_size num_hidden_layers num_attention_heads attention_head_size "
    "intermediate_size hidden_dim hidden_act activation layer_norm_eps max_position_embeddings type_vocab_size "
    "pad_token_id sinusoidal_pos_embds relative_attention pos_att_type position_buckets max_relative_positions "
    "share_att_key norm_rel_ebd position_biased_input conv_kernel_size conv_act pooler_hidden_act"
).split()
NARROWER = {  # what a weight can be rounded to, so that it can be recognised there
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class Base:
    """A pretrained model.

    Args:
        name: As configured, or as transformers was asked for it.
        revision: The hub's commit; None elsewhere.
        architecture: The settings in `ARCHITECTURE_KEYS`, lists joined by `|`.
        hashes: Dtype -> SHA-256 of the body's weights that the method leaves alone, in that dtype. From float32 the
            half-precision ones are known too, so that an adapter recognises its base when it is served in bfloat16.
    """

    name: str | None
    revision: str | None
    architecture: dict[str, str | int | float | bool | None]
    hashes: dict[str, str]


def kept_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The LoRA layers whose places merged layers have taken, by name; moved to where the model is now."""
    kept = getattr(model, "kept_layers", {})
    modules = dict(model.named_modules()) if kept else {}  # one walk is faster than a search for each
    for name, layer in kept.items():
        live = modules.get(name)
        if type(live) is not nn.Linear:
            raise UserError(f"{name}, merged as a linear layer, is a {type(live).__name__} now: it was replaced since")
        if (layer.weight.device, layer.weight.dtype) != (live.weight.device, live.weight.dtype):
            layer.to(live.weight.device, live.weight.dtype)
    return kept


def carried_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by name as they are when nothing is merged."""
    parameters = dict(model.named_parameters())
    for name, layer in kept_layers(model).items():
        parameters |= {f"{name}.{part}": parameter for part, parameter in layer.named_parameters()}
    return parameters


def base_tensors(model: nn.Module, trained: Iterable[str] = ()) -> dict[str, Tensor]:
    """The body's weights that neither the method on the model nor `trained` touches, in the same order every time."""
    applied = getattr(model, "applied", None)
    touched = set(trained) | set(() if applied is None else applied.trained)
    return {
        name: parameter
        for name, parameter in carried_parameters(model).items()
        if name not in touched and not is_head(model, name)
    }


def architecture(settings: PretrainedConfig) -> dict[str, str | int | float | bool | None]:
    found = {key: getattr(settings, key) for key in ARCHITECTURE_KEYS if hasattr(settings, key)}
    return {key: "|".join(value) if isinstance(value, list | tuple) else value for key, value in found.items()}


def describe_base(model: nn.Module, name: str | None = None, revision: str | None = None) -> Base:
    """What an adapter's file says of the model it was trained on. Hashing takes about a second per 400 MB.

    Args:
        name: None takes what transformers was asked for; of a folder its own name alone, since machines differ.
    """
    tensors = base_tensors(model)
    dtype = common_dtype(tensors)
    hashes = {short(d): hash_in(tensors, d) for d in (dtype, *NARROWER.get(dtype, ()))}
    if name is None:
        asked = model.name_or_path
        name = (Path(asked).name if Path(asked).is_dir() else asked) or None
    return Base(name, revision, architecture(model.config), hashes)


def check_architecture(model: nn.Module, base: Base) -> None:
    """Raises: UserError: If the model's encoder is built otherwise, with every setting that differs."""
    mine = architecture(model.config)
    names = [key for key in ARCHITECTURE_KEYS if mine.get(key) != base.architecture.get(key)]
    if names:
        listed = ", ".join(f"{key} is {mine.get(key)!r}, was {base.architecture.get(key)!r}" for key in names)
        raise UserError(
            f"the adapter was trained on another architecture: {listed}; "
            f"allow_changed_architecture=True takes it as long as every tensor fits"
        )


def check_base(model: nn.Module, base: Base, trained: Iterable[str]) -> None:
    """Compare the model's pretrained weights, bit by bit, with those that an adapter was trained on.

    A comparison that held is not repeated while the weights are the same: every call reads them once, since a change
    through `.data`, or by a library that has their memory, leaves neither a version nor another address.

    Raises: UserError: If they differ, or are of a dtype that the adapter's base does not tell.
    """
    tensors = base_tensors(model, trained)
    state = checksum(tensors.items(), xxhash.xxh3_128)  # SHA-256 takes several times as long
    if getattr(model, "checked_base", None) == (base.hashes, state):
        return
    dtype = common_dtype(tensors)
    common = [d for d in (dtype, *NARROWER.get(dtype, ())) if short(d) in base.hashes]
    override = "allow_other_base=True takes it nevertheless"
    if not common:
        raise UserError(
            f"the adapter knows its base {base.name} in {', '.join(base.hashes)}, and the model is in {short(dtype)}, "
            f"from which that cannot be told; {override}"
        )
    if hash_in(tensors, common[0]) != base.hashes[short(common[0])]:
        raise UserError(
            f"the model's weights are not those that the adapter was trained on ({base.name}, "
            f"{short(common[0])} {base.hashes[short(common[0])][:12]}...); {override}"
        )
    model.checked_base = (base.hashes, state)


def common_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """Of the weights; float32 if they are mixed or there are none (full fine-tuning leaves nothing alone)."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def hash_in(tensors: dict[str, Tensor], dtype: torch.dtype) -> str:
    return checksum((name, tensor.detach().to(dtype)) for name, tensor in tensors.items())


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
