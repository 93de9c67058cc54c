"""What a sweep says before and while it runs: its estimated time, where it is."""

import dataclasses
import os
import re
import sys
import time

import pytest
from cells import record
from synthetic import synthetic_record
from trained import planned

from lora.records.record import write_record
from lora.sweep import progress, state
from lora.sweep.launch import announcement
from lora.sweep.notes import held
from lora.sweep.progress import Display, Watch, duration
from lora.sweep.request import select_runs, sweep_settings
from lora.sweep.state import estimator, own_records, sweep_state
from lora.training.loop import Progress


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "RESULTS", tmp_path)  # no records of this clone's user
    return select_runs("mini", ["task=reviews", "seed=1,2", "method=lora,full", "experiment=null"])


def watch(runs, folder, done=0) -> Watch:
    return Watch(runs, done, str(folder), str(folder), 2)


def test_estimates_come_from_the_most_similar_records(runs):
    lora = next(run for run in runs if run.method == "lora")
    alike, other = record(seconds=10.0), record("minilm.full.ratings.s1-00000000", seconds=99.0)
    other.config.update(method={"name": "full"}, task="ratings")
    assert estimator([alike, other])(lora) == pytest.approx(1.0 * lora.examples)  # 10 s for 10 examples, one epoch
    assert estimator([other])(lora) == pytest.approx(9.9 * lora.examples)
    assert estimator([])(lora) is None


def test_the_users_own_records_count_and_committed_ones_do_not(tmp_path, monkeypatch):
    results = tmp_path / "results"
    monkeypatch.setattr(state, "RESULTS", results)
    names = [f"minilm.full.reviews.s{seed}-00000000" for seed in range(4)]
    for folder, name in zip(("results/mini", "results/reference/mini", "elsewhere"), names, strict=False):
        write_record(tmp_path / folder, record(name))
    write_record(results / "mini", record(names[3], status="failed", error="it broke", provenance=None))
    assert {one.run_id for one in own_records(tmp_path / "elsewhere")} == {names[0], names[2]}


def announced(profile, runs, records, folder) -> str:
    settings = sweep_settings(profile, [f"runtime.results={folder}"])
    now = sweep_state(runs, records, [])
    return "\n".join(announcement(settings, runs, now, () if records else runs, 2))


def test_the_announcement_says_what_and_how_long(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "RESULTS", tmp_path)
    for words in ("unknown until the first run has ended", "time:    about"):
        text = announced("mini", runs, [], tmp_path / "mini")
        assert "4 runs: 0 done, 0 failed, 4 to train, 2 at a time" in text and words in text
        titles = {"full": "Full fine-tuning", "lora": "LoRA"}
        rates = {run.method: f"{titles[run.method]} {run.config.train.lr:g}" for run in runs}
        assert f"encoder: minilm; epochs: {runs[0].config.train.epochs}\n" in text
        assert f"rates:   {', '.join(rates.values())} (from conf/hparams)\n" in text
        write_record(tmp_path / "mini", record())
    text = announced("mini", runs, [synthetic_record(run, 0.5) for run in runs], tmp_path / "mini")
    assert text.startswith("profile mini: nothing to train, all 4 runs are in ")


def test_finished_runs_are_counted_with_metric_and_time_left(runs, tmp_path, capsys):
    """On two workers. A record has 10 examples; no encoder has an earlier one."""
    view = watch(runs, tmp_path, 3)
    with view.shown():
        write_record(tmp_path, record(runs[0].run_id, value=0.834, seconds=50.0))
        view.look()
        write_record(tmp_path, record(runs[1].run_id, status="failed", error="it broke", seconds=50.0))
    first, second = capsys.readouterr().err.splitlines()
    left = 5 * sum(run.examples for run in runs[1:]) / 2
    assert first == f"[  4/7] left {duration(left)}  {title(runs[0])}  {runs[0].run_id}  accuracy 83.4  50 s"
    assert second.startswith("[  5/7] ") and "failed: it broke" in second


