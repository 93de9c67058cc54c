"""Bytes: what autograd keeps, what a checkpoint takes, and the peak of a process of its own."""

import ctypes
import dataclasses
import gc
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora.cost.efficiency.plan import Plan
from lora.errors import UserError, first_line
from lora.files import ROOT
from lora.models.modules import is_head, trainable

PEAK_STEPS = 3  # the second is the first with the optimizer's state in place
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Saved:
    """Bytes of the storages that autograd keeps for the backward pass, each counted once.

    Args:
        activations: All but the model's own parameters and buffers, and copies of these.
        casts: Copies of them: in another precision or layout, or scaled.
    """

    activations: int
    casts: int


class _Casts(TorchDispatchMode):
    """Collects the copies that are made of the storages in `owned`: in another dtype, another layout, or scaled."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.mul.Tensor)

    def __init__(self, owned: set[int]):
        super().__init__()
        self.owned = owned
        self.copies: dict[int, Tensor] = {}  # by address; kept alive, so that it is not given to another

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if function in self.COPIES:
            sources = [_address(argument) for argument in arguments if torch.is_tensor(argument)]
            if all(source in self.owned or source in self.copies for source in sources):
                self.copies[_address(out)] = out
        return out


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> Saved:
    """What one forward pass leaves for the backward pass, counted with autograd's hooks on saved tensors.

    A storage counts whole, however small the part that a saved view shows, since all of it stays in memory. What is
    no tensor in the graph is not seen: the fused kernels keep keys of 8 bytes per row and dropout.
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
    return tensor.untyped_storage()._cdata  # of the storage itself: a fake one has no data


def checkpoint_bytes(model: nn.Module, with_head: bool) -> int:
    """The size of a safetensors file of what trains, written to disk and measured there."""
    tensors = {
        name: p.detach().cpu().contiguous() for name, p in trainable(model) if with_head or not is_head(model, name)
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trained.safetensors"
        save_file(tensors, file)
        return file.stat().st_size


@dataclass(frozen=True)
class Peak:
    """Of a process that trains one method and nothing else.

    Args:
        peak_mib: Of the whole process on a CPU, of the GPU's allocator on a GPU.
        libraries_mib: What the process took before there was a model, Python and torch; 0 on a GPU, whose
            allocator knows only tensors.
    """

    peak_mib: float
    libraries_mib: float


def peak_of_child(plan: Plan, name: str) -> Peak | None:
    """Train in a fresh process and ask it for its peak; what this process has held before does not matter to it.

    Returns: None where the system does not tell a process its own peak.
    Raises: UserError: If the process ends otherwise than well.
    """
    order = json.dumps({"plan": dataclasses.asdict(plan), "name": name})
    command = [sys.executable, "-m", "lora.cost.efficiency.peak", order]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"training {name} in a process of its own, to see its peak memory, ended with exit code "
            f"{child.returncode} (-9: out of memory, most likely): {last}"
        )
    found = json.loads(child.stdout)
    return None if found is None else Peak(**found)


def resident_mib(key: str) -> float | None:
    """`VmRSS`, resident now, or `VmHWM`, its peak, of this process: proc(5).

    `getrusage` would not do: its maximum starts at what the parent process had when it started this one.
    """
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def reset_peak() -> None:
    """Give freed memory back and let the peak start again from what is resident now.

    Raises: UserError: If the system does not allow it.
    """
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET_PEAK.write_text("5")  # proc(5): reset the peak resident set size
    except OSError as error:
        raise UserError(f"cannot reset this process's peak memory by {RESET_PEAK}: {first_line(error)}") from error
