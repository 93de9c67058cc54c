"""Resolve each `auto` (kernels, attention, precision) before a run is named. Torch is loaded only to ask for GPUs.

A CPU's flags do not decide its precision: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast
in bfloat16 as in float32, the other more slowly. So it is measured, once per CPU, torch and width. The choice names a
run, so the measurement is kept in a file.
"""

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora.checks import build
from lora.config.encoder_files import locate
from lora.config.run import ModelConfig, RunConfig
from lora.errors import UserError, first_line
from lora.files import ROOT, read_object, write_atomically
from lora.records.provenance import BF16_FLAGS, cpu_flags, cpu_kind
from lora.records.record import load_records

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")
BF16_CAPABILITY = 8  # lowest major compute capability of a GPU that multiplies in bfloat16 (Ampere)
MAX_TOKENS = 1024  # as in `lora.training.fused.kernels`, which planning does not load
MINILM = (384, 1536)  # sizes assumed if an encoder's files are absent: its run is refused with a separate message
CACHE = ROOT / "outputs" / "cache" / "precision"
LEAST_GAIN = 1.15  # ours: a smaller gain is not worth bf16's rounding
PROBE_SECONDS = 300  # limit of the measurement, loading torch included; it takes 5 on an idle machine


def resolve_auto(
    method: Mapping[str, Any], model: dict[str, Any], train: dict[str, Any], runtime: Mapping[str, Any], gpu_jobs: bool
) -> None:
    """Replace `auto` in the sections of a run, in place.

    The finished runs of the same encoder in the results folder decide first, so that a sweep that is resumed on another
    machine stays the same. Otherwise, this machine decides.

    Args:
        gpu_jobs: Whether the launcher gives each job a GPU, which the machine that launches may lack.
    Raises: UserError: If the precision must be measured and cannot be.
    """
    asked = (train.get("kernels"), model.get("attention"), train.get("precision"))
    if "auto" not in asked:
        return
    device, stock = runtime.get("device"), needs_stock(method)
    defaults = ("stock" if stock else None, None, None)
    stated = tuple(default if value == "auto" else value for value, default in zip(asked, defaults, strict=True))
    encoder = build(ModelConfig, {**model, "attention": stated[1] or "eager"}, "model.")
    gpu = device == "cuda" or (device == "auto" and (gpu_jobs or bool(gpus())))
    for chosen in recorded(str(runtime.get("results")), encoder.name, stock):
        idle_gpu = chosen[0] == "fused" and (device == "cuda" or gpu_jobs)  # fused kernels compute on the CPU
        if not idle_gpu and all(value in (None, kept) for value, kept in zip(stated, chosen, strict=True)):
            break
    else:
        kernels = stated[0] or ("stock" if gpu or encoder.source == "hub" or not_covered(encoder) else "fused")
        gpu &= kernels != "fused"
        chosen = (kernels, "sdpa" if gpu else "eager", stated[2] or best_precision(encoder, gpu))
    values = [given or found for given, found in zip(stated, chosen, strict=True)]
    train["kernels"], model["attention"], train["precision"] = values


def needs_stock(method: Mapping[str, Any]) -> bool:
    """Whether the fused kernels lack a method: DoRA and those of PEFT."""
    return bool(method.get("dora")) or method.get("name") == "peft"


def recorded(results: str, encoder: str, stock: bool) -> list[tuple[str, str, str]]:
    """The kernels, attention and precision of an encoder's finished runs in a folder, the most frequent first."""
    runs = Path(results) / "runs"
    try:  # a file system's clock is coarse, so the number of entries tells too
        counts = _recorded(runs.resolve(), runs.stat().st_mtime_ns, len(os.listdir(runs)))
    except OSError:
        return []
    return [choice for (*key, choice), _ in counts.most_common() if key == [encoder, stock]]


@functools.lru_cache(maxsize=16)
def _recorded(runs: Path, *changed: int) -> Counter:
    counts: Counter = Counter()
    for record in load_records(runs.parent)[0]:  # a file that is not a record is reported where records are read
        model, train, method = (record.config[section] for section in ("model", "train", "method"))
        if record.status == "ok":
            choice = (train.get("kernels"), model.get("attention"), train.get("precision"))
            counts[model["name"], needs_stock(method), choice] += 1
    return counts


