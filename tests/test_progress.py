"""What is shown while a sweep runs."""

import time

import pytest
from synthetic import synthetic_record
from test_results import record

from lora.records.record import write_record
from lora.sweep.announce import announcement, compute_bound
from lora.sweep.expand import estimator, expand, state, state_of
from lora.sweep.progress import Note, Watch, duration, shown
from lora.training.loop import Progress


@pytest.fixture
def cells():
    return expand("mini", ["task=reviews", "seed=1,2", "method=lora,full"], adhoc=True)


def test_finished_cells_are_counted_with_metric_and_time_left(cells, tmp_path, capsys):
    expected = {cell.run_id: 100.0 for cell in cells}
    with Watch(cells, 3, expected, 2, str(tmp_path), str(tmp_path)) as watch:
        assert watch.left() == "3 min"  # four cells of 100 s, two at a time
        write_record(tmp_path, record(cells[0].run_id, value=0.834, seconds=50.0))
        write_record(tmp_path, record(cells[1].run_id, status="failed", error="it broke", seconds=50.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[  4/7] ") and lines[1].startswith("[  5/7] ")
    assert any("accuracy 83.4  50 s" in line for line in lines)
    assert any("failed: it broke" in line for line in lines)
    assert lines[1].endswith("left 50 s")  # two left, twice as fast as foreseen


def test_an_old_record_is_not_taken_for_a_new_one(cells, tmp_path, capsys):
    path = write_record(tmp_path, record(cells[0].run_id))
    import os

    os.utime(path, (time.time() - 60, time.time() - 60))
    with Watch(cells, 0, {}, 1, str(tmp_path), str(tmp_path)):
        pass
    assert capsys.readouterr().err == ""


def test_notes_show_where_a_cell_is_and_go_with_it(cells, tmp_path):
    watch = Watch(cells, 0, {}, 1, str(tmp_path), str(tmp_path))
    with Note(str(tmp_path), cells[0].run_id) as note:
        note(Progress(step=5, steps=9, epoch=1, metric=0.5))
        assert watch._current() == f"{cells[0].run_id.rsplit('-', 1)[0]} 5/9 50.0"
    assert watch._current() == ""
    assert not list((tmp_path / "running").iterdir())


def test_estimates_come_from_the_most_similar_records(cells):
    lora = next(cell for cell in cells if cell.method == "lora")
    alike, other = record(seconds=10.0), record("minilm.full.ratings.s1-00000000", seconds=99.0)
    other.config.update(method={"name": "full"}, task="ratings")
    assert estimator([alike, other])(lora) == pytest.approx(
        1.0 * lora.report.analyses.dev_intervals
    )  # 10 s for 10 rows, one epoch
    assert estimator([other])(lora) == pytest.approx(9.9 * lora.examples)
    assert estimator([])(lora) is None


def test_the_announcement_says_what_and_how_long(cells, tmp_path):
    now = state(cells, tmp_path)
    text = announcement("mini", cells, now, cells, {cell.run_id: 60.0 for cell in cells}, 2, "results/mini")
    assert "4 of 4 cells to run" in text and "about 2 min" in text and "reviews" in text
    examples = f"{sum(cell.examples for cell in cells):,} training examples"
    assert examples in announcement("mini", cells, now, cells, dict.fromkeys(expected(cells)), 2, "results/mini")
    done = state_of(cells, [synthetic_record(cell, 0.5) for cell in cells], [])
    text = announcement("mini", cells, done, [], {}, 2, "results/mini")
    assert text.startswith("profile mini: nothing to train, all 4 runs are in results/mini already")
    assert "made:    2026-01-01, on none" in text and "of:      minilm, rows from tsv" in text


def expected(cells):
    return [cell.run_id for cell in cells]


def test_paper_scale_states_its_cost_as_an_assumption():
    """RTE, RoBERTa-base, printed: 80 epochs of 2,490 rows of 512 tokens, 6 x 125M operations each, at 100 TFLOP/s."""
    cells = expand(
        "paper", ["model=roberta_base", "method=lora", "protocol=printed", "task=rte", "start=pretrained"], adhoc=True
    )
    (cell,) = cells
    days = 6 * 125e6 * 80 * 2490 * 512 / 100e12 / 86400
    assert cell.tokens == 80 * 2490 * 512
    assert f"at most {days:,.0f} GPU-days" in compute_bound(cells)
    assert "an assumption, not a measurement" in compute_bound(cells)


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_an_unknown_metric_is_a_dash():
    assert (shown(None), shown(0.8342)) == ("-", "83.4")


def test_lines_name_what_a_grid_varies(tmp_path, capsys):
    rates = expand("mini", ["task=reviews", "seed=1", "method=lora", "train.lr=0.0005,0.001"], adhoc=True)
    with Watch(rates, 0, {}, 2, str(tmp_path), str(tmp_path)):
        for cell in rates:
            write_record(tmp_path, record(cell.run_id, value=0.8))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    rate = {cell.run_id: cell.given[0].removeprefix("train.") for cell in rates}
    assert len(lines) == 2 and sorted(rate.values()) == ["lr=0.0005", "lr=0.001"]
    assert all(any(f"{run_id}  {words}  " in line for line in lines) for run_id, words in rate.items())
