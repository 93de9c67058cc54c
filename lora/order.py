"""Seeded orders of rows that stay the same over releases of NumPy."""

import hashlib

import numpy as np


def shuffled(count: int, *purpose: str | int) -> np.ndarray:
    """A random order of `range(count)`, named by what it is for; it touches no other generator.

    The order is that of the generator's raw draws: NumPy promises those to stay, and `permutation` it does not.
    """
    seed = int.from_bytes(hashlib.sha256(":".join(map(str, purpose)).encode()).digest()[:16], "big")
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
