"""Change models safely in any mode of torch.

Tensors created under `torch.inference_mode` can neither train nor be written to outside of it, so none may stay in a
model. Under autocast, sums would be taken in another dtype than the weights'.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without inference mode, autocast and autograd, then restore the caller's modes."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())  # in this order: leaving inference mode turns autograd on
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                modes.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run


def thaw(model: nn.Module) -> None:
    """Replace parameters that were created in inference mode with normal ones of equal bits.

    A model loaded in inference mode has such parameters. Other parameters stay the same objects. Call it outside of
    inference mode.
    """
    normal: dict[int, nn.Parameter] = {}  # by id of the old one, because modules share parameters
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if old.is_inference():
                new = normal.setdefault(id(old), nn.Parameter(old.detach().clone(), old.requires_grad))
                setattr(module, name, new)
