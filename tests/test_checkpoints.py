"""A run that was stopped and resumed equals the run that was never stopped, to the last bit."""

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from comparing import equal_science
from processor import NARROWEST
from safetensors import safe_open
from safetensors.torch import save_file

from lora.files import ROOT, discard, discard_leftovers
from lora.records import machine as liveness
from lora.records.record import checkpoint_path, read_record, record_path
from lora.training import evaluation, signals
from lora.training import usage as cost
from lora.training.loop import run
from lora.training.signals import InterruptedRunError
from lora.training.usage import device_name

EPOCHS = 3  # of five steps
NEVER = "runtime.checkpoint_minutes=null"  # except on a request to stop


def stopping_at(step, signum=signal.SIGTERM):
    """A progress callback that sends this process a signal after a step, as a batch system does."""

    def report(progress):
        if progress.step == step:
            os.kill(os.getpid(), signum)

    return report


def checkpoint_of(config):
    return checkpoint_path(config.runtime.outputs, config.run_id)


def stop(config, step):
    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        run(config, stopping_at(step))
    signals.noted.clear()  # a new process starts without them
    assert checkpoint_of(config).exists()


SETTINGS = [
    ("method=full", "train.kernels=stock"),
    ("method=full", "train.kernels=fused"),  # sparse gradients, and embedding rows that no batch has touched
    ("method=full", "train.kernels=fused", f"train.precision={NARROWEST}", "train.weight_decay=0.1"),
    ("method=lora", "train.kernels=stock", "train.accumulation=2"),
    ("method=lora", "train.kernels=fused", "data.batching=similar_length"),
    ("method=houlsby", "train.kernels=fused", f"train.precision={NARROWEST}"),
    ("method=bitfit", "train.kernels=stock", "task=mnli"),
    ("method=lora", "train.kernels=stock", "task=stsb", "train.head_dropout=0.5"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_resumed_is_uninterrupted_bit_for_bit(tiny_config, listening, settings):
    """One run in four sessions: stopped in the first epoch, before an evaluation, and one step before the end."""
    config = tiny_config(*settings, f"train.epochs={EPOCHS}", "runtime.save_adapter=true", NEVER)
    whole, predictions, adapter = run(config)
    for step in (2, 10, 14):
        stop(config, step)
    torch.rand(7)  # the next session finds the global generator in another state
    resumed, again, adapted = run(config)
    assert resumed.provenance["resumed"] == 3 and whole.provenance["resumed"] == 0
    assert equal_science(resumed, whole)
    assert again == predictions
    assert adapted == adapter
    assert resumed.cost["tokens"] == whole.cost["tokens"]


def test_a_signal_during_an_evaluation_repeats_only_the_evaluation(tiny_config, listening, monkeypatch):
    config = tiny_config("train.eval_batch=4", NEVER)
    whole = run(config)
    real, batches = evaluation.to_device, []

    def to_device(*arguments):
        batches.append(1)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(evaluation, "to_device", to_device)
    with pytest.raises(InterruptedRunError):
        run(config)
    assert len(batches) == 2
    signals.noted.clear()
    with safe_open(checkpoint_of(config), "pt") as file:
        left = json.loads(file.metadata()["run"])
    assert (left["step"], left["epochs"]) == (5, [])
    assert equal_science(run(config)[0], whole[0])


def test_it_is_written_by_the_clock_too_and_holds_the_trained_part_only(tiny_config):
    config = tiny_config("method=lora", "runtime.checkpoint_minutes=0")
    sizes, dtypes = [], set()

    def look(progress):
        if progress.step > 1:
            with safe_open(checkpoint_of(config), "pt") as file:
                assert json.loads(file.metadata()["run"])["step"] == progress.step - 1
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sizes.append(sum(t.numel() for name, t in tensors.items() if name.startswith("parameter.")))
            dtypes.update(t.dtype for name, t in tensors.items() if name.startswith("optimizer.exp_avg"))

    record, *_ = run(config, look)
    trained = record.params["trainable_method"] + record.params["trainable_head"]
    assert set(sizes) == {trained} and trained < record.params["total"]
    assert dtypes == {torch.float32}


def test_a_checkpoint_of_another_run_is_named_and_left(tiny_config, listening, capsys):
    """The run_id is the same, but another number of threads gives other bits, so the run is another."""
    stop(tiny_config(), 3)
    other = tiny_config("runtime.threads=2")
    record, *_ = run(other)
    assert record.provenance["resumed"] == 0
    assert capsys.readouterr().err.count("it was made from other runtime): starting from the beginning") == 1


@pytest.mark.parametrize("change", ["rows", "code"])
def test_so_is_one_of_other_rows_or_code(tiny_config, listening, capsys, monkeypatch, change):
    config = tiny_config()
    stop(config, 3)
    path = checkpoint_of(config)
    if change == "code":
        monkeypatch.setattr("lora.training.checkpoints.code_digest", lambda: "0" * 64)
    else:
        rewrite(path, lambda run: run["made_from"]["inputs"].update(rows="another fingerprint"))
    assert run(config)[0].provenance["resumed"] == 0
    assert f"made from other {'code' if change == 'code' else 'inputs'}" in capsys.readouterr().err


@pytest.mark.skipif(not (liveness.PROC / "cpuinfo").exists(), reason="no list of CPUs")
def test_so_is_one_of_another_kind_of_cpu(tiny_config, listening, capsys, monkeypatch, tmp_path):
    """The kernel lists a CPU of another model with the same instructions, as on another node of a cluster."""
    config = tiny_config()
    stop(config, 3)
    lines = (liveness.PROC / "cpuinfo").read_text().splitlines()
    other = [
        f"{line.partition(':')[0]}: Another" if line.startswith(("model name", "CPU part")) else line for line in lines
    ]
    assert other != lines
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("\n".join(other))
    here = cost.processor(torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(liveness, "PROC", tmp_path / "proc")
        there = cost.processor(torch.device("cpu"))
        assert run(config)[0].provenance["resumed"] == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"made from other processors: {here} then, {there} now): starting from the beginning" in line
    assert device_name(torch.device("cpu")) in here and "Another" in there
    assert run(config)[0].provenance["resumed"] == 1


def test_so_is_one_made_with_another_capability_of_torch(tiny_config, listening, capsys):
    config = tiny_config()
    stop(config, 3)
    command = [sys.executable, "-c", "import sys, pickle; from lora.training.loop import run\n"
               "print(run(pickle.load(sys.stdin.buffer))[0].provenance['resumed'])"]  # fmt: skip
    less = os.environ | {"ATEN_CPU_CAPABILITY": "default"}  # torch's own switch to simpler kernels
    done = subprocess.run(command, cwd=ROOT, env=less, input=pickle.dumps(config), capture_output=True)
    assert done.stdout.decode().strip() == "0", done.stderr.decode()
    assert b"it was made from other processors" in done.stderr


@pytest.mark.parametrize("epochs", [0, 1])
def test_one_without_the_adapter_of_its_best_epoch_is_not_used_where_it_is_asked_for(
    tiny_config, listening, capsys, epochs
):
    """The rate is so high that the first epoch is the best. Before its end, no adapter can be missing."""
    high = ("method=lora", "train.lr=0.5", f"train.epochs={EPOCHS}")
    stop(tiny_config(*high), 5 * epochs + 2)
    asked = tiny_config(*high, "runtime.save_adapter=true")
    record, _, files = run(asked)
    assert record.selected["best"]["epoch"] == 1
    assert hashlib.sha256(files["adapter.safetensors"]).hexdigest() == record.adapter
    assert record.provenance["resumed"] == 1 - epochs
    assert capsys.readouterr().err.count("it lacks the adapter of its best epoch") == epochs
    checkpoint_of(asked).unlink()
    whole, _, expected = run(asked)
    assert (equal_science(record, whole), files) == (True, expected)


def test_an_adapter_that_is_no_longer_asked_for_is_not_kept(tiny_config, listening):
    """It would belong to an epoch that a later one may beat."""
    config = tiny_config("method=lora", "runtime.save_adapter=true")
    stop(config, 7)
    record, _, files = run(tiny_config("method=lora"))
    assert record.provenance["resumed"] == 1
    assert (record.adapter, files) == (None, None)


def rewrite(path, change, replaced=()):
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata)
    path.unlink()
    save_file(tensors | dict(replaced), path, {"run": json.dumps(metadata)})


@pytest.mark.parametrize("damage", ["cut short", "empty", "a pickle", "no state", "no generator", "other shapes"])
def test_a_broken_checkpoint_is_named_and_the_run_starts_anew(tiny_config, listening, capsys, damage):
    config = tiny_config("method=lora")
    whole, *_ = run(config)
    stop(config, 3)
    path = checkpoint_of(config)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a pickle":
        torch.save({"a": torch.zeros(3)}, path)
    elif damage == "no state":
        rewrite(path, lambda run: run.pop("schedule"))
    elif damage == "no generator":
        rewrite(path, lambda run: None, {"random.0.cpu": torch.zeros(3, dtype=torch.uint8)})
    else:
        stop(tiny_config("method=lora", "method.rank=4"), 3)
        other = checkpoint_of(tiny_config("method=lora", "method.rank=4"))
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        with safe_open(other, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, path, metadata)
    capsys.readouterr()
    record, *_ = run(config)
    assert f"{path} is not used" in capsys.readouterr().err
    assert record.provenance["resumed"] == 0
    assert equal_science(record, whole)


def test_the_handler_that_was_there_before_decides_what_follows(tiny_config, monkeypatch):
    """If a batch system's handler returns, the run continues. The checkpoint exists in case a kill follows."""
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        signals.listen()
        config = tiny_config(NEVER)
        record, *_ = run(config, stopping_at(3))
        assert seen == [signal.SIGTERM] and record.status == "ok"
        assert checkpoint_of(config).exists()
        assert not signals.noted
    finally:
        for signum, handler in signals.before.items():
            signal.signal(signum, handler)
        signal.signal(signal.SIGTERM, previous)
        signals.before.clear()


def test_a_disk_without_room_costs_the_checkpoint_not_the_run(tiny_config, capsys):
    """A file-size limit makes the kernel refuse the write midway, as a full disk does."""
    config = tiny_config("runtime.checkpoint_minutes=0")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        record, *_ = run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert record.status == "ok"
    assert "continuing without a checkpoint: cannot write" in capsys.readouterr().err
    assert not list(checkpoint_of(config).parent.iterdir())


def test_the_command_goes_on_where_a_signal_stopped_it(tiny_overrides, tmp_path):
    """Four real processes: three exit with code 130 and no record; the last writes the record, without a checkpoint."""
    command = [sys.executable, "-m", "lora", *tiny_overrides, "train.epochs=100"]
    running, checkpoints = tmp_path / "outputs" / "running", set()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
        )  # fmt: skip
        while not (running.is_dir() and list(running.glob("[!.]*.json"))):
            assert process.poll() is None, f"it ended before {signum.name}: {process.communicate()[1]}"
            time.sleep(0.05)
        assert json.loads(next(running.glob("[!.]*.json")).read_text())["steps"] == 100 * 5
        process.send_signal(signum)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "interrupted: what is finished is kept" in error and "Traceback" not in error
        checkpoints |= set((tmp_path / "outputs" / "checkpoints").iterdir())
        assert not (tmp_path / "results").exists() and not list(running.iterdir())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = checkpoints
    assert read_record(record_path(tmp_path / "results", checkpoint.stem)).provenance["resumed"] == 3
    assert not checkpoint.exists()


KILLED = """
import os, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from lora.files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    save_file({"a": torch.zeros(3)}, temporary)
    (temporary.parent / ".tmpAbCd").write_bytes(b"where safetensors writes first")
    if len(sys.argv) > 2:
        os.kill(os.getpid(), 9)
"""


def test_nothing_that_a_killed_writer_left_stays_with_a_finished_run(tmp_path):
    path, other = tmp_path / "run.safetensors", tmp_path / ".run2.safetensors.x"
    other.mkdir()

    def write(*arguments):
        return subprocess.run([sys.executable, "-c", KILLED, str(path), *arguments], cwd=ROOT).returncode

    assert write() == 0 and write("killed") == -signal.SIGKILL
    left = set(tmp_path.iterdir()) - {path, other}
    assert len(left) == 1, "all of it in one place that bears the file's name"
    discard_leftovers(path)
    assert set(tmp_path.iterdir()) == {path, other}
    assert write("killed") == -signal.SIGKILL
    discard(path)
    assert set(tmp_path.iterdir()) == {other}
