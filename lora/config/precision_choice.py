"""Measure once per CPU, torch and width whether matrix products are faster in bfloat16. Torch is not loaded.

A CPU's flags do not decide it: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast in
bfloat16 as in float32, the other more slowly. The choice names a run, so it is kept in a file.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lora.checks import build
from lora.errors import UserError, first_line
from lora.files import ROOT, write_atomically
from lora.records.machine import cpu_kind

CACHE = ROOT / "outputs" / "cache" / "precision"
LEAST_GAIN = 1.15  # ours: a smaller gain is not worth bf16's rounding
PROBE_SECONDS = 300  # limit of the measurement, loading torch included; it takes 5 on an idle machine


@dataclass(frozen=True)
class Measurement:
    """Times of the matrix products of one encoder layer, forward and backward, in both precisions.

    Args:
        fp32_ms, bf16_ms: Medians over interleaved repetitions of one thread's CPU time. bf16_ms is None if torch has
            no such products on this CPU.
        gain: Median over the repetitions of the ratio of fp32 time to bf16 time.
    """

    fp32_ms: float
    bf16_ms: float | None
    gain: float

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16_ms is not None and self.gain >= LEAST_GAIN else "fp32"


def stored(width: int, ffn: int) -> tuple[Path, Measurement | None]:
    """The file of the measurement for an encoder of these widths on this CPU with this torch, and its content, if any.

    A broken file counts as none.
    """
    digest = hashlib.sha256(f"{cpu_kind()}\0{version('torch')}".encode()).hexdigest()[:8]
    path = CACHE / f"{width}x{ffn}-{digest}.json"
    try:
        return path, build(Measurement, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, UserError):
        return path, None


@functools.cache
def measure(width: int, ffn: int) -> Measurement:
    """The stored measurement, or a new one. Of several simultaneous processes, one measures and the others read.

    Raises: UserError: If the measurement fails, or cannot be stored for the other processes of the run.
    """
    path, known = stored(width, ffn)
    if known is not None:
        return known
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            CACHE.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(CACHE / ".lock", "w")), fcntl.LOCK_EX)
        known = stored(width, ffn)[1]
        if known is None:
            print("measuring which precision is faster on this CPU ...", file=sys.stderr, flush=True)
            known = run_probe(width, ffn)
            try:
                write_atomically(path, json.dumps(dataclasses.asdict(known)).encode())
            except UserError as error:  # another process would measure too, and might choose otherwise
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    raise UserError(f"{error}; state train.precision=fp32 or bf16") from error
    return known


def run_probe(width: int, ffn: int) -> Measurement:
    """Measure in a separate process, which loads torch and has one thread. Raises: UserError: If that fails."""
    command = [sys.executable, "-m", "lora.training.precision_probe", str(width), str(ffn)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=True, timeout=PROBE_SECONDS,
        )  # fmt: skip
        return build(Measurement, json.loads(done.stdout))
    except (OSError, ValueError, UserError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or "").strip().splitlines()
        reason = lines[-1] if lines else first_line(error)
        raise UserError(
            f"cannot measure which precision is faster here: {reason}; state train.precision=fp32 or bf16"
        ) from error
