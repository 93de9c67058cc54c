"""Every random draw has a generator of its own, named by what it is for."""

import hashlib

import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a run; other purposes, present or not, do not change it."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, *purpose))
