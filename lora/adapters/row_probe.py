"""Whether a batch can mix adapters in an encoder: the rows of a batch must be dimension 0 wherever adapters differ."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lora.errors import UserError, first_line

ROWS, TOKENS = 7, 5  # 7 is no other dimension of an input by chance, such as tokens, or tokens x rows


def check_rows(model: nn.Module, adapted: Iterable[str], head: Iterable[str]) -> None:
    """Check, with one small batch, that layers in which rows may have different adapters get these rows in dimension 0.

    XLNet's layers get tokens x rows x width. The model stays as it was, and nothing is drawn: it is in eval mode
    meanwhile. The input that DeBERTa-v2's layers get in `disentangled_attention_bias` is exempt: all rows share it, and
    `bias_by_adapter` calls them for one adapter at a time.

    Args:
        adapted: Layers with LoRA. Each must get rows x tokens x width.
        head: Layers of the head. Some get one vector per row, and not every model uses all of them.
    Raises: UserError: If an input has another shape, a layer with LoRA gets none, or the batch fails.
    """
    seen = shapes_of_inputs(model, [*adapted, *head])
    shared = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if hasattr(module, "disentangled_attention_bias")
        for child, _ in module.named_children()
    }
    for name in adapted:
        shapes = [shape for shape in seen[name] if not (name in shared and shape[0] == 1)]
        if not seen[name] or any(len(shape) != 3 or shape[0] != ROWS for shape in shapes):
            raise UserError(refusal(model, name, "rows x tokens x width", seen[name]))
    for name in head:
        if any(shape[0] != ROWS for shape in seen[name]):
            raise UserError(refusal(model, name, "rows x width", seen[name]))


def refusal(model: nn.Module, name: str, rule: str, shapes: list[tuple[int, ...]]) -> str:
    found = " and ".join(" x ".join(map(str, shape)) for shape in dict.fromkeys(shapes)) or "none"
    return (
        f"this {type(model).__name__} cannot mix adapters in a batch: the inputs of {name} must be {rule}; a batch of "
        f"{ROWS} rows and {TOKENS} tokens gives it {found} (swap serves one adapter at a time)"
    )


def shapes_of_inputs(model: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each module's inputs in a batch of `ROWS` x `TOKENS`. Raises: UserError: If the batch fails."""
    seen: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: seen[name].append(tuple(inputs[0].shape))

    modes = [(module, module.training) for module in model.modules()]
    hooks = [model.get_submodule(name).register_forward_pre_hook(recorder(name)) for name in seen]
    try:
        model.eval()
        model(input_ids=probe(model))
    except Exception as error:
        raise UserError(
            f"this {type(model).__name__} cannot be checked for batches that mix adapters: a batch of {ROWS} rows and "
            f"{TOKENS} tokens fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return seen


def probe(model: nn.Module) -> Tensor:
    """Equal rows of a token that is no padding, with the end token last, which BART's head looks for."""
    settings = model.config
    token, end = int(getattr(settings, "pad_token_id", None) == 0), getattr(settings, "eos_token_id", None)
    row = [*[token] * (TOKENS - 1), end if isinstance(end, int) else token]
    return torch.tensor([row] * ROWS, device=next(model.parameters()).device)
