"""The machine's description, the load of other processes, and the folders of measurements. No torch, no host names."""

import argparse
import json
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from lora.errors import UserError
from lora.files import REFERENCE, RESULTS, ROOT
from lora.records.provenance import BF16_FLAGS, cores, cpu_fields, cpu_flags

IDLE_CORES = 0.1  # ours: cores busy with other processes; a higher load shows in the timings
SAMPLE_SECONDS = 2.0
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numba", "numpy", "safetensors")
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")  # CPU flags, the widest first
COMMITTED = RESULTS / REFERENCE


def cpu_name() -> str:
    """The CPU's name in tables: its model, the widest vector instructions, and the number of cores.

    On x86, the family and model numbers distinguish CPUs to which virtual machines give the same name.
    """
    fields, flags = cpu_fields(), cpu_flags()
    model = fields.get("model name", platform.processor() or platform.machine())
    words = re.sub(r"\((R|TM|C)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", model, flags=re.IGNORECASE).split()
    numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
    widest = next((name for name in VECTORS if name in flags), "plain")
    return f"{' '.join([*words, *numbers])}, {widest.replace('_', '-')}, {cores()} cores"


def slug(name: str) -> str:
    """A device's name as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe() -> dict[str, Any]:
    """The machine's description in a measurement."""
    return {
        "cpu": cpu_fields().get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "bf16": sorted(cpu_flags() & BF16_FLAGS),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the installed ones of `PACKAGES`."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # peft is an extra
            installed[name] = version(name)
    return installed


def busy_cores(seconds: float = SAMPLE_SECONDS) -> float:
    """Average number of cores that all processes keep busy while this one sleeps for `seconds`."""
    return round(psutil.cpu_percent(seconds) / 100 * (os.cpu_count() or 1), 3)


def is_idle(busy: Iterable[float]) -> bool:
    """Whether at most `IDLE_CORES` cores were busy in every sample."""
    return max(busy) <= IDLE_CORES


# Folders of measurements.


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folder of measurements."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results, which git ignores)")
    text = f"{COMMITTED.relative_to(ROOT)}, which is committed"
    place.add_argument("--reference", dest="results", action="store_const", const=COMMITTED, help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build the tables again")


def check_writable(folder: Path) -> None:
    """Raises: UserError: If results cannot be written there, so that a measurement does not find out at its end."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"cannot write results to {folder}: {existing} is not a folder in which you may write")


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()
