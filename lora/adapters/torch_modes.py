"""Changes to a model that last, in whatever mode of torch they are made.

Tensors that are made under `torch.inference_mode` can neither train nor be written to outside of it, so none is left in
a model. Under autocast, sums would be taken in another dtype than the weights'.
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
    """Run a function outside of inference mode and autocast, and without autograd; the caller's modes are back then."""

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
    """Replace parameters that were made in inference mode, as by loading the model there, by usual ones of equal bits.

    It is called outside of inference mode. Other parameters stay the objects that they are.
    """
    usual: dict[int, nn.Parameter] = {}  # by the old one's identity, since modules share parameters
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if old.is_inference():
                new = usual.setdefault(id(old), nn.Parameter(old.detach().clone(), old.requires_grad))
                setattr(module, name, new)
