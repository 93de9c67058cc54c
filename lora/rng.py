"""Random draws. Each has a separate generator, named by its purpose, so that no draw affects another."""

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def shuffled(count: int, *purpose: str | int) -> np.ndarray:
    """A random order of `range(count)` for one purpose.

    It sorts the generator's raw draws. NumPy guarantees these across releases, but not the result of `permutation`.
    """
    return np.argsort(_raw(count, *purpose), kind="stable")


def _raw(count: int, *purpose: str | int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(":".join(map(str, purpose)).encode()).digest()[:16], "big")
    return np.random.PCG64(seed).random_raw(count)


def gaussian(shape: tuple[int, ...], *purpose: str | int) -> np.ndarray:
    """Standard normal numbers for one purpose: the Box-Muller transform of raw draws."""
    count = math.prod(shape)
    uniform = (_raw(2 * count, *purpose) >> np.uint64(11)) / 2.0**53
    radius = np.sqrt(-2 * np.log1p(-uniform[:count]))
    return (radius * np.cos(2 * math.pi * uniform[count:])).reshape(shape)


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a run, independent of the run's other purposes."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> "torch.Generator":
    """A CPU generator of torch with the seed of one purpose."""
    import torch  # imported late, because planning and tables also draw orders, without torch

    return torch.Generator().manual_seed(seed_for(seed, *purpose))
