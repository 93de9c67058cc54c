"""What a worker leaves that is killed when its run is finished: the next command that is asked for it removes it."""

import os
import shutil
import signal
import subprocess
import sys

from commands import lora

from lora.files import ROOT
from lora.records.record import adapter_path, checkpoint_path, note_path, predictions_path, read_record, record_path
from lora.sweep.cleanup import clean_up
from lora.sweep.locks import held, lock_path

RUN_ID = "a.b.c.s1-00000000"
KILLED = """
import os, signal, sys
from lora import cli
from lora.sweep import worker

whole = worker.write_record

def write_record(*given):
    whole(*given)
    os.kill(os.getpid(), signal.SIGKILL)

worker.write_record = write_record
cli.main(sys.argv[1:])
"""


def kill(overrides, tmp_path) -> None:
    """Train a run whose worker is killed right after it has written the record."""
    process = subprocess.run([sys.executable, "-c", KILLED, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert {path.name for path in files(tmp_path / "outputs")} == {"locks", "checkpoints"}


def files(outputs) -> dict:
    """Folder -> names in it, of those that hold what a run leaves behind only for a while."""
    folders = (outputs / name for name in ("locks", "checkpoints", "running"))
    return {folder: names for folder in folders if folder.exists() and (names := os.listdir(folder))}


def test_the_next_command_clears_a_finished_run(tiny_overrides, tmp_path):
    """A sweep and a single run alike."""
    overrides = [*tiny_overrides, "method=bitfit", "task=cola", "seed=1", "runtime.checkpoint_minutes=0"]
    kill(overrides, tmp_path)
    (record,) = (tmp_path / "results" / "runs").iterdir()
    before = record.read_bytes()
    shutil.copytree(tmp_path / "outputs", tmp_path / "left")
    for sweep in ([], ["-m"]):
        assert lora(*sweep, *overrides).returncode == 0
        assert not files(tmp_path / "outputs")
        assert record.read_bytes() == before and read_record(record).status == "ok"
        shutil.copytree(tmp_path / "left", tmp_path / "outputs", dirs_exist_ok=True)


def leave(folder) -> list:
    """Files of every kind that a killed worker of `RUN_ID` can leave, and one that another run's has left."""
    results, outputs = folder / "results", folder / "outputs"
    record, predictions = record_path(results, RUN_ID), predictions_path(results, RUN_ID)
    adapter, lock = adapter_path(outputs, RUN_ID).parent, lock_path(outputs, RUN_ID)
    gone = [checkpoint_path(outputs, RUN_ID), note_path(outputs, RUN_ID), lock]
    gone += [path.with_name(f".{path.name}.abcdefgh") / "new" for path in (record, predictions, adapter, gone[0])]
    kept = [record, predictions, adapter / "adapter.safetensors", checkpoint_path(outputs, RUN_ID.replace("s1", "s2"))]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return kept


def test_everything_of_the_run_goes_and_nothing_else(tmp_path):
    kept = leave(tmp_path)
    clean_up(tmp_path / "results", tmp_path / "outputs", [RUN_ID])
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_was_not_asked_for_or_is_held_stays(tmp_path):
    leave(tmp_path)
    lock = lock_path(tmp_path / "outputs", RUN_ID)
    before = sorted(tmp_path.rglob("*"))
    clean_up(tmp_path / "results", tmp_path / "outputs", [RUN_ID.replace("s1", "s2")])
    assert sorted(tmp_path.rglob("*")) == before
    with held(lock):
        clean_up(tmp_path / "results", tmp_path / "outputs", [RUN_ID])
        assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_a_lock_keeps_the_checkpoint_that_an_interrupted_worker_left(tmp_path):
    """As after Ctrl-C while a finished run is trained once more, for its adapter."""
    checkpoint = checkpoint_path(tmp_path / "outputs", RUN_ID)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("")
    clean_up(tmp_path / "results", tmp_path / "outputs", [RUN_ID])
    assert checkpoint.exists()
