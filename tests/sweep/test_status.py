"""`python -m lora status`: every state of a run, from the files that workers leave."""

import contextlib
import json
import multiprocessing
import os
import time

import pytest
from cells import record
from rich.console import Console

from lora.cli import main
from lora.files import write_atomically
from lora.records.record import checkpoint_path, note_path, write_record
from lora.sweep import status
from lora.sweep.notes import held, read_notes
from lora.sweep.request import select_runs
from lora.sweep.status import statuses, text
from lora.training.loop import Progress


@pytest.fixture
def runs():
    return select_runs("mini", ["task=reviews", "seed=1,2,3,4,5,6", "method=lora", "experiment=null"])


def of(runs, folder):
    """run_id -> status, with a record of the encoder that took 0.1 s per train example."""
    timed = record("minilm.full.ratings.s9-00000000", seconds=1.0)
    return statuses(runs, folder, folder, [timed])


def change_note(folder, run_id, **changes):
    path = note_path(folder, run_id)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_every_state(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    notes = contextlib.ExitStack()
    done, busy, cut, killed, failed, waiting = (run.run_id for run in runs)
    write_record(tmp_path, record(done, seconds=30.0))
    write_record(tmp_path, record(failed, status="failed", error="it broke"))
    notes.enter_context(held(tmp_path, busy))(Progress(step=100, steps=400, epoch=1, metric=0.5))
    change_note(tmp_path, busy, step=200, pace=0.5)
    write_atomically(checkpoint_path(tmp_path, cut), b"")
    notes.enter_context(held(tmp_path, killed))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        change_note(tmp_path, killed, pid=pool.apply(os.getpid))
    found = of(runs, tmp_path)
    assert {run_id: one.state for run_id, one in found.items()} == {
        done: "done", busy: "running", cut: "interrupted", killed: "interrupted", failed: "failed", waiting: "waiting",
    }  # fmt: skip
    assert found[busy].seconds == pytest.approx(100)
    assert f"on process {os.getpid()} of " in found[busy].text and "slurm 7, since" in found[busy].text
    expected = found[waiting].seconds
    assert expected == pytest.approx(0.1 * runs[-1].examples)
    assert found[cut].seconds == found[killed].seconds == expected
    shown = text("mini", found)
    notes.close()
    assert "6 runs: 1 done, 1 running, 2 interrupted, 1 failed, 1 waiting" in shown
    assert f"{failed}  it broke" in shown and "step 200/400, metric 50.0  left 2 min" in shown


def test_a_note_goes_with_its_run_and_one_of_another_machine_is_believed_for_a_while(runs, tmp_path):
    run_id, folder = runs[0].run_id, tmp_path / "outputs"
    with held(folder, run_id):
        assert set(read_notes(folder)) == {run_id}
        path = change_note(folder, run_id, host="another", pid=1)
        assert of(runs, folder)[run_id].state == "running"
        os.utime(path, (time.time() - 3600, time.time() - 3600))
        assert of(runs, folder)[run_id].state == "interrupted"
    assert not list(tmp_path.iterdir())


def test_the_live_view_ends_when_nothing_runs(runs, tmp_path, monkeypatch):
    """At the first look a run is training, from the second on none is."""
    monkeypatch.setattr(status, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(status, "IDLE_SECONDS", 0.05)
    note = held(tmp_path, runs[0].run_id)
    note.__enter__()(Progress(step=3, steps=9, epoch=1, metric=0.5))
    console = Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr("rich._console", console)
    looks = []

    def look():
        looks.append(statuses(runs, tmp_path, tmp_path))
        note_path(tmp_path, runs[0].run_id).unlink(missing_ok=True)
        return looks[-1]

    status.watch("mini", look)
    shown = console.export_text()
    assert len(looks) > 1 and "nothing runs" in shown and f"{runs[0].run_id}  step 3/9, metric 50.0" in shown


def test_runs_of_the_paper_have_a_bound_of_device_hours(capsys, tmp_path):
    overrides = ("experiment=glue_table2", "model=roberta_base", "method=lora", "task=sst2", "seed=1")
    main(["status", "paper", *overrides, f"runtime.results={tmp_path}"])
    hours = 6 * 125e6 * 67_349 * 60 * 512 / 100e12 / 3600
    assert f"at most {hours:,.1f} device hours" in capsys.readouterr().out


def test_the_committed_runs_of_a_profile_have_a_state_too(capsys):
    main(["status", "reference/mini"])
    assert "profile reference/mini: 118 runs: 118 done" in capsys.readouterr().out
