"""The bytes that autograd keeps for the backward pass, and those of a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora.models.modules import is_head, trainable


@dataclass(frozen=True)
class Saved:
    """Bytes of the storages that autograd keeps for the backward pass, each counted once.

    Args:
        activations: All storages except the model's parameters and buffers, and copies of these.
        casts: Copies of parameters and buffers: in another precision or layout, or scaled.
    """

    activations: int
    casts: int


class _Casts(TorchDispatchMode):
    """Collects copies of the storages in `owned`: in another dtype or layout, or scaled."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.mul.Tensor)

    def __init__(self, owned: set[int]):
        super().__init__()
        self.owned = owned
        self.copies: dict[int, Tensor] = {}  # by address; kept alive, so that no other tensor gets the address

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if function in self.COPIES:
            sources = [_address(argument) for argument in arguments if torch.is_tensor(argument)]
            if all(source in self.owned or source in self.copies for source in sources):
                self.copies[_address(out)] = out
        return out


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> Saved:
    """The bytes that one forward pass keeps for the backward pass, counted by autograd's hooks on saved tensors.

    A storage counts in full even if a saved view covers a part of it, since all of it stays in memory. Only tensors in
    the graph count; the fused kernels also keep keys of 8 bytes per example and dropout.
    """
    owned = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with _Casts(owned) as casts, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    storages = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in kept}
    del out
    return Saved(
        activations=sum(size for a, size in storages.items() if a not in owned and a not in casts.copies),
        casts=sum(size for a, size in storages.items() if a in casts.copies),
    )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # of the storage object: a fake storage has no data


def checkpoint_bytes(model: nn.Module, with_head: bool) -> int:
    """The bytes of a safetensors file of the trained tensors."""
    kept = {name: p.detach().cpu() for name, p in trainable(model) if with_head or not is_head(model, name)}
    return len(save(kept))
