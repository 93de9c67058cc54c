"""The CPU, read from Linux's /proc. Without /proc, nothing is known about it but its architecture."""

import itertools
import os
import platform
from pathlib import Path

PROC = Path("/proc")
BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # CPU flags: two of x86, one of Arm
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")  # x86, then Arm


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_fields() -> dict[str, str]:
    """The fields of /proc/cpuinfo for the first CPU; {} if it cannot be read."""
    try:
        with (PROC / "cpuinfo").open() as file:
            lines = list(itertools.takewhile(str.strip, file))  # an empty line ends each CPU
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_flags() -> set[str]:
    """The CPU's instruction sets, as the system names them."""
    fields = cpu_fields()
    return set(fields.get("flags", fields.get("Features", "")).split())


def cpu_kind() -> str:
    """The CPU's vendor, model and bfloat16 instructions. A virtual machine may hide the instructions."""
    fields = cpu_fields()
    return " ".join(
        [*(fields[key] for key in CPU_FIELDS if key in fields), *sorted(f for f in cpu_flags() if "bf16" in f)]
    )


def recorded_cpu() -> str:
    """This machine's CPU, named as in records (`lora.training.device.device_name`), without loading torch.

    Source: aten/src/ATen/native/DispatchStub.cpp of torch, for x86. Other CPUs get the architecture alone.
    """
    architecture, flags = platform.machine(), cpu_flags()
    if architecture != "x86_64" or not flags:
        return architecture
    if {"avx512vl", "avx512bw", "avx512dq", "fma"} <= flags:
        return f"{architecture} AVX512"
    return f"{architecture} AVX2" if {"avx2", "fma"} <= flags else f"{architecture} DEFAULT"
