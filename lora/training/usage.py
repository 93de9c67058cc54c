"""The resources that a run uses, for its record, and the kind of processor that its bits depend on."""

import platform
import resource

import torch

from lora.records.machine import cpu_kind


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
    if device.type == "cuda":
        return name
    return f"{name} {cpu_kind() or platform.processor()}".strip()
