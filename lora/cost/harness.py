"""What is measured of any subject on any device: time of steps and of served batches, bytes, and peak memory."""

import ctypes
import gc
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lora.cost.floor import floor_seconds, lora_step, sizes_of
from lora.cost.saved import checkpoint_bytes, saved_bytes
from lora.cost.subjects import Batch, Subject, clock_of, random_batch
from lora.cost.timing import interleave
from lora.errors import UserError, first_line
from lora.models.modules import count_parameters
from lora.training.usage import optimizer_bytes

T = TypeVar("T")
PEAK_STEPS = 3  # from the second on, the optimizer has its state
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def times(
    actions: Mapping[str, Callable[[Batch], object]], batches: Mapping[str, Batch], rounds: int, device: str, **how: Any
) -> dict[str, dict[str, list[float]]]:
    """Shape -> subject -> seconds of each round, in which every subject takes every batch once.

    Args:
        how: Further arguments of `interleave`.
    """
    work = {shape: {name: partial(act, batch) for name, act in actions.items()} for shape, batch in batches.items()}
    return interleave(work, rounds, clock=clock_of(device), **how)


def counts(subject: Subject, batches: Mapping[str, Batch]) -> dict[str, Any]:
    """The quantities that need no clock. Takes one step, so that the optimizer has a state to count."""
    parameters = count_parameters(subject.model)
    saved = {shape: saved_bytes(subject.model, partial(subject.loss, batch)) for shape, batch in batches.items()}
    subject.step(next(iter(batches.values())))
    return {
        "trainable": parameters["trainable_method"],
        "trainable_with_head": parameters["trainable_method"] + parameters["trainable_head"],
        "checkpoint_bytes": checkpoint_bytes(subject.model, with_head=True),
        "checkpoint_bytes_without_head": checkpoint_bytes(subject.model, with_head=False),
        "optimizer_bytes": optimizer_bytes(subject.optimizer),
        "saved_activation_bytes": {shape: kept.activations for shape, kept in saved.items()},
        "saved_cast_bytes": {shape: kept.casts for shape, kept in saved.items()},
    }


def floor_ms(model: nn.Module, shape: str, rank: int, precision: str, device: str) -> float | None:
    """Milliseconds of the matrix products that a LoRA step on Wq and Wv requires; None if sizes are unknown."""
    sizes = sizes_of(model)
    return None if sizes is None else 1000 * floor_seconds(lora_step(sizes, shape, rank), precision, device)


# Peak memory.


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, whose memory and settings are independent of this one's.

    Raises: UserError: If the process is killed; any error that the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a process that measures was killed, probably because memory ran out") from error


def peak(make: Callable[[], Subject], shape: str, seed: int, threads: int, device: str) -> dict[str, float] | None:
    """The memory of this process while it trains, without that of loading the encoder, in MiB.

    Returns: `peak_mib`: the peak of the whole process on a CPU, of torch's allocator on a GPU;
        `peak_above_libraries_mib`: on a CPU, without the memory of Python and torch. None if the system reports none.
    """
    torch.set_num_threads(threads)
    libraries = resident_mib("VmRSS")
    if device == "cpu" and libraries is None:
        return None
    subject = make()
    batch = random_batch(subject.model, shape, seed)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(PEAK_STEPS):
        subject.step(batch)
    if device == "cuda":
        used = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return {"peak_mib": used, "peak_above_libraries_mib": used}
    used = resident_mib("VmHWM")
    return {"peak_mib": round(used, 1), "peak_above_libraries_mib": round(used - libraries, 1)}


def resident_mib(key: str) -> float | None:
    """This process's resident memory, now (`VmRSS`) or at its peak (`VmHWM`); see proc(5). None if unknown.

    `getrusage` is unsuitable: its maximum starts at the memory that the parent process had when it started this one.
    """
    try:
        field = re.search(rf"^{key}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(field[1]) / 1024 if field else None


def reset_peak() -> None:
    """Return freed memory to the system and reset the peak to the memory that is resident now.

    Raises: UserError: If the system does not allow it.
    """
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET_PEAK.write_text("5")  # proc(5): reset the peak resident set size
    except OSError as error:
        raise UserError(f"cannot reset this process's peak memory by {RESET_PEAK}: {first_line(error)}") from error
