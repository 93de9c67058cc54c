"""Simulated machines: the flags that a CPU lists, and the measurement of its precisions."""

import os
from dataclasses import dataclass

from lora.config import kernel_choice
from lora.config.precision_choice import Measurement
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


GAINS = {"bf16": 2.0, "fp32": 0.7}  # bf16's speed-up over fp32, by the faster precision


def measured(precision: str) -> Measurement:
    """A measurement that chooses `precision`."""
    return Measurement(fp32_ms=10.0, bf16_ms=10 / GAINS[precision], gain=GAINS[precision])


def inject(monkeypatch, precision: str) -> None:
    """Simulate a CPU that lists bf16 and on which `precision` was measured to be faster, for every encoder."""
    monkeypatch.setattr(kernel_choice, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(kernel_choice, "measure", lambda width, ffn: measured(precision))
