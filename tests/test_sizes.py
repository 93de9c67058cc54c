"""Scores against the number of train rows: the grid of `experiment=rows`, its epochs, its rates, and its report."""

import math

import pytest
from own_tasks import learnable, write_csv, write_task

from lora.config.rates import Rate, nearest_rate, write_rates
from lora.errors import UserError
from lora.sweep.request import check_tuning, grids_text, select_runs
from lora.sweep.sizes import halves
from lora.sweep.tune import rate_grids

FIXED = ["train.precision=fp32", "train.kernels=stock"]


@pytest.fixture
def asked(tmp_path):
    """The words that ask for the sizes of a task of 900 train rows, without rates."""
    for split, rows in (("train", 900), ("dev", 40)):
        write_csv(tmp_path / "data" / f"{split}.csv", learnable(rows, 1))
    where = [f"task={write_task(tmp_path / 'data')}", f"runtime.results={tmp_path}/results"]
    return [*where, "experiment=rows", *FIXED]


@pytest.mark.parametrize("whole", [64, 65, 900, 1024, 67349])
def test_sizes_are_halves_down_to_a_sixteenth_or_32_rows(whole):
    sizes = halves(whole)
    assert sizes == [whole >> place for place in range(len(sizes))]
    assert min(sizes) >= 32 and len(sizes) == 1 + min(4, int(math.log2(whole / 32)))


def test_all_methods_share_the_sizes_and_the_run_on_all_rows_is_the_tasks_own(asked):
    runs = select_runs("own", asked)
    assert len(runs) == 3 * 5 * 5 and {run.train_rows for run in runs} == {900, 450, 225, 112, 56}
    for run in runs:
        steps = run.config.train.epochs * math.ceil(run.train_rows / run.config.train.batch)
        assert steps >= 200 and run.config.train.epochs == max(10, math.ceil(200 / math.ceil(run.train_rows / 16)))
        assert run.config.rows["draw"] == (None if run.train_rows == 900 else run.seed)
    usual = [word for word in asked if word != "experiment=rows"]
    own = select_runs("own", [*usual, "experiment=own_task", "seed=1,2,3,4,5"])
    assert {run.run_id for run in own} == {run.run_id for run in runs if run.train_rows == 900}
    assert grids_text("own", asked, runs) == ["75 runs of rows, on 56, 112, 225, 450, 900 train rows"]


def test_sizes_and_epochs_can_be_given(asked):
    runs = select_runs("own", [*asked, "data.train_rows=100,null", "train.epochs=3", "method=bitfit", "seed=7"])
    assert {(run.config.data.train_rows, run.config.train.epochs) for run in runs} == {(100, 3), (None, 3)}
    for words, message in (
        (["data.train_rows=1000"], "must be from 2, a row for each class, to 899, fewer than all"),
        (["data.train_rows=100", "data.train_draw=some"], "data.train_draw must be one of fixed, seed"),
    ):
        with pytest.raises(UserError, match=message):
            select_runs("own", [*asked, *words])


def test_a_task_that_cannot_be_halved_is_one_message(asked, tmp_path):
    write_csv(tmp_path / "data" / "train.csv", learnable(63, 1))
    with pytest.raises(UserError, match="has 63 train rows, and needs at least 64 train rows for sizes of halves, or"):
        select_runs("own", asked)


def test_a_run_takes_the_rate_of_the_nearest_size(asked, tmp_path):
    task = select_runs("own", [*asked, "method=lora", "seed=1"])[0].task.name
    place = "minilm", "ours", task, "lora"
    few, all_rows = (Rate(*place, lr, (0,), {lr: 0.5}, rows) for lr, rows in ((1e-2, 100), (1e-3, None)))
    for rows, lr in ((50, 1e-2), (299, 1e-2), (300, 1e-3), (301, 1e-3), (900, 1e-3)):  # 300 is as far from 100 as 900
        assert nearest_rate([few, all_rows], place, rows, 900).lr == lr
    write_rates(tmp_path / "results" / "rates.yaml", [few, all_rows])
    runs = select_runs("own", [*asked, "method=lora", "seed=1"])
    rates = {56: 1e-2, 112: 1e-2, 225: 1e-2, 450: 1e-3, 900: 1e-3}
    assert {run.train_rows: run.config.train.lr for run in runs} == rates
    full = Rate("minilm", "ours", task, "full", 1e-4, (0,), {1e-4: 0.5})
    write_rates(tmp_path / "results" / "rates.yaml", [full])
    both = select_runs("own", [*asked, "method=full,lora", "seed=1"])
    with pytest.raises(UserError, match="tuned alike, got full with 1 values, lora with 1 values on 100 rows on moods"):
        check_tuning(both, str(tmp_path / "results" / "rates.yaml"))


def test_tune_takes_several_sizes_at_the_length_of_the_runs(asked):
    given = {"task": [asked[0].removeprefix("task=")], "method": ["lora"], "data.train_rows": ["56", "450"]}
    grids = rate_grids("own", given)
    assert [(first.data.train_rows, axes["train.epochs"]) for first, axes in grids] == [(56, ["50"]), (450, ["10"])]
    assert len({tuple(axes["train.lr"]) for _, axes in grids}) == 1 and len(grids[0][1]["train.lr"]) == 5
