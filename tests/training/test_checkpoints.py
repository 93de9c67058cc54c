"""A run that was stopped and resumed equals the run that was never stopped, to the last bit."""

import contextlib
import os
import resource
import signal

import pytest
import torch
from comparing import equal_science
from pickles import Bomb
from processor import NARROWEST
from stopping import NEVER, checkpoint_of, stop, stopping_at
from trained import run

from lora import cli
from lora.records import provenance
from lora.records.record import read_record, record_path
from lora.training import evaluation, processes
from lora.training.processes import InterruptedRunError

EPOCHS = 3  # of five steps


def load(path):
    return torch.load(path, weights_only=True)


SETTINGS = [
    ("method=full", "train.kernels=fused"),  # sparse gradients, and embedding rows that no batch has touched
    ("method=lora", "train.kernels=stock", "train.accumulation=2", "task=mnli"),
    ("method=lora", "train.kernels=fused", "data.batching=similar_length"),
    ("method=houlsby", "train.kernels=fused", f"train.precision={NARROWEST}"),
    ("method=lora", "method.dora=true", "train.kernels=stock", "task=stsb", "train.head_dropout=0.5"),
    ("method=vera", "method.options={r: 4, vera_dropout: 0.1}", "train.head_lr=4e-3"),
    ("method=lora", "method.frozen_a=true", "train.kernels=fused", f"train.precision={NARROWEST}"),
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
    processes.noted.clear()
    left = load(checkpoint_of(config))["state"]
    assert (len(left["losses"]), left["epochs"]) == (5, [])
    assert equal_science(run(config)[0], whole[0])


def test_it_is_written_by_the_clock_too_and_holds_the_trained_part_only(tiny_config):
    config = tiny_config("method=lora", "runtime.checkpoint_minutes=0")
    sizes, dtypes = [], set()

    def look(progress):
        if progress.step > 1:
            content = load(checkpoint_of(config))
            assert len(content["state"]["step_seconds"]) == progress.step - 1
            sizes.append(sum(tensor.numel() for tensor in content["parameters"].values()))
            dtypes.update(moments["exp_avg"].dtype for moments in content["optimizer"]["state"].values())

    record, *_ = run(config, look)
    trained = record.params["trainable_method"] + record.params["trainable_head"]
    assert set(sizes) == {trained} and trained < record.params["total"]
    assert dtypes == {torch.float32}


def test_a_checkpoint_made_from_something_else_is_named_and_not_used(tiny_config, listening, capsys):
    config = tiny_config()
    stop(config, 3)
    content = load(checkpoint_of(config))
    assert set(content["made_from"]) == {"settings", "runtime", "inputs", "code", "processors"}
    for key in content["made_from"]:
        torch.save(content | {"made_from": content["made_from"] | {key: None}}, checkpoint_of(config))
        assert run(config)[0].provenance["resumed"] == 0
        assert capsys.readouterr().err.count(f"made from other {key}): starting from the beginning") == 1


def test_the_code_that_training_depends_on_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    digests = []
    for name in ("training/step.py", "training/fused/kernels.py", "data/tasks.py", "report/page.py", "sweep/plan.py"):
        path = tmp_path / "lora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# a comment")
        digests.append(provenance.code_digest.__wrapped__())
    assert len(set(digests[:3])) == 3 and set(digests[3:]) == {digests[2]}
    assert provenance.code_digest.__wrapped__() != digests[0]


DAMAGE = {
    "cut short": lambda path, content: path.write_bytes(path.read_bytes()[:-100]),
    "code": lambda path, content: torch.save({**content, "code": Bomb(path.with_name("ran"))}, path),
    "foreign": lambda path, content: torch.save({"a": torch.zeros(3)}, path),
    "no schedule": lambda path, content: torch.save({n: v for n, v in content.items() if n != "schedule"}, path),
    "other shapes": lambda path, content: torch.save(
        {**content, "parameters": {n: p[:1] for n, p in content["parameters"].items()}}, path
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_or_foreign_checkpoint_is_named_and_the_run_starts_anew(tiny_config, listening, capsys, damage):
    config = tiny_config("method=lora")
    whole, *_ = run(config)
    stop(config, 3)
    path = checkpoint_of(config)
    DAMAGE[damage](path, load(path))
    capsys.readouterr()
    record, *_ = run(config)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is not used (") and not path.with_name("ran").exists()
    assert record.provenance["resumed"] == 0
    assert equal_science(record, whole)


def test_the_handler_that_was_there_before_decides_what_follows(tiny_config, monkeypatch):
    """If a batch system's handler returns, the run continues. The checkpoint exists in case a kill follows."""
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        processes.listen()
        config = tiny_config(NEVER)
        record, *_ = run(config, stopping_at(3))
        assert seen == [signal.SIGTERM] and record.status == "ok"
        assert checkpoint_of(config).exists()
        assert not processes.noted
    finally:
        for signum, handler in processes.before.items():
            signal.signal(signum, handler)
        signal.signal(signal.SIGTERM, previous)
        processes.before.clear()


@contextlib.contextmanager
def largest_file(size):
    """Make the kernel refuse to write longer files midway, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_without_room_costs_the_checkpoint_not_the_run(tiny_config, capsys):
    config = tiny_config("runtime.checkpoint_minutes=0")
    with largest_file(2000):
        record, *_ = run(config)
    assert record.status == "ok"
    assert "continuing without a checkpoint: cannot write" in capsys.readouterr().err
    assert not list(checkpoint_of(config).parent.iterdir())


def test_a_disk_without_room_costs_the_adapter_not_the_run(tiny_config, tiny_overrides, capsys):
    config = tiny_config("method=full", "runtime.save_adapter=true")
    path, written = record_path(config.runtime.results, config.run_id), []
    for _ in range(2):  # a new run, then a finished one
        with largest_file(20_000):
            assert cli.main([*tiny_overrides, "method=full", "runtime.save_adapter=true"]) == 1
        told = capsys.readouterr()
        assert "continuing without its adapter: cannot write" in told.err and "runtime.save_adapter" not in told.out
        written.append(path.read_bytes())
        assert read_record(path).adapter is None and written[0] == written[-1]
