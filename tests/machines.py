"""Machines that are not this one: what a CPU lists, and what was measured on it."""

from lora.config import precision_choice
from lora.config.precision_choice import MINILM, Measurement

GAINS = {"bf16": 2.0, "fp32": 0.7}  # of bf16, where the precision is the faster one


def measured(precision: str, width: int = MINILM[0], ffn: int = MINILM[1], **others) -> Measurement:
    """A measurement that chooses `precision`."""
    gain = GAINS[precision]
    values = {"cpu": "a CPU", "torch": "2", "fp32_ms": 10.0, "bf16_ms": 10 / gain, "tries": 1}
    return Measurement(**values | {"width": width, "ffn": ffn, "gain": gain, "low": gain, "high": gain} | others)


def inject(monkeypatch, precision: str) -> None:
    """A CPU that lists bf16, on which `precision` was measured to be the faster one, for every encoder."""
    monkeypatch.setattr(precision_choice, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(precision_choice, "cpu_kind", lambda: f"a CPU that is faster in {precision}")
    monkeypatch.setattr(
        precision_choice, "measurement", lambda width, ffn, measure=True: measured(precision, width, ffn)
    )
