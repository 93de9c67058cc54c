"""Which kernels and attention `auto` stands for. No torch here: they name a run, and loading torch takes seconds."""

import ctypes
import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora.config.encoder_files import locate
from lora.config.run import ModelConfig
from lora.errors import UserError

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")
BF16_CAPABILITY = 8  # CUDA's compute capability, major number, from which a GPU multiplies in bfloat16 (Ampere)
MAJOR_CAPABILITY = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the driver's cuda.h
MAX_TOKENS = 1024  # that of `lora.training.fused.kernels`, which planning does not load


def choose_kernels(model: ModelConfig, device: str) -> tuple[str, str]:
    """`fused` on a CPU where they cover the encoder, else `stock`; and why, as words for a user.

    An encoder of the hub takes `stock`: its architecture is not known before it is downloaded, and the choice names
    the run. One whose files are absent counts as covered: a run of it is refused with a message of its own.

    Args:
        device: `runtime.device`.
    """
    if takes_gpu("stock", device):
        return "stock", "for the GPU; runtime.device=cpu would take the CPU"
    if model.source == "hub":
        return "stock", "transformers' own modules"
    reason = not_covered(read_settings(model))
    if reason is not None:
        return "stock", f"fused kernels do not cover {reason}"
    return "fused", "compiled, for the CPU"


def takes_gpu(kernels: str, device: str) -> bool:
    """Whether a run with these kernels computes on a GPU here, for a value of `runtime.device`."""
    return kernels != "fused" and (device == "cuda" or (device == "auto" and has_gpu()))


def choose_attention(kernels: str, device: str) -> str:
    """transformers' implementation: sdpa on a GPU; eager on a CPU, where it is the faster with attention dropout."""
    return "sdpa" if takes_gpu(kernels, device) else "eager"


def read_settings(model: ModelConfig) -> dict[str, Any]:
    """A local encoder's config.json. {} if there is none to read."""
    try:
        settings = json.loads((Path(locate(model)[0]) / "config.json").read_bytes())
    except (UserError, OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def not_covered(settings: Mapping[str, Any]) -> str | None:
    """Why the fused kernels do not compute an encoder. None if they do.

    Args:
        settings: Its config.json, or the same as transformers completes it. A value that is not stated is
            transformers' default for the covered architectures, which all of them cover.
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
    """Whether torch would find a CUDA device here: it is built for them, and the driver has one for this process."""
    return built_for_cuda() and visible_gpus() > 0


def built_for_cuda() -> bool:
    """Whether the installed torch is, by its file of versions. True if there is no telling."""
    package = importlib.util.find_spec("torch")
    version = Path(package.origin).with_name("version.py") if package and package.origin else None
    try:
        return re.search(r"^cuda\b[^=\n]*= *None", version.read_text(), re.MULTILINE) is None
    except (AttributeError, OSError):
        return True


def visible_gpus() -> int:
    """Number of devices that CUDA's driver shows to this process (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    return ask_driver(lambda driver, answer: driver.cuDeviceGetCount(answer), ctypes.c_int) or 0


def gpu_has_bf16() -> bool:
    """Whether the first GPU multiplies in bfloat16 by itself; False if there is no telling."""

    def ask(driver: ctypes.CDLL, answer: Any) -> int:
        return driver.cuDeviceGetAttribute(answer, MAJOR_CAPABILITY, 0)  # devices are numbered as the driver shows them

    return (ask_driver(ask, ctypes.c_int) or 0) >= BF16_CAPABILITY


def gpu_memory() -> int | None:
    """Bytes of the first GPU, used or not. None without one."""
    return ask_driver(lambda driver, answer: driver.cuDeviceTotalMem_v2(answer, 0), ctypes.c_size_t)


def ask_driver(ask: Callable[[ctypes.CDLL, Any], int], kind: type) -> int | None:
    """An answer of CUDA's driver, which is loaded without torch.

    Args:
        ask: Calls the driver with the address of the answer. Returns: Its error code.
        kind: C's type of the answer.
    Returns: None without a driver, or where it has none.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        answer = kind()
        found = driver.cuInit(0) == 0 and ask(driver, ctypes.byref(answer)) == 0
    except (OSError, AttributeError):
        return None
    return answer.value if found else None
