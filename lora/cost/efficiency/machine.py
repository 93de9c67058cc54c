"""What the numbers were measured on, and whether it had anything else to do. No torch, no names of hosts."""

import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "numpy", "numba", "safetensors")
IDLE_SHARE = 0.1  # ours: of one core's time; more than that of others shows in the timings


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since some moment, over all cores together: of everybody, and of this process alone."""

    everybody: float
    own: float
    clock: float


def cpu_times() -> CpuTimes | None:
    """None where the system does not say (no /proc/stat)."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])  # proc(5)
    ticks = user + nice + system + irq + softirq + steal
    return CpuTimes(ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.monotonic())


def others_share(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """Cores that other processes kept busy between two moments, on average; what a hypervisor took counts as theirs."""
    if before is None or after is None:
        return None
    others = (after.everybody - before.everybody) - (after.own - before.own)
    return round(max(0.0, others / (after.clock - before.clock)), 3)


def busy_cores(seconds: float = 1.0) -> float | None:
    """Cores that other processes keep busy now."""
    before = cpu_times()
    time.sleep(seconds)
    return others_share(before, cpu_times())


def is_idle(shares: Mapping[str, float | None]) -> bool | None:
    """None if nothing is known."""
    known = [share for share in shares.values() if share is not None]
    return all(share <= IDLE_SHARE for share in known) if known else None


def describe(device: str) -> dict[str, Any]:
    """
    Args:
        device: As `lora.training.usage.device_name` has it.
    """
    return {
        "device": device,
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo"),
        "cores": os.cpu_count(),
        "memory_mib": _mib(_first(r"MemTotal:\s*(\d+) kB", "/proc/meminfo")),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _first(pattern: str, file: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None


def _mib(kib: str | None) -> int | None:
    return None if kib is None else int(kib) // 1024
