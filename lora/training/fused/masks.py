"""Dropout masks from a counter-based hash of seed, step, site, example and place.

A mask is independent of padding, of the other examples in the batch, of the number of processes, and of earlier draws.
The backward pass recomputes it instead of storing it.
"""

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt32


@dataclass(frozen=True)
class Site:
    """One dropout operation of a forward pass.

    Args:
        keys: Two 32-bit keys per example.
        threshold: A place is kept if its hash is at least the threshold, which rounds p to a multiple of 2^-32.
        scale: 1 / (1 - p).
    """

    keys: UInt32[np.ndarray, "batch 2"]
    threshold: int
    scale: float


class Masks:
    """The keys of every dropout operation of a model, set by `begin` for a batch."""

    def __init__(self, seed: int):
        self.seed = seed
        self.rows: np.ndarray | None = None
        self.calls: Counter[str] = Counter()

    def begin(self, step: int, rows: np.ndarray) -> None:
        """Start a forward pass over the examples `rows`, given by their indices in the train split."""
        self.calls.clear()
        self.rows = _mix64(_mix64(rows.astype(np.uint64)) ^ np.uint64(_number(f"{self.seed}:{step}")))

    def site(self, name: str, p: float, batch: int) -> Site:
        """
        Raises: RuntimeError: If `begin` was not called for this batch, which is a bug in the caller.
        """
        if self.rows is None or len(self.rows) != batch:
            raise RuntimeError(f"dropout of {batch} rows without Masks.begin for them")
        keys = _mix64(self.rows + np.uint64(_number(name)))
        return Site(keys.view(np.uint32).reshape(-1, 2), round(p * 2**32), 1 / (1 - p))

    def called(self, name: str) -> str:
        """The name of this call of a module. RoBERTa's head calls its dropout twice, which must draw two masks."""
        self.calls[name] += 1
        return name if self.calls[name] == 1 else f"{name}, call {self.calls[name]}"


@functools.lru_cache(maxsize=1024)
def _number(name: str) -> int:
    """A 64-bit hash of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _mix64(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
