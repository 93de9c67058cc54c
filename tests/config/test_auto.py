"""Precision by measurement: made in a process of its own, and kept in the plan of a folder of results."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from lora.config import auto
from lora.config.auto import faster_precision
from lora.config.compose import compose_family, compose_run
from lora.config.plan import choice_of, read_plan
from lora.errors import UserError
from lora.records import provenance
from lora.training import precision_probe

REVIEWS = ("task=reviews", "method=lora", "seed=1")
MINILM = (384, 1536)


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """Overrides of a run in an empty folder, on a CPU that lists bf16 and in a process that has measured nothing."""
    monkeypatch.setattr(auto, "cpu_flags", lambda: {"avx512_bf16"})
    faster_precision.cache_clear()
    yield (*REVIEWS, f"runtime.results={tmp_path}/results")
    faster_precision.cache_clear()


@pytest.fixture
def probed(monkeypatch):
    """The sizes passed to a fake measurement, in which bf16 is twice as fast."""
    asked = []
    monkeypatch.setattr(auto, "run_probe", lambda *sizes: asked.append(sizes) or 2.0)
    return asked


def test_the_real_measurement_is_kept(reviews, tmp_path):
    """Its outcome is not tested: the machine may be busy."""
    (run,) = compose_family(reviews, measure="kept")
    (choice,) = read_plan(tmp_path / "results").choices
    assert choice == choice_of(run) and choice.precision in ("fp32", "bf16")


def test_ctrl_c_while_it_is_measured_is_no_failure_of_the_measurement(reviews, monkeypatch):
    """Ctrl-C reaches both processes, and the measuring one ends first."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # also under nohup
    stop = [sys.executable, "-c", f"import signal; {heard}; signal.raise_signal(signal.SIGINT)"]
    run = functools.partial(subprocess.run, stop, capture_output=True, text=True, check=True)
    monkeypatch.setattr(auto, "run_probe", lambda *sizes: run())
    with pytest.raises(KeyboardInterrupt):
        faster_precision(48, 96)


def test_the_products_are_those_of_a_layer_forward_and_backward():
    """Torch's own counter against the shapes of Vaswani et al.: 2 (4 d^2 + 2 d f) each way, for every row."""
    from torch.utils.flop_counter import FlopCounterMode

    width, ffn = 12, 20
    with FlopCounterMode(display=False) as counter:
        precision_probe.layer_products(width, ffn, torch.float32)()
    assert counter.get_total_flops() == 2 * 2 * precision_probe.PRODUCT_ROWS * (4 * width**2 + 2 * width * ffn)


@pytest.mark.parametrize(
    ("flags", "is_measured"),
    [
        ("flags\t\t: amx_bf16", True),
        ("flags\t: avx512_bf16", True),
        ("flags\t\t: fpu sse2 avx512f", False),
        (None, False),
    ],
)
def test_a_cpu_is_measured_if_it_lists_bf16(flags, is_measured, reviews, probed, tmp_path, monkeypatch):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(provenance, "PROC", tmp_path)
    monkeypatch.setattr(auto, "cpu_flags", provenance.cpu_flags)
    assert compose_run(reviews).train.precision == ("bf16" if is_measured else "fp32")
    assert probed == [MINILM] * is_measured
    assert compose_run([*reviews, "train.precision=fp32"]).train.precision == "fp32"


def test_the_width_is_the_encoders(reviews, probed, model_dir):
    settings = json.loads((model_dir / "config.json").read_bytes())
    compose_run([*reviews, "model=local", f"model.path={model_dir}"])
    assert probed == [(settings["hidden_size"], settings["intermediate_size"])]


def test_a_launch_takes_the_precision_of_the_plan_and_status_measures_nothing(reviews, probed, tmp_path, monkeypatch):
    assert compose_family(reviews, measure="assumed")[-1].config.train.precision == "fp32" and not probed
    assert compose_family(reviews, measure="kept")[-1].config.train.precision == "bf16"
    monkeypatch.setattr(auto, "run_probe", lambda *sizes: probed.append(sizes) or 0.5)  # on another machine
    for measure in ("kept", "measured", "assumed"):
        faster_precision.cache_clear()  # as in a new process
        assert compose_family(reviews, measure=measure)[-1].config.train.precision == "bf16"
    assert probed == [MINILM]
    other = [*REVIEWS, f"runtime.results={tmp_path}/other"]
    assert compose_run(other).train.precision == "fp32" and not (tmp_path / "other").exists()


@pytest.mark.parametrize("script", ["raise SystemExit('no torch')", "print('{}')", "import time; time.sleep(9)"])
def test_a_measurement_that_fails_is_one_message(script, reviews, monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(auto, "PROBE_SECONDS", 3)
    command = [sys.executable, "-c", script]
    monkeypatch.setattr(auto.subprocess, "run", lambda given, **settings: real(command, **settings))
    with pytest.raises(UserError, match=r"cannot measure which precision is faster here: .*; state train.precision="):
        faster_precision(*MINILM)
