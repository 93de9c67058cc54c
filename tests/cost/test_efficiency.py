"""The measurements against closed forms and other libraries. Times are never asserted."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processor import needs_bf16
from safetensors.torch import save_file
from torch import nn

from lora.cli import main
from lora.cost import subjects
from lora.cost.efficiency import command as efficiency
from lora.cost.efficiency.command import measured_run
from lora.cost.efficiency.summary import build_summary, document, read_summaries
from lora.cost.machine import COMMITTED
from lora.cost.subjects import random_batch, serve_batch, serving_model, training_subject
from lora.errors import UserError
from lora.files import read_object
from lora.methods.lowrank import LoraLinear
from lora.models.modules import trainable
from lora.training.device import optimizer_bytes

pytestmark = pytest.mark.slow

KERNELS = pytest.mark.parametrize(
    ("kernels", "precision"),
    [
        ("stock", "fp32"),
        ("fused", "fp32"),
        pytest.param("stock", "bf16", marks=needs_bf16),
        pytest.param("fused", "bf16", marks=needs_bf16),
    ],
)
TRAINED = ("full", "bitfit", "houlsby", "pfeiffer", "lora")


def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(module(x)).sum()


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_saved_bytes_of_a_linear_layer_and_a_gelu(frozen: bool) -> None:
    """A trained layer keeps its input. A frozen one keeps only its weight, no activation. GELU keeps its input."""
    n, d_in, d_out = 5, 7, 11
    linear, x = nn.Linear(d_in, d_out).requires_grad_(not frozen), torch.randn(n, d_in, requires_grad=True)
    kept = subjects.saved_bytes(linear, lambda: forward(linear, x))
    assert kept == 4 * (n * d_out + (0 if frozen else n * d_in))


def test_saved_bytes_of_lora() -> None:
    """x for A, A x for B, and GELU's input. Two uses of x count once, and the frozen weight does not count."""
    n, d_in, d_out, rank = 5, 7, 11, 3
    layer, x = LoraLinear(nn.Linear(d_in, d_out), rank, 2.0, 0.0), torch.randn(n, d_in, requires_grad=True)
    layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
    assert subjects.saved_bytes(layer, lambda: forward(layer, x)) == 4 * n * (d_in + rank + d_out)


def test_saved_bytes_count_a_storage_whole_and_no_casts_of_weights() -> None:
    n, d_in, d_out = 4, 6, 10
    linear, x = nn.Linear(d_in, d_out), torch.randn(n, d_in, requires_grad=True)

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(linear, x)

    assert subjects.saved_bytes(linear, autocast) == 2 * n * (d_in + d_out)
    wide = torch.randn(n, d_in, requires_grad=True) * 1
    part = subjects.saved_bytes(linear, lambda: (wide[:1] ** 2).sum())
    assert part == 4 * n * d_in, "one row is saved, and with it the storage of all"


@KERNELS
def test_bytes_of_activations_checkpoint_and_optimizer(model_dir: Path, kernels: str, precision: str, tmp_path: Path):
    """AdamW keeps two float32 moments per value. Torch's own also keeps a float32 count of steps per tensor."""
    config = efficiency.configure(str(model_dir), "cpu", kernels, precision)
    kept = {}
    for name in TRAINED:
        subject = training_subject(measured_run(config, name))
        batch = random_batch(subject.model.config, "4x12")
        counts = subjects.counts(subject, {"4x12": batch})
        assert counts["saved_activation_bytes"] == subjects.counts(subject, {"4x12": batch})["saved_activation_bytes"]
        kept[name] = counts["saved_activation_bytes"]["4x12"]
        values, tensors = counts["trainable_with_head"], len(list(trainable(subject.model)))
        assert optimizer_bytes(subject.optimizer) == 8 * values + (0 if kernels == "fused" else 4 * tensors)
        tensors = {n: p.detach() for n, p in trainable(subject.model)}
        save_file(tensors, tmp_path / "file")
        assert counts["checkpoint_bytes"] == (tmp_path / "file").stat().st_size
        assert sum(p.numel() for p in tensors.values()) == counts["trainable_with_head"]
    assert all(0 < kept[name] < kept["full"] for name in TRAINED[1:])


def test_a_killed_process_is_told() -> None:
    with pytest.raises(UserError, match="was killed, probably because memory ran out"):
        subjects.in_fresh_process(os._exit, 9)


@KERNELS
def test_merged_lora_computes_what_unmerged_does(model_dir: Path, kernels: str, precision: str) -> None:
    config = efficiency.configure(str(model_dir), "cpu", kernels, precision)
    names = ("base", "full", "bitfit", "lora", "lora_merged")
    models = {name: serving_model(measured_run(config, name), name == "lora_merged") for name in names}
    batch = random_batch(models["base"].config, "4x12")
    logits = {name: serve_batch(model, batch).float() for name, model in models.items()}
    largest = logits["base"].abs().max().item()
    tolerance = 1e-5 * largest if precision == "fp32" else 0.05 * largest
    assert (logits["lora_merged"] - logits["lora"]).abs().max().item() <= tolerance
    assert (logits["lora"] - logits["base"]).abs().max().item() > 1e-4 * largest, "B is not zero"
    for name in ("full", "bitfit"):  # before training they equal the base: the experiment's control
        assert torch.equal(logits[name], logits["base"])
    assert not any(p.requires_grad for model in models.values() for p in model.parameters())
    layers = [module for module in models["lora_merged"].modules() if isinstance(module, LoraLinear)]
    assert not layers and any(isinstance(module, LoraLinear) for module in models["lora"].modules())


