"""The precision behind `train.precision=auto`: its measurement, and the file that keeps it."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from machines import inject, measured

from lora.config import kernel_choice, precision_choice
from lora.config.compose import compose_run
from lora.config.precision_choice import Measurement, measure, stored
from lora.errors import UserError
from lora.files import ROOT
from lora.records import machine
from lora.training import precision_probe
from lora.training.device import has_bf16
from lora.training.loop import run

REVIEWS = ("task=reviews", "method=lora", "seed=1", "runtime.results=/nowhere")
MINILM = (384, 1536)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, on a CPU that lists bf16 and in a process that has measured nothing."""
    monkeypatch.setattr(precision_choice, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(kernel_choice, "cpu_flags", lambda: {"avx512_bf16"})
    measure.cache_clear()
    yield tmp_path / "cache"
    measure.cache_clear()


@pytest.fixture
def probed(monkeypatch):
    """The sizes passed to a fake measurement, in which bf16 is the faster precision."""
    asked = []
    monkeypatch.setattr(precision_choice, "run_probe", lambda *sizes: asked.append(sizes) or measured("bf16"))
    return asked


def test_the_real_measurement_has_the_form_that_is_read(cache):
    """Its outcome is not tested: the machine may be busy."""
    real = measure(48, 96)
    assert real.fp32_ms > 0 and real.gain > 0 and (real.bf16_ms is not None) == has_bf16(gpu=False)
    assert stored(48, 96)[1] == real


def test_the_products_are_those_of_a_layer_forward_and_backward():
    """Torch's own counter against the shapes of Vaswani et al.: 2 (4 d^2 + 2 d f) each way, for every row."""
    from torch.utils.flop_counter import FlopCounterMode

    width, ffn = 12, 20
    with FlopCounterMode(display=False) as counter:
        precision_probe.layer_products(width, ffn, torch.float32)()
    assert counter.get_total_flops() == 2 * 2 * precision_probe.ROWS * (4 * width**2 + 2 * width * ffn)


@pytest.mark.skipif(not has_bf16(gpu=False), reason="this CPU has no bfloat16")
@pytest.mark.parametrize(
    ("gains", "precision"),
    [([2.0], "bf16"), ([1.2], "bf16"), ([1.1], "fp32"), ([0.6], "fp32"), ([9.0, 0.1, 2.0, 2.0, 2.0], "bf16")],
)
def test_the_faster_precision_is_chosen_and_disturbed_repetitions_change_nothing(gains, precision):
    gains = (gains * precision_probe.REPETITIONS)[: precision_probe.REPETITIONS]
    times = iter([seconds for gain in gains for seconds in (gain / 100, 0.01)])
    found = precision_probe.measure(8, 16, lambda action: next(times))
    assert found.precision == precision and found.bf16_ms == pytest.approx(10)


@pytest.mark.parametrize(
    ("flags", "is_measured"),
    [
        ("flags\t\t: amx_bf16", True),
        ("flags\t: avx512_bf16", True),
        ("Features\t: neon bf16", True),
        ("flags\t\t: fpu sse2 avx512f", False),
        ("Features\t: neon not_bf16", False),
        (None, False),
    ],
)
def test_a_cpu_is_measured_if_it_lists_bf16(flags, is_measured, cache, probed, tmp_path, monkeypatch):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(kernel_choice, "cpu_flags", machine.cpu_flags)
    assert compose_run(REVIEWS).train.precision == ("bf16" if is_measured else "fp32")
    assert probed == [MINILM] * is_measured
    assert compose_run([*REVIEWS, "train.precision=fp32"]).train.precision == "fp32"


def test_the_width_is_the_encoders(cache, probed, model_dir):
    settings = json.loads((model_dir / "config.json").read_bytes())
    compose_run([*REVIEWS, "model=local", f"model.path={model_dir}"])
    assert probed == [(settings["hidden_size"], settings["intermediate_size"])]


def test_a_measurement_is_kept_for_this_cpu_and_torch_and_made_again_if_broken(cache, probed, monkeypatch):
    for kind in ("one CPU", "one CPU", "another CPU"):
        monkeypatch.setattr(precision_choice, "cpu_kind", lambda kind=kind: kind)
        measure.cache_clear()  # as in a new process
        assert measure(*MINILM) == measured("bf16")
    assert len(probed) == len(list(cache.glob("*.json"))) == 2
    for content in ("{", "[]", json.dumps({"gain": 1.0}), json.dumps({"fp32_ms": "x", "bf16_ms": 1, "gain": 2})):
        stored(*MINILM)[0].write_text(content)
        measure.cache_clear()
        assert measure(*MINILM) == measured("bf16")
    assert len(probed) == 6


def test_processes_that_start_together_measure_once(cache, monkeypatch):
    asked = []

    def run_probe(width: int, ffn: int) -> Measurement:
        asked.append(width)
        time.sleep(0.2)
        return measured("bf16")

    monkeypatch.setattr(precision_choice, "run_probe", run_probe)
    threads = [threading.Thread(target=measure.__wrapped__, args=MINILM) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [MINILM[0]]


def test_a_cache_that_cannot_be_written_is_refused_only_with_several_processes(cache, probed, monkeypatch):
    cache.write_text("in the way")
    assert measure(*MINILM) == measured("bf16")
    measure.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"cannot write .*; state train.precision=fp32 or bf16"):
        measure(*MINILM)


@pytest.mark.parametrize("script", ["raise SystemExit('no torch')", "print('{}')", "import time; time.sleep(9)"])
def test_a_measurement_that_fails_is_one_message(script, cache, monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(precision_choice, "PROBE_SECONDS", 3)
    monkeypatch.setattr(precision_choice.subprocess, "run", lambda c, **s: real([sys.executable, "-c", script], **s))
    with pytest.raises(UserError, match=r"cannot measure which precision is faster here: .*; state train.precision="):
        measure(*MINILM)


def test_the_environment_of_a_measurement_is_one_thread(monkeypatch, cache):
    seen = {}

    def called(command, **settings):
        seen.update(settings["env"], command=command)
        return subprocess.CompletedProcess(command, 0, json.dumps(dataclasses.asdict(measured("bf16"))))

    monkeypatch.setattr(precision_choice.subprocess, "run", called)
    assert measure(*MINILM) == measured("bf16")
    assert seen["OMP_NUM_THREADS"] == "1" and seen["PATH"] == os.environ["PATH"]
    assert seen["command"][1:] == ["-m", "lora.training.precision_probe", "384", "1536"]


def test_a_runs_bits_do_not_follow_what_was_measured(tiny_config, monkeypatch):
    outcomes = []
    for precision in ("bf16", "fp32"):
        inject(monkeypatch, precision)
        record, predictions, _ = run(tiny_config("train.kernels=fused", "method=lora"))
        outcomes.append((record.run_id, record.epochs, predictions))
    assert outcomes[0] == outcomes[1]
    files = [path for path in (ROOT / "lora" / "training").rglob("*.py") if path.name != "precision_probe.py"]
    assert len(files) > 10 and not [path for path in files if "precision_choice" in path.read_text()]
