"""Resolve each `auto` (kernels, attention, precision) before a run is named. Torch is loaded only to ask for GPUs.

A CPU's flags do not decide its precision: of two CPUs with the same bfloat16 instructions, one multiplies twice as fast
in bfloat16 as in float32, the other more slowly. So it is measured. The choice names a run, so a launch keeps it in the
plan of its results.
"""

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from lora.checks import build
from lora.config.encoder_files import locate
from lora.config.plan import Choice, locked, read_plan, write_plan
from lora.config.run import ModelConfig, RunConfig, needs_stock
from lora.errors import UserError, first_line
from lora.files import ROOT, read_object
from lora.records.provenance import BF16_FLAGS, cpu_flags

FUSED_ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")
BF16_CAPABILITY = 8  # lowest major compute capability of a GPU that multiplies in bfloat16 (Ampere)
FUSED_POSITIONS = 1024  # as in `lora.training.fused.kernels`, which planning does not load
MINILM_SIZES = (384, 1536)  # sizes assumed if an encoder's files are absent: its run is refused with a separate message
LEAST_GAIN = 1.15  # ours: a smaller gain is not worth bf16's rounding
# how a precision that no plan has is found: measured and kept in the plan, measured, or taken to be fp32
Measure = Literal["kept", "measured", "assumed"]
PROBE_SECONDS = 300  # limit of the measurement, loading torch included; it takes 5 on an idle machine


def resolve_auto(
    method: Mapping[str, Any],
    model: dict[str, Any],
    train: dict[str, Any],
    runtime: Mapping[str, Any],
    gpu_jobs: bool,
    measure: Measure = "measured",
) -> None:
    """Replace `auto` in the sections of a run, in place.

    The plan of the results folder decides first, so that a sweep that is resumed on another machine stays the same.
    Otherwise, this machine decides.

    Args:
        gpu_jobs: Whether the launcher gives each job a GPU, which the machine that launches may lack.
    Raises: UserError: If the precision must be measured and cannot be.
    """
    asked = {"kernels": train["kernels"], "attention": model["attention"], "precision": train["precision"]}
    stated = {key: value for key, value in asked.items() if value != "auto"}
    if stated == asked:
        return
    device = runtime["device"]
    stock = needs_stock(method)
    if stock:
        stated = {"kernels": "stock"} | stated
    encoder = build(ModelConfig, {**model, "attention": stated.get("attention", "eager")}, "model.")
    gpu = device == "cuda" or (device == "auto" and (gpu_jobs or bool(gpus())))

    def fits(choice: Choice) -> bool:
        idle_gpu = choice.kernels == "fused" and (device == "cuda" or gpu_jobs)  # fused kernels compute on the CPU
        same = (choice.model, choice.stock) == (encoder.name, stock)
        return same and not idle_gpu and stated.items() <= asdict(choice).items()

    results = Path(str(runtime["results"]))
    chosen = next(filter(fits, read_plan(results).choices), None)
    if chosen is None:
        uncovered = gpu or encoder.source == "hub" or not_covered(encoder)
        kernels = stated.get("kernels") or ("stock" if uncovered else "fused")
        gpu &= kernels != "fused"
        attention = stated.get("attention") or ("sdpa" if gpu else "eager")
        precision = stated.get("precision") or known_precision(encoder, gpu)
        if measure == "assumed":
            precision = precision or "fp32"
        chosen = Choice(encoder.name, stock, kernels, attention, precision or "fp32")
        if precision is None and measure == "measured":
            chosen = replace(chosen, precision=faster_precision(*encoder_sizes(encoder)))
        elif precision is None:
            with locked(results) as plan:  # of several processes, one measures and the others read
                kept = next(filter(fits, plan.choices), None)
                chosen = kept or replace(chosen, precision=faster_precision(*encoder_sizes(encoder)))
                write_plan(results, replace(plan, choices=tuple(dict.fromkeys((*plan.choices, chosen)))))
    settled = asdict(chosen) | stated
    train.update(kernels=settled["kernels"], precision=settled["precision"])
    model.update(attention=settled["attention"])


def known_precision(encoder: ModelConfig, gpu: bool) -> str | None:
    """The precision that needs no measurement: that of a GPU, of a CPU without bfloat16's instructions, and of an
    encoder of the hub, whose width is unknown before its download. None if it must be measured."""
    if gpu:
        return "bf16" if gpus_have_bf16() else "fp32"
    return None if cpu_flags() & BF16_FLAGS and encoder.source != "hub" else "fp32"


@functools.cache
def faster_precision(width: int, ffn: int) -> str:
    """The precision that is faster on this CPU. Raises: UserError: If the measurement fails."""
    print("measuring which precision is faster on this CPU ...", file=sys.stderr, flush=True)
    try:
        return "bf16" if run_probe(width, ffn) >= LEAST_GAIN else "fp32"
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        last = (getattr(error, "stderr", None) or first_line(error)).strip().splitlines()[-1]
        if last == "KeyboardInterrupt":  # Ctrl-C reaches the measuring process too
            raise KeyboardInterrupt from error
        raise UserError(
            f"cannot measure which precision is faster here: {last}; state train.precision=fp32 or bf16"
        ) from error


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
    return sizes if all(isinstance(size, int) and size > 0 for size in sizes) else MINILM_SIZES


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
        f"model type {kind}, not one of {', '.join(FUSED_ARCHITECTURES)}": kind not in FUSED_ARCHITECTURES,
        f"activation {activation}, not gelu": activation != "gelu",
        f"more than {FUSED_POSITIONS} positions": settings.get("max_position_embeddings", 512) > FUSED_POSITIONS,
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