def test_paired_ratios_cancel_what_a_round_shares() -> None:
    slow = np.array([1.0, 9.0, 2.0, 30.0, 1.0, 4.0])
    samples = [
        {"kind": "step", "method": name, "shape": "1x8", "round": number, "ms": ms * factor}
        for name, factor in (("full", 1.0), ("lora", 1.25))
        for number, ms in enumerate(slow)
    ]
    methods = {key: {"settings": None} for key in ("full", "lora")}
    to_full = build_summary(methods, pd.DataFrame(samples), {})["lora"]["to_full"]
    assert (to_full["step_ms"]["1x8"], *to_full["step_ms_interval"]["1x8"]) == pytest.approx((1.25, 1.25, 1.25))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, model_dir) -> Path:
    """The folder of one device. Its processes are started while this one holds a GiB."""
    results, ballast = tmp_path_factory.mktemp("results"), np.ones(2**27)
    what = "--methods lora_merged full lora --kernels stock --precision fp32 --rounds 6"
    shapes = "--step-shapes 3x8 4x12 --latency-shapes 2x8"
    words = ["--model", str(model_dir), *what.split(), *shapes.split(), "--results", str(results)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(["efficiency", *words]) == 0 and ballast.all()
    (device,) = (results / "efficiency").iterdir()
    return device


def test_the_summary_follows_from_the_samples(measured: Path, model_dir: Path) -> None:
    (folder,) = measured.glob(f"{model_dir.name}-*-stock-fp32")  # with digits of its weights
    summary = read_object(folder / "summary.json")
    assert list(summary) == ["about", "full", "lora", "lora_merged"]
    lora, full, merged = (summary[name] for name in ("lora", "full", "lora_merged"))
    assert lora["trainable"] == 2 * 2 * 2 * 8 * 32, "layers, q and v, A and B, r = 8, d = 32"
    assert lora["to_full"]["trainable"] == pytest.approx(lora["trainable"] / full["trainable"], abs=1e-6)
    assert lora["checkpoint_bytes"] < full["checkpoint_bytes"] and lora["to_full"]["checkpoint_bytes"] < 1
    assert merged["trainable"] is None and merged["step_ms"] is None
    assert set(lora["step_ms"]) == set(lora["saved_activation_bytes"]) == {"3x8", "4x12"}
    assert set(lora["peak_mib"]) == {"4x12"} and set(merged["latency_ms"]) == {"2x8"}
    assert 0 < lora["peak_mib"]["4x12"] < 1024, "the memory of the parent does not count"
    samples = np.genfromtxt(folder / "samples.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")

    def times(kind: str, method: str, shape: str) -> np.ndarray:
        chosen = samples[(samples["kind"] == kind) & (samples["method"] == method) & (samples["shape"] == shape)]
        return chosen["ms"][np.argsort(chosen["round"])]

    ratios = times("step", "lora", "3x8") / times("step", "full", "3x8")
    assert len(ratios) == 6
    assert lora["to_full"]["step_ms"]["3x8"] == pytest.approx(np.median(ratios), abs=1e-5)
    assert lora["to_full"]["step_ms_interval"]["3x8"] == pytest.approx([ratios.min(), ratios.max()], abs=1e-5)
    assert merged["latency_ms"]["2x8"] == pytest.approx(np.median(times("latency", "lora_merged", "2x8")), abs=1e-4)
    about, text = summary["about"], (folder / "summary.json").read_text()
    assert about["plan"]["path"] == model_dir.name and str(model_dir) not in text
    assert about["model"]["weights"].startswith("sha256:") and about["machine"]["packages"]["torch"]


def test_tables_follow_from_the_summaries(measured: Path) -> None:
    files = {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {"efficiency.md", "summary.json", "samples.csv"}
    assert main(["efficiency", "--tables", "--results", str(measured.parents[1])]) == 0
    assert files == {path: path.read_bytes() for path in files}
    committed = sorted((COMMITTED / "efficiency").glob("*/efficiency.md"))
    assert committed
    for path in committed:
        assert document([*read_summaries(path.parent).values()]) == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent"], "error: "),
        (["--methods", "prefix"], "error: "),
        (["--methods", "lora", "--step-shapes", "16by28"], "a shape must be <rows>x<tokens>, such as 16x128, got"),
        (["--methods", "lora", "--latency-shapes", "1x9999"], "a shape has 9999 tokens, but minilm reads at most 512"),
        (["--tables"], "results/efficiency holds no device's folder"),
        (["--results", __file__], "cannot write to"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(arguments, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        sys.exit(main(["efficiency", "--results", str(tmp_path / "results"), *arguments]))
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "results").exists()
