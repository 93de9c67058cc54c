"""Find, replace, freeze and count the modules of an encoder."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from lora.errors import UserError

# Regular expressions over full module names: BERT, RoBERTa and ELECTRA | DeBERTa-v2/v3 | DistilBERT.
TARGETS = {
    "q": r"attention\.(self\.query|self\.query_proj|q_lin)$",
    "k": r"attention\.(self\.key|self\.key_proj|k_lin)$",
    "v": r"attention\.(self\.value|self\.value_proj|v_lin)$",
    "o": r"attention\.(output\.dense|out_lin)$",
    "i": r"layer\.\d+\.(intermediate\.dense|ffn\.lin1)$",
    "f": r"layer\.\d+\.(output\.dense|ffn\.lin2)$",
}
LAYER = re.compile(r"(?:encoder|transformer)\.layer\.(\d+)\.")
ATTENTION_END = r"layer\.\d+\.attention\.(output\.dropout|out_lin)$"
FFN_END = r"layer\.\d+\.(output\.dropout|ffn\.dropout)$"
FFN_NORM = r"layer\.\d+\.(output\.LayerNorm|output_layer_norm)$"


def is_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter or module belongs to the head: is outside the body, or in BERT's pooler (`load_encoder`)."""
    body = f"{model.base_model_prefix}."
    return not name.startswith(body) or name.startswith(f"{body}pooler.")


def find(model: nn.Module, pattern: str) -> list[str]:
    """Names of the body's modules that match, in the order of the layers."""
    expression = re.compile(pattern)
    return [name for name, _ in model.named_modules() if expression.search(name) and not is_head(model, name)]


def find_target(model: nn.Module, target: str) -> list[str]:
    """Names of a target's linear layers: those of `q, k, v, o, i, f` in every encoder layer, or one full module name.

    Raises: UserError: If nothing matches; the message lists the linear layers that exist, with `*` for layer numbers.
    """
    if target in TARGETS:
        names = find(model, TARGETS[target])
    else:
        names = [name for name, _ in model.named_modules() if name == target]
    names = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    if not names:
        raise UserError(
            f"target {target!r} is not in {type(model).__name__}: a target is one of {', '.join(TARGETS)} if the "
            f"attention has separate projections, or the full name of a linear layer; the linear layers are "
            f"{', '.join(linear_layers(model))}"
        )
    return names


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers, with `*` for layer numbers, so that all encoder layers share one name."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))


def layer_of(name: str) -> int:
    """The number of the encoder layer that holds a module, counted from 0."""
    match = LAYER.search(name)
    if match is None:
        raise UserError(f"{name} is not in an encoder layer")
    return int(match.group(1))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of `name`, in the same mode: a new module would otherwise use dropout in eval mode."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.train(model.get_submodule(name).training))


def train_only(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Freeze everything but `names` and the head. Returns: The names of what trains, in the model's order."""
    wanted = set(names)
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted or is_head(model, name))
        if parameter.requires_grad:
            trainable.append(name)
    return tuple(trainable)


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of values: trainable in the body (the paper's count), trainable in the head, and in total."""
    counts = {"trainable_method": 0, "trainable_head": 0, "total": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable_head" if is_head(model, name) else "trainable_method"] += parameter.numel()
    return counts


def checksum(tensors: Iterable[tuple[str, torch.Tensor]], algorithm: Callable[[], Any] = hashlib.sha256) -> str:
    """A hash over names, dtypes, shapes and bytes, SHA-256 by default. It is equal only if every bit is equal."""
    digest = algorithm()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
