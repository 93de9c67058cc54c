"""`make` as from a fresh shell."""

import os
import re
import subprocess
from pathlib import Path

from lora.files import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
GIVEN = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", *re.search(r"^KNOWN := (.*)", MAKEFILE, re.MULTILINE)[1].split()}


def make(folder: Path, *arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess:
    """`make -C folder` as from a fresh shell: the flags of a make that runs the suite would be inherited."""
    inherited = {key: value for key, value in os.environ.items() if key not in GIVEN}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", folder, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
