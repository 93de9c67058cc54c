"""`python -m lora status`: every state of a cell, from what workers leave behind."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save
from test_results import record

from lora.files import ROOT, write_atomically
from lora.records.record import checkpoint_path, write_record
from lora.sweep.expand import expand
from lora.sweep.locks import create, lock_path, myself
from lora.sweep.progress import Note
from lora.sweep.status import standings, text, totals
from lora.training.loop import Progress


@pytest.fixture
def cells():
    return expand("mini", ["task=reviews", "seed=1,2,3,4,5,6", "method=lora"], adhoc=True)


def by_id(cells, folder):
    return {one.run_id: one for one in standings(cells, folder, folder)}


def leave_checkpoint(folder, run_id, step, steps):
    run = {"step": step, "steps": steps}
    write_atomically(checkpoint_path(folder, run_id), save({"a": np.zeros(1)}, {"run": json.dumps(run)}))


def test_every_state(cells, tmp_path):
    done, busy, cut, killed, failed, waiting = (cell.run_id for cell in cells)
    write_record(tmp_path, record(done, seconds=30.0))
    write_record(tmp_path, record(failed, status="failed", error="it broke"))
    assert create(lock_path(tmp_path, busy), dataclasses.replace(myself(), job="slurm 7"))
    note = Note(str(tmp_path), busy)
    note(Progress(step=100, steps=400, epoch=1, metric=0.5))
    content = json.loads(note.path.read_bytes())
    write_atomically(note.path, json.dumps(content | {"step": 200, "time": content["since"] + 50}).encode())
    leave_checkpoint(tmp_path, cut, 10, 40)
    assert create(lock_path(tmp_path, killed), dataclasses.replace(myself(), ticks=1))
    found = by_id(cells, tmp_path)
    assert {i: one.state for i, one in found.items()} == {
        done: "done", busy: "running", cut: "interrupted", killed: "interrupted", failed: "failed", waiting: "waiting",
    }  # fmt: skip
    assert (found[busy].step, found[busy].steps, found[busy].left_seconds) == (200, 400, pytest.approx(100))
    assert f"process {os.getpid()}, slurm 7" in found[busy].where
    assert (found[cut].step, found[cut].steps) == (10, 40)
    expected = found[waiting].left_seconds
    assert found[cut].left_seconds == pytest.approx(0.75 * expected)
    assert found[killed].left_seconds == expected
    assert found[failed].reason == "it broke"
    sums = totals(list(found.values()))
    assert sums["left_seconds"] == pytest.approx(100 + 2.75 * expected)
    assert (sums["cells"], sums["spent_seconds"], sums["unknown"]) == (6, 30.0, 0)
    shown = text("mini", list(found.values()))
    assert "6 cells: 1 done, 1 running, 2 interrupted, 1 failed, 1 waiting" in shown
    assert f"{failed}  it broke" in shown and "step 200/400, metric 50.0  left 2 min" in shown


def test_a_worker_of_another_machine_is_believed_until_its_heartbeat_is_old(cells, tmp_path):
    run_id = cells[0].run_id
    path = lock_path(tmp_path, run_id)
    assert create(path, dataclasses.replace(myself(), host="another", table="another boot"))
    assert by_id(cells, tmp_path)[run_id].state == "running"
    os.utime(path, (time.time() - 600, time.time() - 600))
    assert by_id(cells, tmp_path)[run_id].state == "interrupted"


def test_a_failed_cell_that_is_trained_again_is_running(cells, tmp_path):
    run_id = cells[0].run_id
    write_record(tmp_path, record(run_id, status="failed", error="it broke"))
    assert create(lock_path(tmp_path, run_id), myself())
    assert by_id(cells, tmp_path)[run_id].state == "running"


def test_a_broken_checkpoint_is_no_error(cells, tmp_path):
    write_atomically(checkpoint_path(tmp_path, cells[0].run_id), b"no checkpoint")
    assert by_id(cells, tmp_path)[cells[0].run_id].state == "interrupted"


def command(*arguments):
    call = [sys.executable, "-m", "lora", "status", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command(cells, tmp_path):
    write_record(tmp_path, record(cells[0].run_id))
    places = [f"runtime.results={tmp_path}", f"runtime.outputs={tmp_path}"]
    request = ["task=reviews", "seed=1,2,3,4,5,6", "method=lora"]
    done = command("mini", *request, *places, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["totals"]["done"] == 1 and content["totals"]["waiting"] == 5
    assert {one["run_id"] for one in content["cells"]} == {cell.run_id for cell in cells}
    assert "6 cells: 1 done, 0 running" in command("mini", *request, *places).stdout
    bad = command("minni")
    assert bad.returncode == 2 and bad.stderr.startswith("error: profile 'minni' does not exist")
