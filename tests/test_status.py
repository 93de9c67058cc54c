"""`python -m lora status`: every state of a run, from the files that workers leave."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save
from test_results import record

from lora.files import ROOT, write_atomically
from lora.records.record import checkpoint_path, write_record
from lora.sweep import live
from lora.sweep.expand import expand
from lora.sweep.locks import create, lock_path, myself
from lora.sweep.progress import Note
from lora.sweep.status import others_running, standings, text, totals
from lora.training.loop import Progress


@pytest.fixture
def runs():
    return expand("mini", ["task=reviews", "seed=1,2,3,4,5,6", "method=lora"], adhoc=True)


def timed(run):
    """A record of another run of the encoder: 0.1 s per train example."""
    return record("minilm.full.ratings.s9-00000000", seconds=1.0)


def by_id(runs, folder):
    return {one.run_id: one for one in standings(runs, folder, folder, [timed(runs[0])])}


def leave_checkpoint(folder, run_id, step, steps):
    run = {"step": step, "steps": steps}
    write_atomically(checkpoint_path(folder, run_id), save({"a": np.zeros(1)}, {"run": json.dumps(run)}))


def test_every_state(runs, tmp_path):
    done, busy, cut, killed, failed, waiting = (run.run_id for run in runs)
    write_record(tmp_path, record(done, seconds=30.0))
    write_record(tmp_path, record(failed, status="failed", error="it broke"))
    assert create(lock_path(tmp_path, busy), dataclasses.replace(myself(), job="slurm 7"))
    note = Note(str(tmp_path), busy)
    note(Progress(step=100, steps=400, epoch=1, metric=0.5))
    content = json.loads(note.path.read_bytes())
    write_atomically(note.path, json.dumps(content | {"step": 200, "time": content["since"] + 50}).encode())
    leave_checkpoint(tmp_path, cut, 10, 40)
    assert create(lock_path(tmp_path, killed), dataclasses.replace(myself(), ticks=1))
    found = by_id(runs, tmp_path)
    assert {i: one.state for i, one in found.items()} == {
        done: "done", busy: "running", cut: "interrupted", killed: "interrupted", failed: "failed", waiting: "waiting",
    }  # fmt: skip
    assert (found[busy].step, found[busy].steps, found[busy].left_seconds) == (200, 400, pytest.approx(100))
    assert f"process {os.getpid()}, slurm 7" in found[busy].where
    assert (found[cut].step, found[cut].steps) == (10, 40)
    expected = found[waiting].left_seconds
    assert expected == pytest.approx(0.1 * runs[-1].examples)
    assert found[cut].left_seconds == pytest.approx(0.75 * expected)
    assert found[killed].left_seconds == expected
    assert found[failed].reason == "it broke"
    sums = totals(list(found.values()))
    assert sums["left_seconds"] == pytest.approx(100 + 2.75 * expected)
    assert (sums["runs"], sums["spent_seconds"], sums["unknown"]) == (6, 30.0, 0)
    shown = text("mini", list(found.values()))
    assert "6 runs: 1 done, 1 running, 2 interrupted, 1 failed, 1 waiting" in shown
    assert f"{failed}  it broke" in shown and "step 200/400, metric 50.0  left 2 min" in shown
    assert "by records of this machine" in shown


def test_without_records_of_this_machine_the_time_left_is_unknown(runs, tmp_path):
    found = standings(runs, tmp_path, tmp_path)
    assert {one.left_seconds for one in found} == {None}
    assert "time left:  unknown until the first run has ended" in text("mini", found)


def test_runs_that_were_started_with_other_overrides_are_shown_too(runs, tmp_path):
    """Only those that are training: a lock whose owner is dead does not concern this sweep."""
    other, dead = "minilm.lora-qv-r4.ratings.s1-00000000", "minilm.full.ratings.s1-00000000"
    assert create(lock_path(tmp_path, other), myself())
    assert create(lock_path(tmp_path, dead), dataclasses.replace(myself(), ticks=1))
    assert create(lock_path(tmp_path, runs[0].run_id), myself())
    Note(str(tmp_path), other)(Progress(step=3, steps=9, epoch=1, metric=None))
    (found,) = others_running(runs, tmp_path)
    assert (found.run_id, found.state, found.step, found.steps) == (other, "running", 3, 9)
    shown = text("mini", standings(runs, tmp_path, tmp_path), [found])
    assert "6 runs: 0 done, 1 running" in shown
    assert "also running, started with other overrides:\n  " + other in shown


def test_the_live_view_shows_every_state_and_ends_when_nothing_runs(runs, tmp_path, monkeypatch, capsys):
    """The files are real. At the first look a run is training, from the second on none is."""
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(live, "IDLE_SECONDS", 0.05)
    busy, failed = runs[0].run_id, runs[1].run_id
    path = lock_path(tmp_path, busy)
    assert create(path, myself())
    Note(str(tmp_path), busy)(Progress(step=3, steps=9, epoch=1, metric=0.5))
    write_record(tmp_path, record(failed, status="failed", error="it broke"))
    write_record(tmp_path, record(runs[2].run_id))
    leave_checkpoint(tmp_path, runs[3].run_id, 10, 40)
    looks = []

    def look():
        looks.append(standings(runs, tmp_path, tmp_path))
        if len(looks) == 1:
            path.unlink()
        return looks[-1], []

    console = Console(force_terminal=True, width=120)
    live.watch("mini", look, console)
    shown = capsys.readouterr().out
    assert len(looks) > 1 and "nothing runs" in shown
    assert "6 runs: 1 done, 1 running, 1 interrupted, 1 failed, 2 waiting" in shown
    for piece in (busy, "3/9", "50.0", f"failed  {failed}  it broke", f"interrupted  {runs[3].run_id}  step 10/40"):
        assert piece in shown, piece


def test_the_live_view_of_a_finished_sweep_ends_at_once(runs, tmp_path, capsys):
    for run in runs:
        write_record(tmp_path, record(run.run_id))
    began = time.monotonic()
    live.watch("mini", lambda: (standings(runs, tmp_path, tmp_path), []), Console(force_terminal=True, width=120))
    assert time.monotonic() - began < live.LOOK_SECONDS + 1
    assert "6 runs: 6 done" in capsys.readouterr().out


def test_a_worker_of_another_machine_is_believed_until_its_heartbeat_is_old(runs, tmp_path):
    run_id = runs[0].run_id
    path = lock_path(tmp_path, run_id)
    assert create(path, dataclasses.replace(myself(), host="another", table="another boot"))
    assert by_id(runs, tmp_path)[run_id].state == "running"
    os.utime(path, (time.time() - 600, time.time() - 600))
    assert by_id(runs, tmp_path)[run_id].state == "interrupted"


def test_a_failed_run_that_is_trained_again_is_running(runs, tmp_path):
    run_id = runs[0].run_id
    write_record(tmp_path, record(run_id, status="failed", error="it broke"))
    assert create(lock_path(tmp_path, run_id), myself())
    assert by_id(runs, tmp_path)[run_id].state == "running"


def test_a_broken_checkpoint_is_no_error(runs, tmp_path):
    write_atomically(checkpoint_path(tmp_path, runs[0].run_id), b"no checkpoint")
    assert by_id(runs, tmp_path)[runs[0].run_id].state == "interrupted"


def command(*arguments):
    call = [sys.executable, "-m", "lora", "status", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command(runs, tmp_path):
    write_record(tmp_path, record(runs[0].run_id))
    places = [f"runtime.results={tmp_path}", f"runtime.outputs={tmp_path}"]
    request = ["task=reviews", "seed=1,2,3,4,5,6", "method=lora"]
    done = command("mini", *request, *places, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["totals"]["done"] == 1 and content["totals"]["waiting"] == 5
    assert {one["run_id"] for one in content["runs"]} == {run.run_id for run in runs}
    assert "6 runs: 1 done, 0 running" in command("mini", *request, *places).stdout
    watched = command("mini", *request, *places, "--watch")
    assert watched.returncode == 0 and "6 runs: 1 done" in watched.stdout and "\x1b" not in watched.stdout
    bad = command("minni")
    assert bad.returncode == 2 and bad.stderr.startswith("error: profile 'minni' does not exist")