def best_precision(encoder: ModelConfig, gpu: bool) -> str:
    """bf16 on a GPU of this machine that has it, and on a CPU where it was measured to be faster."""
    if gpu:
        return "bf16" if gpus_have_bf16() else "fp32"
    if not cpu_flags() & BF16_FLAGS or encoder.source == "hub":  # a hub encoder's width is unknown before its download
        return "fp32"
    return faster_precision(*encoder_sizes(encoder))


@functools.cache
def faster_precision(width: int, ffn: int) -> str:
    """The precision by the kept measurement, or a new one. Of several processes, one measures and the others read.

    Raises: UserError: If the measurement fails, or cannot be kept: another process might choose otherwise.
    """
    digest = hashlib.sha256(f"{cpu_kind()}\0{version('torch')}".encode()).hexdigest()[:8]
    path = CACHE / f"{width}x{ffn}-{digest}.json"
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                gain = float(json.loads(path.read_bytes())["gain"])
            except (OSError, ValueError, TypeError, KeyError):  # none, or a broken one
                print("measuring which precision is faster on this CPU ...", file=sys.stderr, flush=True)
                gain = run_probe(width, ffn)
                write_atomically(path, json.dumps({"gain": gain}).encode())
    except (OSError, ValueError, UserError, subprocess.SubprocessError) as error:
        last = (getattr(error, "stderr", None) or first_line(error)).strip().splitlines()[-1]
        if last == "KeyboardInterrupt":  # Ctrl-C reaches the measuring process too
            raise KeyboardInterrupt from error
        raise UserError(
            f"cannot measure which precision is faster here: {last}; state train.precision=fp32 or bf16"
        ) from error
    return "bf16" if gain >= LEAST_GAIN else "fp32"


def run_probe(width: int, ffn: int) -> float:
    """bf16's speed-up over fp32, measured in a separate process, which loads torch and has one thread."""
    command = [sys.executable, "-m", "lora.training.precision_probe", str(width), str(ffn)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return float(
        subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=PROBE_SECONDS
        ).stdout
    )


def takes_gpu(config: RunConfig) -> bool:
    """Whether a run computes on a GPU of this machine."""
    device = config.runtime.device
    return config.train.kernels != "fused" and (device == "cuda" or (device == "auto" and bool(gpus())))


def check_device(config: RunConfig) -> None:
    """Raises: UserError: If the run asks for a GPU, and this machine has none."""
    if config.runtime.device == "cuda" and not gpus():
        raise UserError("runtime.device=cuda needs a GPU, and torch finds none here: use runtime.device=auto or cpu")


def read_settings(model: ModelConfig) -> dict[str, Any]:
    """A local encoder's config.json; {} if it cannot be read."""
    try:
        return read_object(Path(locate(model)[0]) / "config.json")
    except UserError:
        return {}


def encoder_sizes(model: ModelConfig) -> tuple[int, int]:
    """Widths of an encoder and of its feed-forward layers; MiniLM's if its files do not state them."""
    settings = read_settings(model)
    width = settings.get("hidden_size", settings.get("dim"))  # the alternatives are DistilBERT's names
    sizes = (width, settings.get("intermediate_size", settings.get("hidden_dim")))
    return sizes if all(isinstance(size, int) and size > 0 for size in sizes) else MINILM


def not_covered(model: ModelConfig | Mapping[str, Any]) -> str | None:
    """The reasons why the fused kernels do not cover an encoder; None if they do.

    Args:
        model: The encoder, or its config.json as stored or as completed by transformers. A missing value is
            transformers' default for the covered architectures, and the kernels cover it. An encoder whose files are
            absent counts as covered: its run is refused with a separate message.
    """
    settings = read_settings(model) if isinstance(model, ModelConfig) else model
    kind, activation = settings.get("model_type", "bert"), settings.get("hidden_act", "gelu")
    reasons = {
        f"model type {kind}, not one of {', '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
        f"activation {activation}, not gelu": activation != "gelu",
        f"more than {MAX_TOKENS} positions": settings.get("max_position_embeddings", 512) > MAX_TOKENS,
        "a decoder": settings.get("is_decoder", False),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds) or None


@functools.cache
def gpus() -> tuple[Any, ...]:
    """Torch's properties of each GPU that this process sees. Torch is loaded only where CUDA's driver is installed."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    from torch import cuda

    return tuple(map(cuda.get_device_properties, range(cuda.device_count())))


def gpus_have_bf16() -> bool:
    """Whether this machine has GPUs, and all multiply in bfloat16."""
    return bool(gpus()) and all(gpu.major >= BF16_CAPABILITY for gpu in gpus())
