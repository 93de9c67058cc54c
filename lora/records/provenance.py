"""The version of the code that made a run."""

import functools
import hashlib
import subprocess
from importlib.metadata import version

from lora.files import ROOT

COMPUTING = ("torch", "transformers", "numpy", "numba")
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
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