def test_the_time_left_follows_records_then_the_pace_and_falls_while_a_run_ends(runs, tmp_path, capsys, monkeypatch):
    write_record(tmp_path / "mini", record("minilm.lora-qv-r8.reviews.s9-00000000", seconds=1.0))
    view = watch(runs[:1], tmp_path)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with held(tmp_path, runs[0].run_id) as note:
        for step, pace in ((0, None), (23, 2.0), (50, 2.0), (94, 2.0)):
            note.write({"step": step, "steps": 100, "epoch": 1, "metric": None, "pace": pace})
            view.look()
    told = re.findall("left (.*?)  ", capsys.readouterr().err)
    assert told == [*map(duration, (0.1 * runs[0].examples, 154, 100, 12))]


def test_without_a_terminal_a_sweep_says_where_it_is(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    view = watch(runs, tmp_path)
    view.look()
    with held(tmp_path, runs[0].run_id) as note:
        note(Progress(step=5, steps=9, epoch=1, metric=0.5))
        view.look()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[  0/4] left ?  nothing trains yet"
    assert second == f"[  0/4] left ?  56% {title(runs[0])}"


def test_a_terminal_shows_a_bar_and_lines_of_what_failed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    old = write_record(tmp_path, record(runs[1].run_id))  # of a run that is trained again
    os.utime(old, (time.time() - 60, time.time() - 60))
    view = watch(runs, tmp_path)
    path = write_record(tmp_path, record(runs[0].run_id, value=0.834))
    os.utime(path, (time.time() - 9, time.time() - 9))  # a file system whose clock lags behind
    write_record(tmp_path, record(runs[1].run_id, status="failed", error="it broke"))
    with held(tmp_path, runs[2].run_id) as one, held(tmp_path, runs[3].run_id) as other:
        one(Progress(step=5, steps=9, epoch=1, metric=0.5))
        other(Progress(step=9, steps=9, epoch=1, metric=0.5))
        with view.shown():
            pass
    _, failed, *_, bar, cleared = capsys.readouterr().err.split("\r\x1b[K")
    assert "it broke" in failed and runs[1].run_id in failed and failed.endswith("\n")
    assert bar.startswith(f"{'━' * 10}{'╌' * 10} [  2/4] left") and len(bar) < 80 and not cleared
    assert {*re.findall(r"\d+%", bar)} == {"56%", "100%"}


def test_a_run_that_tries_a_rate_is_named_by_it(runs):
    tuned, tried = (dataclasses.replace(runs[0], experiments=(name,)) for name in ("tune", "learning_rate"))
    assert progress.run_title(tried) == f"{title(runs[0])} · {runs[0].config.train.lr:g}"
    with_rows = title(runs[0]).replace("reviews", "reviews · 400 rows")
    assert progress.run_title(tuned) == f"{with_rows} · {runs[0].config.train.lr:g}"
    assert progress.run_title(dataclasses.replace(runs[0], experiments=("rows",))) == with_rows


def title(run) -> str:
    return f"{ {'lora': 'LoRA qv r8', 'full': 'Full fine-tuning'}[run.method] } · reviews · seed {run.seed}"


EPOCHS = [{"epoch": number, "step": 4 * number, "train_loss": 0.5 / number, "metrics": {}} for number in (1, 2)]


@pytest.mark.parametrize("first", [1, 7])
def test_a_single_run_has_a_line_per_epoch_and_a_resumed_one_repeats_none(first, tiny_config, tmp_path, capsys):
    """Two epochs of four steps each. An epoch's metric is known in the next epoch."""
    with held(tmp_path, "x") as note:
        display = Display(planned(tiny_config()), note)
        for step in range(first, 9):
            epoch = (step + 3) // 4
            for watcher in (display, note):
                watcher(Progress(step, 8, epoch, (None, 0.25)[epoch - 1], EPOCHS[: epoch - 1]))
    epochs = [{**epoch, "metrics": {"validation": {"matthews": 0.5}}} for epoch in EPOCHS]
    chosen = {"epoch": 2, "value": 0.5}
    selected = {"metric": "matthews", "split": "validation", "best": chosen, "last": chosen}
    display.end(dataclasses.replace(record(), epochs=epochs, selected=selected))
    one, two = capsys.readouterr().err.splitlines()
    assert two == "epoch 2 of 2: matthews 50.0, train loss 0.250"
    expected = r"epoch 1 of 2: matthews 25\.0, train loss 0\.500, left \d+ s"
    assert re.fullmatch(expected if first == 1 else "resumes in epoch 2 of 2: step 7 of 8", one)
