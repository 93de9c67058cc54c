"""Simulated machines: their GPUs, the flags that a CPU lists, and the precision that was measured to be faster."""

import os
from dataclasses import dataclass

from lora.config import auto
from lora.sweep import pool
from lora.sweep.pool import VISIBLE
from lora.sweep.worker import Job


@dataclass(frozen=True)
class SpyJob(Job):
    """A job without runs, which writes down the GPUs that the worker sees that receives it."""

    path: str

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        with open(self.path, "a") as file:
            file.write(f"{os.environ[VISIBLE]}\n")


@dataclass(frozen=True)
class GPU:
    """What torch says about a GPU. Compute capability 8 is the first with bfloat16 products."""

    total_memory: float = 2**40
    major: int = 8


def with_gpus(monkeypatch, *gpus: GPU) -> None:
    for module in (auto, pool):
        monkeypatch.setattr(module, "gpus", lambda: gpus)


def inject(monkeypatch, precision: str) -> None:
    """Simulate a CPU that lists bf16 and on which `precision` was measured to be faster, for every encoder."""
    monkeypatch.setattr(auto, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(auto, "faster_precision", lambda width, ffn: precision)
