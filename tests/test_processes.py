"""Several processes train one cell: the losses and weights of one, and what they refuse. Real gloo, real launchers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora.errors import UserError
from lora.provenance import ROOT
from lora.results import adapter_path, read_record
from lora.train import run

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "accelerate": "accelerate launch --multi_gpu --num_processes=2 --main_process_port=0".split(),
    "torchrun": "torchrun --standalone --nproc-per-node=2".split(),
}
NO_DROPOUT = ("train.dropout=0.0", "train.head_dropout=0.0")
# 37 rows in batches of 12: the last has one row, so one of the processes has none. Adam's division by its second moment
# would blow up the last bits of gradients near zero: a larger epsilon.
UNEVEN = ("train.batch=12", "data.train_rows=37", "train.epochs=3", "train.adam_eps=1e-6", "runtime.save_adapter=true")


def launch(launcher, overrides, outputs):
    """One cell in two processes."""
    command = [BIN / LAUNCHERS[launcher][0], *LAUNCHERS[launcher][1:], "-m", "lora", *overrides, *outputs]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def outputs_in(folder):
    return [f"runtime.results={folder}/results", f"runtime.outputs={folder}/outputs"]


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("accelerate", ("method=lora", "train.kernels=stock", *NO_DROPOUT)),
        ("torchrun", ("method=full", "train.kernels=fused", "train.accumulation=2", *NO_DROPOUT)),
        ("torchrun", ("method=houlsby", "train.kernels=fused")),  # dropout on: masks belong to examples
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_two_processes_give_the_losses_and_weights_of_one(tiny_overrides, tiny_config, tmp_path, launcher, settings):
    one, _, files = run(tiny_config(*UNEVEN, *settings))
    done = launch(launcher, [*tiny_overrides, *UNEVEN, *settings], outputs_in(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok, ") == 1, "one of the two speaks"
    two = read_record(tmp_path / "two" / "results" / "runs" / f"{one.run_id}.json")
    assert two.provenance["processes"] == 2
    losses = [epoch["train_loss"] for epoch in two.epochs]
    assert losses == pytest.approx([epoch["train_loss"] for epoch in one.epochs], abs=1e-5)
    (tmp_path / "one.safetensors").write_bytes(files["adapter.safetensors"])
    ours, theirs = (
        load_file(path)
        for path in (tmp_path / "one.safetensors", adapter_path(str(tmp_path / "two" / "outputs"), one.run_id))
    )
    assert set(ours) == set(theirs) and ours
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5


def test_a_batch_that_does_not_divide_is_refused_once_and_leaves_nothing(tiny_overrides, tmp_path):
    done = launch("torchrun", [*tiny_overrides, "train.batch=9"], outputs_in(tmp_path / "two"))
    assert done.returncode != 0
    message = "error: train.batch must be a multiple of processes x train.accumulation (2 x 1)"
    assert done.stderr.count(message) == 1
    assert not (tmp_path / "two").exists()


def test_passes_count_too(tiny_config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"processes x train\.accumulation \(4 x 3\).*got 18"):
        run(tiny_config("train.batch=18", "train.accumulation=3"))


def test_a_sweep_in_several_processes_is_refused(tiny_overrides, tmp_path):
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "lora", "-m", *tiny_overrides, "seed=1,2", *outputs_in(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: a sweep is started by one process, got 2" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "two" / "results").exists()
