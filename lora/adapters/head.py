"""Replace a model's head as a whole. Each task has its own head, with its own number of outputs."""

import torch
from torch import Tensor, nn

from lora.errors import UserError, listed
from lora.methods.lowrank import factor_dtype


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The head's modules by name, in forward order: those outside the body, and BERT's pooler (`is_head`)."""
    body = model.base_model_prefix
    pooler = getattr(model.base_model, "pooler", None)
    parts = {name: module for name, module in model.named_children() if name != body}
    parts = ({} if pooler is None else {f"{body}.pooler": pooler}) | parts
    return {name: module for part, top in parts.items() for name, module in top.named_modules(prefix=part)}


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name, in forward order."""
    return {
        f"{name}.{part}": parameter
        for name, module in head_modules(model).items()
        for part, parameter in module.named_parameters(recurse=False)
    }


def output_layer(model: nn.Module) -> str:
    """The name of the head's last linear layer, which has one output per label."""
    names = [name for name, module in head_modules(model).items() if isinstance(module, nn.Linear)]
    if not names or model.get_submodule(names[-1]).out_features != model.config.num_labels:
        raise UserError(f"the head of {type(model).__name__} does not end in a linear layer with one output per label")
    return names[-1]


def own_head(model: nn.Module) -> dict[str, Tensor]:
    """The head that the model had before any adapter brought one, on its current device and in its current dtype."""
    kept = getattr(model, "kept_head", {})
    return {name: kept.get(name, mine).detach().to(mine) for name, mine in head_parameters(model).items()}


def fitted_head(model: nn.Module, head: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of an adapter's head, at least in float32, one tensor per parameter. The model does not change.

    Args:
        head: The adapter's head. Missing tensors come from the head that the model had before any adapter's.
    Raises: UserError: If a name is unknown, a shape differs in more than the number of labels, or a value is outside
        the range of the dtype.
    """
    mine, output = head_parameters(model), output_layer(model)
    if unknown := [name for name in head if name not in mine]:
        raise UserError(f"the adapter's head has {listed(unknown)}; the model's consists of {listed(mine)}")
    outputs, fitted = {f"{output}.weight", f"{output}.bias"}, {}
    for name, tensor in (own_head(model) | head).items():
        free = int(name in outputs)
        if tensor.dim() != mine[name].dim() or tensor.shape[free:] != mine[name].shape[free:]:
            raise UserError(
                f"the adapter's {name} is {tuple(tensor.shape)}, and the model's {tuple(mine[name].shape)}: only the "
                f"number of labels may differ"
            )
        fitted[name] = tensor.detach().to(mine[name].device, factor_dtype(mine[name].dtype), copy=True)
        check_finite(f"the adapter's {name}", fitted[name].to(mine[name].dtype))
    rows = {fitted[name].shape[0] for name in outputs & set(fitted)}
    if len(rows) != 1 or rows == {0}:
        raise UserError(f"weight and bias of the adapter's {output} must have one number of labels, got {sorted(rows)}")
    return fitted


def check_finite(what: str, tensor: Tensor) -> None:
    """Raises: UserError: If a value is not finite, such as one that is too large for the model's dtype."""
    if not tensor.isfinite().all():
        raise UserError(f"{what} has values that are not finite in {tensor.dtype}, the model's dtype")


@torch.no_grad()
def put_head(model: nn.Module, fitted: dict[str, Tensor]) -> None:
    """Set the head's values. Only the contents of parameters are exchanged, so this cannot fail halfway."""
    if not getattr(model, "kept_head", {}):
        model.kept_head = {name: parameter.detach().clone() for name, parameter in head_parameters(model).items()}
    output = model.get_submodule(output_layer(model))
    for name, parameter in head_parameters(model).items():
        parameter.data, parameter.grad = fitted[name].to(parameter.dtype), None
    output.out_features = len(output.weight)
    if model.config.num_labels != output.out_features:
        model.config.num_labels = model.num_labels = output.out_features
        model.config.problem_type = None  # transformers derives it from the labels of the first loss
