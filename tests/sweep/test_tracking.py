"""W&B's copy of a run, offline, read back with W&B's own command and compared with the record."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import wandb
from comparing import equal_science
from trained import ensure_record
from transformers import get_linear_schedule_with_warmup

from lora.cli import main
from lora.files import ROOT
from lora.report.build import build_report
from lora.sweep import tracking
from lora.sweep.notes import Note
from lora.training import processes
from lora.training.processes import InterruptedRunError

# wandb's own code, on pydantic 2.12 and on a closed event loop
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def offline(tiny_config, monkeypatch, tmp_path):
    """A function from overrides to the configuration of a copied run."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return lambda *overrides: tiny_config("runtime.tracking=offline", "runtime.group=glue_table2", *overrides)


def copies(config):
    """The folders of W&B's copies of a run, oldest first."""
    return sorted((ROOT / config.runtime.outputs / "wandb").glob(f"offline-run-*-{config.run_id}"))


def inspected(folder, *options):
    (file,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(folder):
    return json.loads(inspected(folder, "--summary"))


def as_kept(config):
    """The configuration as W&B keeps it: JSON, without empty mappings."""
    kept = {key: as_kept(value) if isinstance(value, dict) else value for key, value in config.items()}
    return json.loads(json.dumps({key: value for key, value in kept.items() if value != {}}))


def test_without_a_home_its_log_stays_out_of_the_terminal(tiny_overrides):
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("HOME", "XDG_", "WANDB_"))}
    command = [sys.executable, "-m", "lora", *tiny_overrides, "runtime.tracking=offline"]
    done = subprocess.run(command, env=bare, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(line.startswith("epoch ") for line in done.stderr.splitlines()), done.stderr


def test_a_copy_holds_what_the_record_holds(offline):
    config = offline("method=lora")
    record = ensure_record(config, mistakes_fail=False)
    (folder,) = copies(config)
    copy = summary(folder)
    assert (copy["run_id"], copy["name"]) == (record.run_id, record.run_id)
    assert copy["config"] == as_kept(record.config)
    found = copy["summary"]
    assert (found["status"], found["seconds"], found["params"]) == ("ok", record.seconds, record.params)
    chosen = {rule: 100 * record.selected[rule]["value"] for rule in ("best", "last")}
    assert {rule: found[rule] for rule in chosen} == chosen
    assert found["best_epoch"] == record.selected["best"]["epoch"]
    assert {k.removeprefix("cost/"): v for k, v in found.items() if k.startswith("cost/")} == record.cost
    steps = record.epochs[-1]["step"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], config.train.lr)
    theirs, rates = get_linear_schedule_with_warmup(optimizer, math.ceil(config.train.warmup_frac * steps), steps), []
    for _ in range(steps):
        rates += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    last = steps // tracking.LOGGED_STEPS * tracking.LOGGED_STEPS
    assert last > 0 and found["train/rate"] == pytest.approx(rates[last - 1]) and found["train/step_ms"] > 0
    assert found["train/loss"] == pytest.approx(record.epochs[-1]["train_loss"], rel=0.5)
    text = inspected(folder)
    assert "glue_table2" in text
    for epoch in record.epochs:
        assert str(epoch["train_loss"]) in text, "every epoch is there"


def test_an_interrupted_run_resumes_under_its_id_and_each_copy_is_whole(offline, listening, monkeypatch):
    config = offline("train.epochs=3", "runtime.checkpoint_minutes=null")
    steps, call = [], Note.__call__

    def stopped(self, progress):
        call(self, progress)
        steps.append(progress.step)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Note, "__call__", stopped)
    with pytest.raises(InterruptedRunError):
        ensure_record(config, mistakes_fail=False)
    processes.noted.clear()
    time.sleep(1.1)  # W&B names a run's folder by the second
    record = ensure_record(config, mistakes_fail=False)
    first, whole = map(summary, copies(config))
    assert first["run_id"] == whole["run_id"] == config.run_id
    assert (first["summary"]["status"], whole["summary"]["status"]) == ("interrupted", "ok")
    assert first["summary"]["epoch"] == 1
    for epoch in record.epochs:
        assert str(epoch["train_loss"]) in inspected(copies(config)[1])


def test_a_sweep_ends_with_its_tables_and_figures(offline, tiny_overrides):
    config = offline("method=bitfit", "seed=1")
    asked = [*tiny_overrides, "runtime.tracking=offline", "experiment=null", "method=bitfit", "seed=1"]
    assert main(["-m", *asked]) == 0
    (folder,) = set((ROOT / config.runtime.outputs / "wandb").glob("offline-run-*")) - {*copies(config)}
    report = build_report("small", [f"runtime.results={config.runtime.results}"])
    kept = {path.name: json.loads(path.read_text()) for path in (folder / "files/media/table/tables").iterdir()}
    assert len(kept) == len(report.tables) >= 2
    for table in report.tables:
        (one,) = [value for name, value in kept.items() if name.startswith(f"{table.name}_")]
        assert one["columns"] == [*table.cells] and one["data"] == table.cells.to_numpy().tolist()
    pictures = (folder / "files/media/images/figures").iterdir()
    assert {re.sub(r"_\d+_\w+\.png$", "", path.name) for path in pictures} == {*report.figures}


@pytest.mark.parametrize("broken", ["init", "a server that does not answer"])
def test_no_failure_reaches_the_run(offline, tiny_config, monkeypatch, tmp_path, capsys, broken):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = offline()
        if broken == "init":
            monkeypatch.setattr(wandb, "init", lambda **given: 1 / 0)
        else:
            monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
            config = tiny_config("runtime.tracking=auto")
        record = ensure_record(config, mistakes_fail=False)
    said = "no copy for W&B: ZeroDivisionError" if broken == "init" else "its copy stays offline"
    assert record.status == "ok" and said in capsys.readouterr().err
    assert len(copies(config)) == (0 if broken == "init" else 1)
    quiet = ensure_record(tiny_config(f"runtime.results={tmp_path}/quiet"), mistakes_fail=False)
    assert equal_science(record, quiet)
