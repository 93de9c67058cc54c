"""Resolve `auto` for kernels and attention, without torch: the values name a run, and torch takes seconds to load."""

import ctypes
import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora.config.encoder_files import locate
from lora.config.recorded import ATTENTION, KERNELS, as_recorded, recorded
from lora.config.run import ModelConfig
from lora.errors import UserError

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")
BF16_CAPABILITY = 8  # lowest major compute capability of a GPU that multiplies in bfloat16 (Ampere)
MAJOR_CAPABILITY = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR in the driver's cuda.h
MAX_TOKENS = 1024  # as in `lora.training.fused.kernels`, which planning does not load


def choose_kernels(model: ModelConfig, device: str, results: str) -> tuple[str, str]:
    """`fused` on a CPU if they cover the encoder, else `stock`; and the reason, in words for the user.

    Finished runs of the same encoder in the results folder decide first, so that a resumed sweep does not change.

    An encoder from the hub takes `stock`: its architecture is unknown until it is downloaded, and the choice names the
    run. An encoder whose files are absent counts as covered: its run is refused with a separate message.

    Args:
        device: `runtime.device`. With `cuda`, recorded `fused` kernels, which compute on a CPU, are not kept.
        results: `runtime.results`.
    """
    kept, count = recorded(results, KERNELS).get((model.name,), (None, 0))
    if kept is not None and (kept, device) != ("fused", "cuda"):
        idle = "; train.kernels=stock would take the GPU" if kept == "fused" and takes_gpu("stock", device) else ""
        return kept, as_recorded(count, results) + idle
    if takes_gpu("stock", device):
        return "stock", "for the GPU; runtime.device=cpu would take the CPU"
    if model.source == "hub":
        return "stock", "transformers' own modules"
    reason = not_covered(read_settings(model))
    if reason is not None:
        return "stock", f"fused kernels do not cover {reason}"
    return "fused", "compiled, for the CPU"


def takes_gpu(kernels: str, device: str) -> bool:
    """Whether a run with these kernels and this `runtime.device` computes on a GPU."""
    return kernels != "fused" and (device == "cuda" or (device == "auto" and has_gpu()))


def choose_attention(model: ModelConfig, kernels: str, device: str, results: str) -> str:
    """transformers' implementation: sdpa on a GPU; eager on a CPU, where it is faster with attention dropout.

    Finished runs of the same encoder and kernels in the results folder decide first.
    """
    kept = recorded(results, ATTENTION).get((model.name, kernels))
    if kept is not None:
        return kept[0]
    return "sdpa" if takes_gpu(kernels, device) else "eager"


def read_settings(model: ModelConfig) -> dict[str, Any]:
    """A local encoder's config.json; {} if it cannot be read."""
    try:
        settings = json.loads((Path(locate(model)[0]) / "config.json").read_bytes())
    except (UserError, OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def not_covered(settings: Mapping[str, Any]) -> str | None:
    """The reasons why the fused kernels do not cover an encoder; None if they do.

    Args:
        settings: Its config.json, as stored or as completed by transformers. A missing value is transformers'
            default for the covered architectures, and the kernels cover it.
    """
    kind, activation = settings.get("model_type", "bert"), settings.get("hidden_act", "gelu")
    reasons = {
        f"model type {kind}, not one of {', '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
        f"activation {activation}, not gelu": activation != "gelu",
        f"more than {MAX_TOKENS} positions": settings.get("max_position_embeddings", 512) > MAX_TOKENS,
        "a decoder": settings.get("is_decoder", False),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds) or None


@functools.cache
def has_gpu() -> bool:
    """Whether torch finds a CUDA device: it is built for CUDA, and the driver shows a device to this process."""
    return built_for_cuda() and visible_gpus() > 0


def built_for_cuda() -> bool:
    """Whether the installed torch is built for CUDA, according to its version.py. True if unknown."""
    package = importlib.util.find_spec("torch")
    version = Path(package.origin).with_name("version.py") if package and package.origin else None
    try:
        return re.search(r"^cuda\b[^=\n]*= *None", version.read_text(), re.MULTILINE) is None
    except (AttributeError, OSError):
        return True


def visible_gpus() -> int:
    """Number of devices that CUDA's driver shows to this process (CUDA_VISIBLE_DEVICES applies); 0 without a driver."""
    return ask_driver(lambda driver, answer: driver.cuDeviceGetCount(answer), ctypes.c_int) or 0


def gpu_has_bf16() -> bool:
    """Whether the first GPU multiplies in bfloat16 natively; False if unknown."""

    def ask(driver: ctypes.CDLL, answer: Any) -> int:
        return driver.cuDeviceGetAttribute(answer, MAJOR_CAPABILITY, 0)  # 0: the first device that the driver shows

    return (ask_driver(ask, ctypes.c_int) or 0) >= BF16_CAPABILITY


def gpu_memory() -> int | None:
    """Total memory of the smallest GPU in bytes, used or not; None without a GPU."""

    def total(place: int) -> int | None:
        return ask_driver(lambda driver, answer: driver.cuDeviceTotalMem_v2(answer, place), ctypes.c_size_t)

    totals = [each for each in map(total, range(visible_gpus())) if each is not None]
    return min(totals, default=None)


def ask_driver(ask: Callable[[ctypes.CDLL, Any], int], kind: type) -> int | None:
    """Query CUDA's driver, which is loaded without torch.

    Args:
        ask: Calls the driver with the address of the answer, and returns its error code.
        kind: C type of the answer.
    Returns: The answer; None without a driver, or if the call fails.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        answer = kind()
        found = driver.cuInit(0) == 0 and ask(driver, ctypes.byref(answer)) == 0
    except (OSError, AttributeError):
        return None
    return answer.value if found else None
