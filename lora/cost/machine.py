"""The machine's description, the load of other processes, and the folders of measurements. No torch, no host names."""

import argparse
import json
import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from lora.files import REFERENCE, RESULTS, ROOT
from lora.records.provenance import BF16_FLAGS, cores, cpu_fields, cpu_flags, cpu_kind

IDLE_CORES = 0.1  # ours: cores busy with other processes; a higher load shows in the timings
LOAD_SECONDS = 2.0
MEASURED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numba", "numpy", "safetensors")
COMMITTED = RESULTS / REFERENCE


def cpu_name() -> str:
    """The CPU's name in tables: its vendor, model and bfloat16 instructions, and the number of cores."""
    return f"{cpu_kind() or platform.machine()}, {cores()} cores"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_machine() -> dict[str, Any]:
    return {
        "cpu": cpu_fields().get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "bf16": sorted(cpu_flags() & BF16_FLAGS),
        "system": platform.system(),
    }


def versions() -> dict[str, Any]:
    """The versions of Python and of the installed ones of `MEASURED_PACKAGES`."""
    installed = {}
    for name in MEASURED_PACKAGES:
        with suppress(PackageNotFoundError):  # peft is an extra
            installed[name] = version(name)
    return {"python": platform.python_version(), "packages": installed}


def busy_cores(seconds: float = LOAD_SECONDS) -> float:
    """Average number of cores that all processes keep busy while this one sleeps for `seconds`."""
    return round(psutil.cpu_percent(seconds) / 100 * (os.cpu_count() or 1), 3)


# Options and files.


def add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results, which git ignores)")
    text = f"{COMMITTED.relative_to(ROOT)}, which is committed"
    place.add_argument("--reference", dest="results", action="store_const", const=COMMITTED, help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build the tables again")


def whole(text: str) -> int:
    """An option's number >= 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {text}")
    return int(text)


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()
