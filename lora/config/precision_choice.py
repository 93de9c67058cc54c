"""Which precision `train.precision=auto` stands for: measured once per CPU, torch and encoder. No torch here.

A CPU's flags do not tell: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast in them as in
float32, and the other more slowly. The choice names a run, so it is made before anything is trained.
"""

import collections
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
from lora.config.run import ModelConfig
from lora.errors import UserError, first_line
from lora.files import ROOT, write_atomically
from lora.records.machine import BF16_FLAGS, cpu_flags, cpu_kind

FORMAT = 1
CACHE = ROOT / "outputs" / "cache" / "precision"
LEAST_GAIN = 1.15  # ours: below it, bf16 is not worth its rounding
MINILM = (384, 1536)  # what an encoder counts as whose files are absent: a run of it is refused with its own message
PROBE_SECONDS = 300  # what the measurement may take at most, with loading torch; it takes 5 on an idle machine


@dataclass(frozen=True)
class Measurement:
    """The matrix products of one layer of an encoder, forward and backward, in either precision.

    Args:
        cpu: As `lora.records.machine.cpu_kind` has it.
        torch: Its version.
        width, ffn: Of the encoder.
        fp32_ms, bf16_ms: Medians over interleaved repetitions: time of one thread on the CPU. bf16: None if torch has
            no such products here.
        gain: Median over the repetitions of the time in fp32 over that in bf16.
        low, high: Quartiles of the same.
        tries: How often it was measured: again where the repetitions disagreed on which precision to take.
        format: Of the file that keeps it.
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
        """What was measured, for a user."""
        if self.bf16_ms is None:
            return "torch has no bf16 products on this CPU"
        again = "remove outputs/cache/precision to measure again"
        doubt = "" if self.clear else f"; not clear after {self.tries} tries, as on a busy machine: {again}"
        return (
            f"measured on this CPU: a layer's products of {self.width} x {self.ffn} take {self.bf16_ms:.3g} ms in bf16 "
            f"and {self.fp32_ms:.3g} in fp32{doubt}"
        )


def agreed(low: float, high: float) -> bool:
    """Whether both quartiles of the gain speak for the same precision."""
    return (low >= LEAST_GAIN) == (high >= LEAST_GAIN)


def choose_precision(
    model: ModelConfig, kernels: str, device: str, results: str, measure: bool = True
) -> tuple[str, str] | None:
    """The precision for an encoder here; and why, as words for a user.

    Runs of the same encoder and kernels in the results folder keep theirs, so that a resumed sweep does not change.
    Else it is bf16 on a GPU that has it, and on a CPU where it was measured to be faster.

    Args:
        kernels: `fused` or `stock`.
        device: `runtime.device`.
        results: `runtime.results`.
        measure: Measure what was not measured before, which takes seconds.
    Returns: None if it was not measured, and is not to be.
    Raises: UserError: If it cannot be measured.
    """
    kept = recorded(results).get((model.name, kernels))
    if kept is not None:
        precision, count = kept
        return precision, f"as the {count} run{'s' * (count > 1)} in {results}"
    if takes_gpu(kernels, device):
        return ("bf16", "the GPU has it") if gpu_has_bf16() else ("fp32", "the GPU has no bf16")
    if not cpu_flags() & BF16_FLAGS:
        return "fp32", "the CPU has no bf16 instructions"
    if model.source == "hub":
        return "fp32", "the encoder's width is not known before it is downloaded"
    found = measurement(*encoder_sizes(model), measure)
    return None if found is None else (found.precision, found.words)


def encoder_sizes(model: ModelConfig) -> tuple[int, int]:
    """Width of an encoder and of its feed-forward layers; MiniLM's where its files do not tell."""
    settings = read_settings(model)
    width = settings.get("hidden_size", settings.get("dim"))  # DistilBERT's names are the others
    ffn = settings.get("intermediate_size", settings.get("hidden_dim"))
    sizes = (width, ffn)
    return sizes if all(type(size) is int and size > 0 for size in sizes) else MINILM


def recorded(results: str) -> dict[tuple[str, str], tuple[str, int]]:
    """(encoder, kernels) -> the precision of most finished runs in a results folder, and how many they are.

    Of two precisions with as many runs, the one that came first.
    """
    runs = Path(results) / "runs"
    try:
        return _recorded(runs.resolve(), (runs.stat().st_mtime_ns, len(os.listdir(runs))))
    except OSError:
        return {}


@functools.lru_cache(maxsize=64)
def _recorded(runs: Path, changed: tuple[int, int]) -> dict[tuple[str, str], tuple[str, int]]:
    """
    Args:
        changed: When a file came or went there, and how many there are: the clock of a file system is coarse.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)
    for path in runs.glob("*.json"):
        # a file that is no record is reported where records are read
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(path.read_bytes())
            config, train = content["config"], content["config"]["train"]
            if content["status"] == "ok" and train["precision"] in ("fp32", "bf16"):
                key = str(config["model"]["name"]), str(train["kernels"])
                found[key].append((str(content["started_at"]), train["precision"]))
    kept = {}
    for key, precisions in found.items():
        counts = collections.Counter(precision for _, precision in sorted(precisions))
        kept[key] = counts.most_common(1)[0]  # of equals, the first that was counted
    return kept


_MEASURED: dict[Path, Measurement] = {}  # where the cache cannot be written, one process measures once


def measurement(width: int, ffn: int, measure: bool = True) -> Measurement | None:
    """What was measured for an encoder of these sizes, by this process or an earlier one; else what is measured now."""
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
    """By CPU, torch and encoder: machines that share a folder keep theirs apart."""
    release = torch_version()
    digest = hashlib.sha256(f"{cpu_kind()}\0{release}".encode()).hexdigest()[:8]
    return CACHE / f"{width}x{ffn}-torch-{re.sub(r'[^A-Za-z0-9.]+', '-', release)}-{digest}.json"


@functools.cache
def torch_version() -> str:
    return version("torch")


def read_measurement(path: Path, width: int, ffn: int) -> Measurement | None:
    """None if there is none, or it is broken or of another format: it is then measured anew."""
    try:
        found = build(Measurement, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, UserError):
        return None
    asked = (cpu_kind(), torch_version(), width, ffn, FORMAT)
    return found if (found.cpu, found.torch, found.width, found.ffn, found.format) == asked else None


def measured_alone(path: Path, width: int, ffn: int) -> Measurement:
    """Measure, and keep it. Of several processes that ask at once, one measures and the others read.

    Raises: UserError: If it cannot be measured; or if the processes of one run could not be told of it.
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
    """Where the folder can be written; the kernel lets go when a holder dies."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_probe(width: int, ffn: int) -> Measurement:
    """Measure in a process of its own, which loads torch and has one thread.

    Raises: UserError: If that fails.
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


def machine_precisions(results: str) -> list[object]:
    """What `choose_precision` answers by, other than the encoder: the same list, the same answers."""
    measured = [(path, found.precision) for path, found in _MEASURED.items()]
    for path in sorted(CACHE.glob("*.json")) if cpu_flags() & BF16_FLAGS else ():
        width, _, ffn = path.name.partition("-")[0].partition("x")
        if width.isdecimal() and ffn.isdecimal() and path == cache_file(int(width), int(ffn)):
            found = measurement(int(width), int(ffn), measure=False)
            measured += [] if found is None else [(path, found.precision)]
    kept = [(*key, precision) for key, (precision, _) in sorted(recorded(results).items())]
    return [cpu_kind(), torch_version(), sorted({(path.name, precision) for path, precision in measured}), kept]
