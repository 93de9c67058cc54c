"""Resolve `train.precision=auto` by one measurement per CPU, torch and encoder. Torch is not loaded.

A CPU's flags do not decide it: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast in
bfloat16 as in float32, the other more slowly. The choice names a run, so it is made before training.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lora.checks import Problems, build
from lora.config.kernel_choice import gpu_has_bf16, read_settings, takes_gpu
from lora.config.recorded import ATTENTION, KERNELS, PRECISION, as_recorded, recorded
from lora.config.run import ModelConfig
from lora.errors import UserError, first_line
from lora.files import ROOT, write_atomically
from lora.records.machine import BF16_FLAGS, cpu_flags, cpu_kind

FORMAT = 1
CACHE = ROOT / "outputs" / "cache" / "precision"
LEAST_GAIN = 1.15  # ours: a smaller gain is not worth bf16's rounding
MINILM = (384, 1536)  # sizes assumed if an encoder's files are absent: its run is refused with a separate message
PROBE_SECONDS = 300  # limit of the measurement, loading torch included; it takes 5 on an idle machine


@dataclass(frozen=True)
class Measurement:
    """Times of the matrix products of one encoder layer, forward and backward, in both precisions.

    Args:
        cpu: The machine's `lora.records.machine.cpu_kind`.
        torch: Version of torch.
        width, ffn: Widths of the encoder and of its feed-forward layers.
        fp32_ms, bf16_ms: Medians over interleaved repetitions of one thread's CPU time. bf16_ms is None if torch has
            no such products on this CPU.
        gain: Median over the repetitions of the ratio of fp32 time to bf16 time.
        low, high: Quartiles of that ratio.
        tries: Number of measurements, repeated if the repetitions disagree on the precision.
        format: Format of the file that stores it.
    """

    cpu: str
    torch: str
    width: int
    ffn: int
    fp32_ms: float
    bf16_ms: float | None
    gain: float
    low: float
    high: float
    tries: int
    format: int = FORMAT

    def __post_init__(self):
        problems = Problems()
        for key in ("fp32_ms", "bf16_ms", "gain", "low", "high"):
            value = getattr(self, key)
            holds = (value is None and key == "bf16_ms") or (value is not None and 0 <= value < math.inf)
            problems.check(holds, key, ">= 0 and finite", value)
        problems.done()

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16_ms is not None and self.gain >= LEAST_GAIN else "fp32"

    @property
    def clear(self) -> bool:
        """Whether the repetitions agree on the precision."""
        return agreed(self.low, self.high)

    @property
    def words(self) -> str:
        """The measurement, in words for the user."""
        if self.bf16_ms is None:
            return "torch has no bf16 products on this CPU"
        again = "remove outputs/cache/precision to measure again"
        doubt = "" if self.clear else f"; not clear after {self.tries} tries, as on a busy machine: {again}"
        return (
            f"measured on this CPU: a layer's products of {self.width} x {self.ffn} take {self.bf16_ms:.3g} ms in bf16 "
            f"and {self.fp32_ms:.3g} in fp32{doubt}"
        )


def agreed(low: float, high: float) -> bool:
    """Whether both quartiles of the gain imply the same precision."""
    return (low >= LEAST_GAIN) == (high >= LEAST_GAIN)


def choose_precision(
    model: ModelConfig, kernels: str, device: str, results: str, measure: bool = True
) -> tuple[str, str] | None:
    """The precision for an encoder on this machine, and the reason, in words for the user.

    Finished runs of the same encoder and kernels in the results folder decide, so that a resumed sweep does not
    change. Otherwise, it is bf16 on a GPU that has it, and on a CPU where it was measured to be faster.

    Args:
        kernels: `fused` or `stock`.
        device: `runtime.device`.
        results: `runtime.results`.
        measure: Measure if no measurement is stored, which takes seconds.
    Returns: None if a measurement is needed, none is stored, and `measure` is false.
    Raises: UserError: If the measurement fails.
    """
    kept = recorded(results, PRECISION).get((model.name, kernels))
    if kept is not None:
        return kept[0], as_recorded(kept[1], results)
    if takes_gpu(kernels, device):
        return ("bf16", "the GPU has it") if gpu_has_bf16() else ("fp32", "the GPU has no bf16")
    if not cpu_flags() & BF16_FLAGS:
        return "fp32", "the CPU has no bf16 instructions"
    if model.source == "hub":
        return "fp32", "the encoder's width is not known before it is downloaded"
    found = measurement(*encoder_sizes(model), measure)
    return None if found is None else (found.precision, found.words)


def encoder_sizes(model: ModelConfig) -> tuple[int, int]:
    """Widths of an encoder and of its feed-forward layers; MiniLM's if its files do not state them."""
    settings = read_settings(model)
    width = settings.get("hidden_size", settings.get("dim"))  # the alternatives are DistilBERT's names
    ffn = settings.get("intermediate_size", settings.get("hidden_dim"))
    sizes = (width, ffn)
    return sizes if all(type(size) is int and size > 0 for size in sizes) else MINILM


