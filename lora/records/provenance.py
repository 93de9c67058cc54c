"""Where a run was made: the version of its code, and the CPU, read from Linux's /proc."""

import functools
import hashlib
import itertools
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from lora.files import ROOT

COMPUTING = ("torch", "transformers", "numpy", "numba")
PROC = Path("/proc")
BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # CPU flags: two of x86, one of Arm
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")  # x86, then Arm
TRAINING = ("data/**/*.py", "methods/*.py", "models/*.py", "training/**/*.py", "rng.py")


@functools.lru_cache
def code_version() -> dict[str, str | bool | None]:
    """The git commit, and whether code or settings differ from it; both None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", "lora", "conf"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


@functools.lru_cache
def code_digest() -> str:
    """SHA-256 of the sources that training depends on. A run resumes only under an equal digest.

    These are `TRAINING` and the versions of `COMPUTING`. Settings are compared by their values (`made_from`).
    """
    digest = hashlib.sha256(" ".join(f"{name}-{version(name)}" for name in COMPUTING).encode())
    for path in sorted(path for place in TRAINING for path in (ROOT / "lora").glob(place)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


# The CPU. Without /proc, nothing is known about it but its architecture.


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
