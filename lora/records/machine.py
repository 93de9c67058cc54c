"""Live processes and the CPU, read from Linux's /proc, whose times are unaffected by changes of the clock.

Without /proc, psutil reports processes, and nothing is known about the CPU.
"""

import itertools
import os
import platform
from pathlib import Path

import psutil

PROC = Path("/proc")
BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # CPU flags: two of x86, one of Arm
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")  # x86, then Arm


def process_table() -> str:
    """The identity of this process's table of pids: boot and namespace, which distinguish containers."""
    if not (PROC / "self").exists():
        return f"booted {psutil.boot_time():.0f}"
    boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    return f"{boot} {os.stat(PROC / 'self' / 'ns' / 'pid').st_ino}"


def start_ticks(pid: int) -> int | None:
    """Start time of a process, in ticks of 10 ms. None if it is gone, or dead and waiting for its parent."""
    if not (PROC / "self").exists():
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else round(100 * process.create_time())
        except psutil.NoSuchProcess:
            return None
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])  # state, starttime


def parent_of(pid: int) -> int | None:
    if not (PROC / "self").exists():
        try:
            return psutil.Process(pid).ppid()
        except psutil.NoSuchProcess:
            return None
    fields = stat_fields(pid)
    return None if fields is None else int(fields[1])  # ppid


def stat_fields(pid: int) -> list[str] | None:
    """The fields after a process's name in its /proc/PID/stat (proc(5)). None if it is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


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
    """This machine's CPU, named as in records (`lora.training.usage.device_name`), without loading torch.

    Source: aten/src/ATen/native/DispatchStub.cpp of torch, for x86. Other CPUs get the architecture alone.
    """
    architecture, flags = platform.machine(), cpu_flags()
    if architecture != "x86_64" or not flags:
        return architecture
    if {"avx512vl", "avx512bw", "avx512dq", "fma"} <= flags:
        return f"{architecture} AVX512"
    return f"{architecture} AVX2" if {"avx2", "fma"} <= flags else f"{architecture} DEFAULT"
