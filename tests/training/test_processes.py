"""Several processes in one run: the losses and weights of one process, and refusals. Real gloo, real launchers."""

import os
import pickle
import subprocess
import sys

import pytest
from commands import lora
from own_tasks import folders
from safetensors.torch import load_file
from trained import run

from lora.files import ROOT
from lora.records.record import adapter_path, read_record
from lora.training import processes
from lora.training.processes import local_rank, world_size

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --main_process_port=0",
    "torchrun": "torch.distributed.run --standalone --nproc-per-node=2",
}
NO_DROPOUT = ("train.dropout=0.0", "train.head_dropout=0.0")
# 37 examples in batches of 12: the last batch has one example, so one of the processes has none. The larger epsilon
# keeps Adam's division by its second moment from amplifying the last bits of gradients near zero.
UNEVEN = ("train.batch=12", "data.train_rows=37", "train.epochs=3", "train.adam_eps=1e-6", "runtime.save_adapter=true")


def launch(launcher, overrides, folder):
    """Train one run in two processes, with its outputs in the folder."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher].split(), "-m", "lora", *overrides, *folders(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment(folder.parent), capture_output=True, text=True)


def environment(temporary):
    """torchrun leaves its folders in the temporary directory."""
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | given


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("accelerate", ("method=lora", "train.kernels=stock", *NO_DROPOUT)),
        # without a GPU, `auto` is the CPU; dropout on: masks belong to examples
        ("torchrun", ("method=full", "train.kernels=fused", "train.accumulation=2", "runtime.device=auto")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_two_processes_give_the_losses_and_weights_of_one(tiny_overrides, tiny_config, tmp_path, launcher, settings):
    one, _, files = run(tiny_config(*UNEVEN, *settings))
    done = launch(launcher, [*tiny_overrides, *UNEVEN, *settings], tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("torchelastic_*")), "the launcher's folder is among what is removed after the test"
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


def placed(monkeypatch, **places):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in places.items():
        monkeypatch.setenv(name, value)


def test_a_batch_that_does_not_divide_is_refused_once_and_leaves_nothing(tiny_overrides, tmp_path, monkeypatch):
    message = "error: train.batch must be a multiple of processes x train.accumulation (2 x 1)"
    for rank, said in (("0", 1), ("1", 0)):
        placed(monkeypatch, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
        done = lora(*tiny_overrides, "train.batch=9")
        assert done.returncode == 2 and done.stderr.count(message) == said and not done.stdout
    assert not list(tmp_path.iterdir())


RESUMED = """
import os, pickle, signal, sys
from lora.training import processes
from lora.data.tasks import TASKS
from lora.training.loop import run
config = pickle.load(open(sys.argv[1], "rb"))
def stop(progress):
    if progress.step == 14 + int(os.environ["RANK"]):  # they stop together, after the vote of step 16
        os.kill(os.getpid(), signal.SIGTERM)
whole, predictions, adapter = run(config, TASKS[config.task])
processes.listen()
try:
    run(config, TASKS[config.task], stop)
except processes.InterruptedRunError:
    processes.noted.clear()
record, again, adapted = run(config, TASKS[config.task])
assert (record.epochs, again, adapted) == (whole.epochs, predictions, adapter), (record.epochs, whole.epochs)
if os.environ["RANK"] == "0":
    print("resumed", record.provenance["resumed"])
"""


def test_three_processes_resume_bit_for_bit(tiny_config, tmp_path):
    settings = ("method=full", "train.batch=12", "train.epochs=8", "runtime.save_adapter=true")
    (tmp_path / "config").write_bytes(pickle.dumps(tiny_config(*settings, "runtime.checkpoint_minutes=null")))
    (tmp_path / "resumed.py").write_text(RESUMED)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    command = [*launcher, tmp_path / "resumed.py", tmp_path / "config"]
    done = subprocess.run([sys.executable, "-m", *command], env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["resumed", "1"]


def test_one_of_several_processes_without_a_rank_is_refused(tiny_overrides, tmp_path, monkeypatch):
    """A rank without a number of processes is one process."""
    placed(monkeypatch, WORLD_SIZE="2")
    done = lora(*tiny_overrides)
    assert done.returncode == 2 and done.stderr.count("error: cannot connect 2 processes: ") == 1
    assert "RANK expected" in done.stderr
    placed(monkeypatch, RANK="1", LOCAL_RANK="1")
    assert (world_size(), processes.rank(), local_rank()) == (1, 0, 0)


def test_a_sweep_in_several_processes_is_refused(tiny_overrides, tmp_path, monkeypatch):
    placed(monkeypatch, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")  # as torchrun sets them
    done = lora("-m", *tiny_overrides, "experiment=null", "seed=1,2")
    assert done.returncode == 2 and "error: a sweep must be started by one process, got 2" in done.stderr
    assert not list(tmp_path.iterdir())
