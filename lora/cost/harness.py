"""The bytes that training needs: of activations, checkpoint and optimizer, and the peak of a process."""

import ctypes
import gc
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora.config.run import RunConfig
from lora.cost.subjects import Batch, Subject, random_batch, trained
from lora.errors import UserError
from lora.models.modules import count_parameters, trainable
from lora.training.device import optimizer_bytes

T = TypeVar("T")
PEAK_STEPS = 3  # from the second on, the optimizer has its state


def counts(subject: Subject, batches: Mapping[str, Batch]) -> dict[str, Any]:
    """The quantities that need no clock. Takes one step, so that the optimizer has a state to count."""
    parameters = count_parameters(subject.model)
    saved = {shape: saved_bytes(subject.model, partial(subject.loss, batch)) for shape, batch in batches.items()}
    subject.step(next(iter(batches.values())))
    return {
        "trainable": parameters["trainable_method"],
        "trainable_with_head": parameters["trainable_method"] + parameters["trainable_head"],
        "checkpoint_bytes": len(save({name: p.detach().cpu() for name, p in trainable(subject.model)})),
        "optimizer_bytes": optimizer_bytes(subject.optimizer),
        "saved_activation_bytes": saved,
    }


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


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """The bytes that autograd keeps of one forward pass for the backward pass, counted by hooks on saved tensors.

    Parameters and buffers do not count, nor copies of them in another dtype or layout. Each other storage counts once
    and in full even if a saved view covers a part of it, since all of it stays in memory. Only tensors in the graph
    count; the fused kernels also keep keys of 8 bytes per example and dropout.
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
    return sum(size for address, size in storages.items() if address not in owned and address not in casts.copies)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # of the storage object: a fake storage has no data


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, whose memory and settings are independent of this one's.

    Raises: UserError: If the process is killed; any error that the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a process that measures was killed, probably because memory ran out") from error


def peak_mib(run: RunConfig, shape: str, threads: int) -> float | None:
    """The peak memory of this process while it trains, without that of loading the encoder.

    `getrusage` is unsuitable: its maximum starts at the memory that the parent process had when it started this one.

    Returns: The peak of the whole process on a CPU, of torch's allocator on a GPU. None if the system reports none.
    """
    torch.set_num_threads(threads)
    subject, device = trained(run), run.runtime.device
    batch = random_batch(subject.model.config, shape, device)
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak resident set size
        for _ in range(PEAK_STEPS):
            subject.step(batch)
        if device == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return round(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024, 1)
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
