"""Measure once per CPU, torch and width whether matrix products are faster in bfloat16. Torch is not loaded.

A CPU's flags do not decide it: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast in
bfloat16 as in float32, the other more slowly. The choice names a run, so it is kept in a file.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from lora.errors import UserError, first_line
from lora.files import ROOT, write_atomically
from lora.records.provenance import cpu_kind

CACHE = ROOT / "outputs" / "cache" / "precision"
LEAST_GAIN = 1.15  # ours: a smaller gain is not worth bf16's rounding
PROBE_SECONDS = 300  # limit of the measurement, loading torch included; it takes 5 on an idle machine


@functools.cache
def faster_precision(width: int, ffn: int) -> str:
    """The precision by the kept measurement, or a new one. Of several processes, one measures and the others read.

    Raises: UserError: If the measurement fails, or cannot be kept: another process might choose otherwise.
    """
    digest = hashlib.sha256(f"{cpu_kind()}\0{version('torch')}".encode()).hexdigest()[:8]
    path = CACHE / f"{width}x{ffn}-{digest}.json"
    try:
        gain = kept(path)
        if gain is None:
            CACHE.mkdir(parents=True, exist_ok=True)
            with open(CACHE / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                gain = kept(path)
                if gain is None:
                    print("measuring which precision is faster on this CPU ...", file=sys.stderr, flush=True)
                    gain = run_probe(width, ffn)
                    write_atomically(path, json.dumps({"gain": gain}).encode())
    except (OSError, ValueError, UserError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or "").strip().splitlines()
        reason = lines[-1] if lines else first_line(error)
        raise UserError(
            f"cannot measure which precision is faster here: {reason}; state train.precision=fp32 or bf16"
        ) from error
    return "bf16" if gain >= LEAST_GAIN else "fp32"


def kept(path: Path) -> float | None:
    """The measured speed-up in a file; None if there is none, or it is broken."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(path.read_bytes())["gain"])
    return None


def run_probe(width: int, ffn: int) -> float:
    """bf16's speed-up over fp32, measured in a separate process, which loads torch and has one thread."""
    command = [sys.executable, "-m", "lora.training.precision_probe", str(width), str(ffn)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=True, timeout=PROBE_SECONDS,
    )  # fmt: skip
    return float(done.stdout)
