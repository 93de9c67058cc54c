"""Find, replace, freeze and count the modules of an encoder."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lora.errors import UserError
from lora.models.architectures import ARCHITECTURES, Architecture, module_of, named_by, numbered, slice_of

P = ParamSpec("P")
R = TypeVar("R")
HALF_DTYPES = (torch.bfloat16, torch.float16)
PLAIN_DTYPES = (torch.float64, torch.float32, *HALF_DTYPES)


def is_layer_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__ == "DebertaLayerNorm"


def check_classifier(model: nn.Module) -> None:
    """Check that a model is a transformers classifier itself: the names of its parameters tell the body from the head.

    Raises: UserError: If it is compiled, wrapped, without a head, or quantized.
    """
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"the model must be a transformers classifier, got a {kind}: take it out of its wrapper (._orig_mod of "
            f"torch.compile, .module of DistributedDataParallel), and compile or wrap it afterwards"
        )
    if model.base_model is model:
        raise UserError(f"this {kind} has no classification head: load it with AutoModelForSequenceClassification")
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        plain = all(p.dtype in PLAIN_DTYPES and not hasattr(p, "placements") for p in parameters)  # a DTensor's shards
        if "quant" in type(module).__module__ or not plain:
            raise UserError(f"{name} of this {kind} is quantized or sharded: load the model in a floating-point dtype")


def is_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter or module belongs to the head: outside the body, or in BERT's pooler (`load_encoder`)."""
    body = f"{model.base_model_prefix}."
    return not name.startswith(body) or f"{name}.".startswith(f"{body}pooler.")


def architecture_of(model: nn.Module) -> Architecture | None:
    """The model's entry in `ARCHITECTURES`, or None."""
    return ARCHITECTURES.get(model.config.model_type)


def encoder_layers(model: nn.Module, architecture: Architecture) -> list[str]:
    """Names of the encoder layers, from the first to the last."""
    layers = f"{model.base_model_prefix}.{architecture.layers}"
    return [f"{layers}.{number}" for number in range(len(model.get_submodule(layers)))]


def find_target(model: nn.Module, target: str) -> list[str]:
    """Names of the linear layers that a target matches (`named_by`), in the model's order. Slices of fused layers match
    only if no layer does. A glob matches nothing in the head, which trains as a whole.

    Raises: UserError: If nothing matches. The message lists the existing linear layers, with `*` for numbers.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    architecture = architecture_of(model)
    fused = {} if architecture is None else architecture.fused
    pairs = [(name, targets) for name in names for place, targets in fused.items() if name.endswith(f".{place}")]
    slices = [f"{name}.{target}" for name, targets in pairs for target in targets]
    shown = list(dict.fromkeys(map(numbered, [*names, *slices])))
    matches = named_by(target, names) or named_by(target, slices)
    if target not in {*names, *shown}:
        matches = [name for name in matches if not is_head(model, name)]
    if not matches:
        raise UserError(
            f"target {target!r} is not in {type(model).__name__}: a target is one of q, k, v, o, i, f if the "
            f"architecture is known, the name of a torch.nn.Linear layer, or a pattern of names; the linear layers are "
            f"{', '.join(shown)}"
        )
    return matches


def weight_of(model: nn.Module, name: str) -> torch.Tensor:
    """The matrix that a target's name stands for: a layer's weight, or a slice's rows of it."""
    weight, part = model.get_submodule(module_of(name)).weight, slice_of(name)
    return weight if part is None else weight[part.rows(len(weight))]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module `name` with `module`, in the same mode: a new module would apply dropout in eval mode."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.train(model.get_submodule(name).training))


def train_only(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Freeze everything except `names` and the head. Returns: The trainable parameters' names, in the model's order."""
    wanted = set(names)
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted or is_head(model, name))
        if parameter.requires_grad:
            trainable.append(name)
    return tuple(trainable)


def train_in_float32(model: nn.Module) -> None:
    """Hold what trains in float32: in half precision, most updates of a step round to zero.

    A layer with a trained parameter then computes in float32, between inputs and outputs in the model's dtype.
    """
    if all(parameter.requires_grad for parameter in model.parameters()) and model.dtype in HALF_DTYPES:
        model.float()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if any(parameter.requires_grad and parameter.dtype in HALF_DTYPES for parameter in own):
            module.outer = own[0].dtype
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave)
            for parameter in own:
                parameter.data = parameter.data.float()


def _enter(module: nn.Module, given: tuple) -> tuple:
    floats = [value.dtype for value in given if value.is_floating_point()]
    module.outer = floats[0] if floats else module.outer  # an embedding is given integers
    inner = next(module.parameters(recurse=False)).dtype
    return tuple(value.to(inner) if value.is_floating_point() else value for value in given)


def _leave(module: nn.Module, _: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(module.outer)


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters: trainable in the body (the paper's count), trainable in the head, and in total."""
    counts = {"trainable_method": 0, "trainable_head": 0, "total": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable_head" if is_head(model, name) else "trainable_method"] += parameter.numel()
    return counts


def checksum(tensors: Iterable[tuple[str, torch.Tensor]], algorithm: Callable[[], Any] = hashlib.sha256) -> str:
    """A hash over names, dtypes, shapes and bytes, SHA-256 by default. A change of any bit changes it."""
    digest = algorithm()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without inference mode, autocast and autograd, then restore the caller's modes.

    Tensors created under `torch.inference_mode` can neither train nor be written to outside of it, so none may stay in
    a model. Under autocast, sums would be taken in another dtype than the weights'.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        on_gpu = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else contextlib.nullcontext()
        # in this order: leaving inference mode turns autograd on
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), on_gpu:
            return function(*args, **kwargs)

    return run
