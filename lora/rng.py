"""Every random draw has a generator of its own, named by what it is for."""

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def shuffled(count: int, *purpose: str | int) -> np.ndarray:
    """A random order of `range(count)`, named by what it is for; it touches no other generator.

    The order is that of the generator's raw draws: NumPy promises those to stay, and `permutation` it does not.
    """
    return np.argsort(_raw(count, *purpose), kind="stable")


def drawn(shape: tuple[int, ...], below: int, *purpose: str | int) -> np.ndarray:
    """Whole numbers in `range(below)`, drawn with replacement from a generator named by what they are for.

    Raw draws, as in `shuffled`; 64 bits modulo a few thousand are even to one part in 10^15.
    """
    return (_raw(math.prod(shape), *purpose) % np.uint64(below)).astype(np.intp).reshape(shape)


def _raw(count: int, *purpose: str | int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(":".join(map(str, purpose)).encode()).digest()[:16], "big")
    return np.random.PCG64(seed).random_raw(count)


def gaussian(shape: tuple[int, ...], *purpose: str | int) -> np.ndarray:
    """Normal numbers from a generator named by what they are for: Box and Muller's transform of its raw draws."""
    count = math.prod(shape)
    uniform = (_raw(2 * count, *purpose) >> np.uint64(11)) / 2.0**53
    radius = np.sqrt(-2 * np.log1p(-uniform[:count]))
    return (radius * np.cos(2 * math.pi * uniform[count:])).reshape(shape)


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a run; other purposes, present or not, do not change it."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> "torch.Generator":
    import torch  # planning and tables draw orders, and never load it

    return torch.Generator().manual_seed(seed_for(seed, *purpose))
