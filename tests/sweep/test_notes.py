"""A lock has one owner at a time, whatever dies, and what killed workers leave of finished runs is removed."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest
from commands import lora

from lora.files import ROOT
from lora.records.record import adapter_path, checkpoint_path, note_path, predictions_path, read_record, record_path
from lora.sweep import notes
from lora.sweep.notes import HeldError, held
from lora.sweep.worker import clean_up

RUN_ID = "a.b.c.s1-00000000"
HOLD = """
import sys, time
from lora.sweep.notes import held
with held(*sys.argv[1:]): print("held", flush=True); time.sleep(1000)
"""


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def test_it_is_held_by_one_process_until_that_dies(outputs):
    process = subprocess.Popen([sys.executable, "-c", HOLD, outputs, RUN_ID], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        message = rf"^{RUN_ID} is being trained by process {process.pid} of "
        with pytest.raises(HeldError, match=message), held(outputs, RUN_ID):
            pass
    finally:
        process.kill()
        process.communicate()
    with held(outputs, RUN_ID):
        assert json.loads(note_path(outputs, RUN_ID).read_text())["where"].startswith(f"process {os.getpid()} of ")
    assert not outputs.exists(), "nothing is left, not even empty folders"


TAKE = """
import sys, time
from pathlib import Path
from lora.sweep.notes import HeldError, held
total, times = Path(sys.argv[2]), 20
while times:
    try:
        with held(sys.argv[1], "a"):
            total.write_text(str(int(total.read_text()) + 1))
            times -= 1
    except HeldError:
        time.sleep(0.001)
"""


def test_of_many_that_take_it_at_once_one_gets_it(outputs, tmp_path):
    total = tmp_path / "total"
    total.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", TAKE, outputs, total]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert total.read_text() == "60"


def test_a_file_system_without_locks_is_named_once_and_runs_go_on(outputs, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    notes._say_without_locks.cache_clear()
    for _ in range(2):
        with held(outputs, RUN_ID):
            pass
    said = f"has no file locks ({os.strerror(errno.ENOLCK)}): a run may be trained twice, to the same record\n"
    assert capsys.readouterr().err == f"{outputs / 'running'} {said}"


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


def test_the_next_command_clears_a_finished_run_whose_worker_was_killed(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "method=bitfit", "task=cola", "seed=1", "runtime.checkpoint_minutes=0"]
    process = subprocess.run([sys.executable, "-c", KILLED, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (record,) = (tmp_path / "results" / "runs").iterdir()
    before, outputs = record.read_bytes(), tmp_path / "outputs"
    assert list((outputs / "checkpoints").iterdir()) and list((outputs / "running").iterdir())
    assert lora(*overrides).returncode == 0
    assert not [path for name in ("checkpoints", "running") for path in (outputs / name).glob("*")]
    assert record.read_bytes() == before and read_record(record).status == "ok"


def test_everything_that_a_killed_worker_can_leave_of_a_run_goes_and_nothing_else(outputs, tmp_path):
    results = tmp_path / "results"
    record, predictions = record_path(results, RUN_ID), predictions_path(results, RUN_ID)
    adapter, checkpoint = adapter_path(outputs, RUN_ID).parent, checkpoint_path(outputs, RUN_ID)
    gone = [path.with_name(f".{path.name}.abcdefgh") / "new" for path in (record, predictions, adapter, checkpoint)]
    kept = [record, predictions, adapter / "adapter.safetensors", checkpoint_path(outputs, RUN_ID.replace("s1", "s2"))]
    for file in (checkpoint, *gone, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    with held(outputs, RUN_ID):
        clean_up(results, outputs, RUN_ID)
        assert all(file.exists() for file in (checkpoint, *gone, *kept)), "another worker has it"
    note_path(outputs, RUN_ID).parent.mkdir()
    note_path(outputs, RUN_ID).write_text("")
    clean_up(results, outputs, RUN_ID)
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)
    assert not list(tmp_path.rglob(".*"))
