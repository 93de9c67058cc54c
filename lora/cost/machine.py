"""The machine's description, and the load of other processes. No torch, no host names."""

import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lora.records.machine import BF16_FLAGS, cores, cpu_fields, cpu_flags

IDLE_CORES = 0.1  # ours: cores busy with other processes; a higher load shows in the timings
SAMPLE_SECONDS = 2.0
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numba", "numpy", "safetensors")
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")  # CPU flags, the widest first
VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "0x41": "Arm", "0xc0": "Ampere"}  # /proc/cpuinfo -> name
# glibc's variables for the settings of `lora.training.allocator.keep_freed_memory`, to give them to peers' processes.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


# Description.


def cpu_model() -> str:
    """Vendor and model of the CPU, such as `AMD EPYC 9R14`, or `Intel Xeon` if a virtual machine hides the model.

    On x86 the family and model numbers follow. They distinguish CPUs to which virtual machines give the same name.
    """
    fields = cpu_fields()
    vendor = fields.get("vendor_id", fields.get("CPU implementer", ""))
    vendor = VENDORS.get(vendor, vendor)
    model = fields.get("model name", fields.get("CPU part", platform.processor() or platform.machine()))
    words = re.sub(r"\((R|TM|C)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", model, flags=re.IGNORECASE).split()
    numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
    known = [vendor] if vendor and vendor.lower() not in " ".join(words).lower() else []
    return " ".join([*known, *words, *numbers])


def cpu_name() -> str:
    """The CPU's name in tables: vendor and model, the widest vector instructions, and the number of cores."""
    flags = cpu_flags()
    widest = next((name for name in VECTORS if name in flags), "plain")
    return f"{cpu_model()}, {widest.replace('_', '-')}, {cores()} cores"


def cpu_device() -> str:
    """The CPU's name as a folder name."""
    return slug(cpu_name())


def slug(name: str) -> str:
    """A device's name as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe() -> dict[str, Any]:
    """The machine's description in a summary."""
    memory = re.search(r"^MemTotal: +(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": cpu_fields().get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "bf16": sorted(cpu_flags() & BF16_FLAGS),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the installed ones of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # peft is an extra
    return found


# Load of other processes.


@dataclass(frozen=True)
class Moment:
    """Counters in seconds: work of all cores, work of this process, time taken by a hypervisor, and the clock."""

    busy: float
    own: float
    stolen: float
    clock: float


@dataclass(frozen=True)
class Load:
    """The load of others on the machine between two moments.

    Args:
        busy: Share of all cores' time that other processes or a hypervisor took; None if unknown.
        stolen: Share that the hypervisor gave to other guests; None if unknown.
        average: The system's load average over the last minute; None if unknown.
    """

    busy: float | None
    stolen: float | None
    average: float | None

    @property
    def busy_cores(self) -> float | None:
        """Average number of cores that others kept busy."""
        return None if self.busy is None else round(self.busy * system_cores(), 3)

    @property
    def idle(self) -> bool | None:
        return is_idle([self.busy_cores])


def is_idle(busy_cores: Iterable[float | None]) -> bool | None:
    """Whether others kept at most `IDLE_CORES` cores busy throughout; None if nothing is known."""
    known = [busy for busy in busy_cores if busy is not None]
    return max(known) <= IDLE_CORES if known else None


def now() -> Moment | None:
    """Read the counters. Returns: None if the system lacks them; Linux has them in proc(5)."""
    fields = _read("/proc/stat").split("\n", 1)[0].split()[1:9]
    if not fields:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
    busy = user + nice + system + irq + softirq + steal
    return Moment(busy, time.process_time(), steal, time.monotonic())


def load_between(before: Moment | None, after: Moment | None) -> Load:
    """The load of others between two moments, excluding this process's own work."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if before is None or after is None:
        return Load(None, None, average)
    available = (after.clock - before.clock) * system_cores()
    others = (after.busy - before.busy) - (after.own - before.own)
    stolen = after.stolen - before.stolen
    return Load(round(max(0.0, others / available), 4), round(stolen / available, 4), average)


def sample_load(seconds: float = SAMPLE_SECONDS) -> Load:
    """The load of others while this process sleeps for `seconds`."""
    before = now()
    if before is not None:
        time.sleep(seconds)
    return load_between(before, now())


def system_cores() -> int:
    """Number of cores in /proc/stat's totals, which can exceed the number that this process may use."""
    return os.cpu_count() or 1


def tree_bytes(root: int) -> int | None:
    """Bytes of a process and all its descendants. A shared page counts once in all (Linux's proportional set size).

    Returns: None if the system does not report them. Processes that end meanwhile count as zero.
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
        except (OSError, TypeError):  # TypeError: an ended process that was not waited for has no memory
            continue
    return total


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
