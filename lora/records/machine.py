"""Which processes live, and the kind of CPU. From Linux's /proc, whose times no clock change moves; else by psutil."""

import os
import platform
from pathlib import Path

import psutil

PROC = Path("/proc")


def process_table() -> str:
    """The table that this process's pids are of: boot and namespace, so that containers are told apart."""
    if not (PROC / "self").exists():
        return f"booted {psutil.boot_time():.0f}"
    boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    return f"{boot} {os.stat(PROC / 'self' / 'ns' / 'pid').st_ino}"


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks of 10 ms. None if it is gone, or dead and waiting for its parent."""
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
    """What follows the name of a process in its line of proc(5). None if it is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_kind() -> str:
    """This machine's CPU as records name one (`lora.training.usage.device_name`), without loading torch.

    Source: aten/src/ATen/native/DispatchStub.cpp of torch, for x86. Elsewhere the architecture alone.
    """
    architecture = platform.machine()
    if architecture != "x86_64":
        return architecture
    try:
        flags = set((PROC / "cpuinfo").read_text().split())
    except OSError:
        return architecture
    if {"avx512vl", "avx512bw", "avx512dq", "fma"} <= flags:
        return f"{architecture} AVX512"
    return f"{architecture} AVX2" if {"avx2", "fma"} <= flags else f"{architecture} DEFAULT"
