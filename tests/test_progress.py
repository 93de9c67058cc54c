"""The progress display of runs and sweeps, and their estimated time."""

import dataclasses
import re
import time

import pytest
from synthetic import synthetic_record
from test_results import record

from lora.records.record import write_record
from lora.sweep import progress
from lora.sweep.announce import announcement
from lora.sweep.estimate import estimator
from lora.sweep.notes import Note
from lora.sweep.progress import Display, Watch
from lora.sweep.request import select_runs
from lora.sweep.state import state, state_of
from lora.training.loop import Progress


@pytest.fixture
def runs():
    return select_runs("mini", ["task=reviews", "seed=1,2", "method=lora,full", "experiment=null"])


def watch(runs, folder, done=0, expected=None, workers=1) -> Watch:
    expected = dict.fromkeys((run.run_id for run in runs), expected)
    return Watch(runs, done, expected, workers, str(folder), str(folder))


def test_finished_runs_are_counted_with_metric_and_time_left(runs, tmp_path, capsys):
    view = watch(runs, tmp_path, 3, 100.0, 2)
    with view.shown():
        assert view.left() == "3 min"  # four runs of 100 s, two at a time
        write_record(tmp_path, record(runs[0].run_id, value=0.834, seconds=50.0))
        write_record(tmp_path, record(runs[1].run_id, status="failed", error="it broke", seconds=50.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[  4/7] ") and lines[1].startswith("[  5/7] ")
    assert any("accuracy 83.4  50 s" in line for line in lines)
    assert any("failed: it broke" in line for line in lines)
    assert lines[1].endswith("left 50 s")  # two left, twice as fast as expected


def test_the_first_run_that_ends_gives_the_time_of_the_others(runs, tmp_path):
    """No estimate exists: the nine runs that are done were timed on another machine."""
    view = watch(runs, tmp_path, 9)
    assert view.left() == "?"
    write_record(tmp_path, record(runs[0].run_id, seconds=20.0))
    view.look()
    assert {run.examples for run in runs} == {runs[0].examples}
    assert view.left() == "60 s"  # three left, each as long as the first


def test_without_a_terminal_a_sweep_says_where_it_is(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    view = watch(runs, tmp_path)
    view.look()
    Note(str(tmp_path), runs[0].run_id)(Progress(step=5, steps=9, epoch=1, metric=0.5))
    view.look()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[  0/4] left ?  nothing trains yet"
    assert second == f"[  0/4] left ?  {runs[0].run_id.rsplit('-', 1)[0]} 5/9 50.0"


EPOCHS = [{"epoch": number, "step": 4 * number, "train_loss": 0.5 / number, "metrics": {}} for number in (1, 2)]


def steps_of(display, first, metrics=(None, 0.25)):
    """Display two epochs of four steps each, from step `first` on. An epoch's metric is known in the next epoch."""
    for step in range(first, 9):
        epoch = (step + 3) // 4
        display(Progress(step, 8, epoch, metrics[epoch - 1], EPOCHS[: epoch - 1]))


def ended(tiny_config):
    config = tiny_config()
    epochs = [{**epoch, "metrics": {"validation": {"matthews": 0.5}}} for epoch in EPOCHS]
    chosen = {"epoch": 2, "value": 0.5}
    selected = {"metric": "matthews", "split": "validation", "best": chosen, "last": chosen}
    return config, dataclasses.replace(record(), epochs=epochs, selected=selected)


def test_a_single_run_has_a_line_per_epoch_where_there_is_no_terminal(tiny_config, capsys):
    config, done = ended(tiny_config)
    display = Display(config)
    steps_of(display, 1)
    display.end(done)
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"epoch 1 of 2: matthews 25\.0, train loss 0\.500, left \d+ s", first)
    assert second == "epoch 2 of 2: matthews 50.0, train loss 0.250"


def test_a_resumed_run_says_from_where_and_repeats_no_epoch(tiny_config, capsys):
    config, done = ended(tiny_config)
    display = Display(config)
    steps_of(display, 7)
    display.end(done)
    assert capsys.readouterr().err.splitlines() == [
        "resumes after step 6 of 8, in epoch 2",
        "epoch 2 of 2: matthews 50.0, train loss 0.250",
    ]


def test_a_single_run_says_now_and_then_where_it_is(tiny_config, capsys, monkeypatch):
    """Also before its first step, when it loads libraries, the encoder and the rows."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    display = Display(tiny_config())
    with display.shown():
        time.sleep(0.5)
        assert "loading the encoder and the rows" in capsys.readouterr().err.splitlines()
        steps_of(display, 1)
        time.sleep(0.5)
    assert "epoch 2 of 2: step 8 of 8, left 0 s" in capsys.readouterr().err.splitlines()


def test_estimates_come_from_the_most_similar_records(runs):
    lora = next(run for run in runs if run.method == "lora")
    alike, other = record(seconds=10.0), record("minilm.full.ratings.s1-00000000", seconds=99.0)
    other.config.update(method={"name": "full"}, task="ratings")
    assert estimator([alike, other])(lora) == pytest.approx(1.0 * lora.examples)  # 10 s for 10 examples, one epoch
    assert estimator([other])(lora) == pytest.approx(9.9 * lora.examples)
    assert estimator([])(lora) is None


def test_the_announcement_says_what_and_how_long(runs, tmp_path):
    now = state(runs, tmp_path)
    text = announcement("mini", runs, now, runs, {run.run_id: 60.0 for run in runs}, 2, "results/mini")
    assert "4 runs: 0 done, 0 failed, 4 to train, 2 at a time" in text and "about 2 min" in text and "reviews" in text
    done = state_of(runs, [synthetic_record(run, 0.5) for run in runs], [])
    text = announcement("mini", runs, done, [], {}, 2, "results/mini")
    assert text.startswith("profile mini: nothing to train, all 4 runs are in results/mini already")
