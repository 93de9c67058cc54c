"""What the machine is, and whether something else is using it. No torch here."""

import os
import platform
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora.records.machine import cores

IDLE_SHARE = 0.05  # of all cores' time that others may take before a measurement is called disturbed
SAMPLE_SECONDS = 2.0
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numba", "numpy")
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # of the CPU: x86 twice, and Arm
# glibc's names for what `lora.training.allocator.keep_freed_memory` sets, so that the peers' processes have it too.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


@dataclass(frozen=True)
class Load:
    """How busy the machine was over a sample in which this benchmark did nothing.

    Args:
        busy: Share of all cores' time that was not idle; None where the system does not say.
        stolen: The share that the hypervisor gave to other guests.
        average: The system's load average over the last minute.
    """

    busy: float | None
    stolen: float | None
    average: float | None

    @property
    def idle(self) -> bool | None:
        return None if self.busy is None else self.busy <= IDLE_SHARE


def sample_load(seconds: float = SAMPLE_SECONDS) -> Load:
    """Look at the machine for a while, doing nothing."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    before = _cpu_times()
    if before is None:
        return Load(None, None, average)
    time.sleep(seconds)
    after = _cpu_times()
    return load_between(before, after, average)


def load_between(before: dict[str, int], after: dict[str, int], average: float | None) -> Load:
    spent = {name: after[name] - before[name] for name in before}
    total = max(1, sum(spent.values()))
    idle = spent["idle"] + spent["iowait"]
    return Load(round(1 - idle / total, 4), round(spent["steal"] / total, 4), average)


def _cpu_times() -> dict[str, int] | None:
    """Ticks of all cores since the start of the system, by kind (Linux's proc(5))."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    return dict(zip("user nice system idle iowait irq softirq steal".split(), map(int, fields), strict=True))


def tree_bytes(root: int) -> int | None:
    """Memory of a process and all its descendants, a shared page counted once in all (Linux's proportional set size).

    Returns: None where the system does not say. Processes that end meanwhile count as nothing.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    total, waiting = 0, [root]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            total += 1024 * int(re.search(r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)[1])
            waiting += [
                int(child) for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except (OSError, TypeError):  # TypeError: a process that has ended, but was not waited for, has no memory
            continue
    return total


def cpu_flags() -> set[str]:
    try:
        found = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def cpu_device() -> str:
    """The name of this machine's folder below bench/: its kind of CPU and its cores."""
    flags = cpu_flags()
    widest = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16") if name in flags), "plain")
    return f"{platform.machine()}-{widest}-{cores()}-cores".replace("_", "-").lower()


def describe_machine() -> dict[str, Any]:
    try:
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        memory = re.search(r"^MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        model = memory = None
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "bf16": sorted(cpu_flags() & set(BF16_FLAGS)),
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