_MEASURED: dict[Path, Measurement] = {}  # so that a process measures once even if the cache cannot be written


def measurement(width: int, ffn: int, measure: bool = True) -> Measurement | None:
    """The measurement for an encoder of these sizes: a stored one, else a new one or, without `measure`, None."""
    path = cache_file(width, ffn)
    if path not in _MEASURED:
        found = read_measurement(path, width, ffn)
        if found is None:
            if not measure:
                return None
            found = measured_alone(path, width, ffn)
        _MEASURED[path] = found
    return _MEASURED[path]


def cache_file(width: int, ffn: int) -> Path:
    """The cache file for these sizes, this CPU and torch: machines that share a folder have separate files."""
    release = torch_version()
    digest = hashlib.sha256(f"{cpu_kind()}\0{release}".encode()).hexdigest()[:8]
    return CACHE / f"{width}x{ffn}-torch-{re.sub(r'[^A-Za-z0-9.]+', '-', release)}-{digest}.json"


@functools.cache
def torch_version() -> str:
    return version("torch")


def read_measurement(path: Path, width: int, ffn: int) -> Measurement | None:
    """The stored measurement. None if it is absent, broken, or of another machine or format; it is then repeated."""
    try:
        found = build(Measurement, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, UserError):
        return None
    asked = (cpu_kind(), torch_version(), width, ffn, FORMAT)
    return found if (found.cpu, found.torch, found.width, found.ffn, found.format) == asked else None


def measured_alone(path: Path, width: int, ffn: int) -> Measurement:
    """Measure and store the result. Of several simultaneous processes, one measures and the others read.

    Raises: UserError: If the measurement fails, or cannot be stored for the other processes of the run.
    """
    with one_at_a_time(path.parent):
        found = read_measurement(path, width, ffn)
        if found is None:
            found = run_probe(width, ffn)
            try:
                write_atomically(path, json.dumps(dataclasses.asdict(found)).encode())
            except UserError as error:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    raise UserError(f"{error}; with several processes, state train.precision=fp32 or bf16") from error
    return found


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Admit one process at a time, if the folder is writable. The kernel frees the lock of a dead process."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_probe(width: int, ffn: int) -> Measurement:
    """Measure in a separate process, which loads torch and has one thread.

    Raises: UserError: If the measurement fails.
    """
    command = [sys.executable, "-m", "lora.training.precision_probe", str(width), str(ffn)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=True, timeout=PROBE_SECONDS,
        )  # fmt: skip
        return build(Measurement, json.loads(done.stdout))
    except (OSError, ValueError, UserError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        reason = said[-1] if said else first_line(error)
        raise UserError(
            f"cannot measure which precision is faster here: {reason}; state train.precision=fp32 or bf16"
        ) from error


def machine_choices(results: str) -> list[object]:
    """The state of this machine and of results by which each `auto` is chosen. Equal lists give equal answers.

    Whether this machine has a GPU is not among it.
    """
    measured = [(path, found.precision) for path, found in _MEASURED.items()]
    for path in sorted(CACHE.glob("*.json")) if cpu_flags() & BF16_FLAGS else ():
        width, _, ffn = path.name.partition("-")[0].partition("x")
        if width.isdecimal() and ffn.isdecimal() and path == cache_file(int(width), int(ffn)):
            found = measurement(int(width), int(ffn), measure=False)
            measured += [] if found is None else [(path, found.precision)]
    kept = [
        [(*key, value) for key, (value, _) in sorted(recorded(results, setting).items())]
        for setting in (KERNELS, ATTENTION, PRECISION)
    ]
    return [cpu_kind(), torch_version(), sorted({(path.name, precision) for path, precision in measured}), kept]
