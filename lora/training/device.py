"""The device and precision of a run, the processes that train it together, and what they used."""

import contextlib
import ctypes
import platform
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lora.config.auto import BF16_CAPABILITY, check_device
from lora.config.run import RunConfig
from lora.errors import UserError, first_line
from lora.records.provenance import cpu_kind
from lora.training.processes import local_rank, rank, world_size


@dataclass(frozen=True)
class Process:
    """One of the processes that train a run.

    Args:
        rank: Its number, from 0.
        count: Number of processes.
        casts: Whether the model computes under bfloat16 autocast.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    casts: bool = False

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.casts else contextlib.nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes.

        The order of the sums is the same in every step. DistributedDataParallel's order changes after the first step of
        a process, so that a resumed run would differ from an uninterrupted one in the last bits.
        """
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        if self.count == 1:
            return items
        lists: list[Any] = [None] * self.count
        distributed.all_gather_object(lists, items)
        return [item for part in lists for item in part]


def start_process(config: RunConfig) -> Process:
    """Set up device, precision and threads, and connect the run's processes.

    Raises: UserError: If the device, the precision or another process is not available.
    """
    count, train = world_size(), config.train
    check_device(config)
    gpu = torch.cuda.is_available() and config.runtime.device != "cpu" and train.kernels != "fused"
    check_precision(train.precision, gpu)
    if gpu and local_rank() >= torch.cuda.device_count():
        raise UserError(f"each process needs a GPU: LOCAL_RANK is {local_rank()}, found {torch.cuda.device_count()}")
    torch.set_num_threads(config.runtime.threads)
    keep_freed_memory()
    device = torch.device("cuda", local_rank()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if count > 1 and not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if gpu else "gloo")
        except ValueError as error:
            raise UserError(
                f"cannot connect {count} processes: {first_line(error)}; start them with torchrun or "
                f"`accelerate launch`, which set these variables, or unset WORLD_SIZE for a single one"
            ) from error
    casts = train.precision == "bf16" and train.kernels != "fused"  # the fused kernels cast by themselves
    return Process(device, rank(), count, casts)


def check_precision(precision: str, gpu: bool, setting: str = "train.precision") -> None:
    """Raises: UserError: If the precision is bf16 and the device lacks it."""
    if precision == "bf16" and not has_bf16(gpu):
        raise UserError(f"{setting} is bf16, but this {'GPU' if gpu else 'CPU'} has none; use fp32")


def has_bf16(gpu: bool) -> bool:
    """Whether the device multiplies in bfloat16 natively, instead of emulating it."""
    if gpu:  # torch.cuda.is_bf16_supported also returns True for emulation
        return torch.cuda.get_device_capability()[0] >= BF16_CAPABILITY
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# What a run used, for its record.


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = (tensor for state in optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in states)


def peak_mib(device: torch.device) -> float:
    """Peak memory of the GPU's allocator. On a CPU, that of the whole process, including its earlier runs."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def processor(device: torch.device) -> str:
    """The kind of processor. Libraries choose their kernels, and with them the order of sums, by it.

    For a CPU: its name in the record, its vendor and model, and its bfloat16 instructions, which a virtual machine may
    hide. For a GPU: its name in the record.
    """
    name = device_name(device)
    return name if device.type == "cuda" else f"{name} {cpu_kind() or platform.processor()}".strip()


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks in this process instead of returning them to the system, if its C library is glibc.

    A training step frees and allocates the same large blocks repeatedly. By default, the kernel clears each of them
    page by page, which takes a fifth of a full fine-tuning step. Huge pages can only be set when a process starts, as
    a sweep does for its workers.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
