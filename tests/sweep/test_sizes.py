"""Scores against the number of train rows: the grid of `experiment=rows`, its epochs, its rates, and its report."""

import itertools
import math

import numpy as np
import pytest
import tiny
from own_tasks import folders, learnable, settings, write, write_csv, write_task
from scipy import stats
from synthetic import noise, populate

from lora.cli import main
from lora.config.rates import Rate, nearest_rate, write_rates
from lora.data.metrics import LOWER
from lora.data.own_task import read_task
from lora.data.read import read
from lora.errors import UserError
from lora.records.record import load_records
from lora.report.build import build_report
from lora.report.gather import gather
from lora.report.train_rows import size_sentences, with_sizes
from lora.sweep.launch import own_facts
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
        (["data.train_rows=1000"], "must be from 2, a row for each class, to 899 with train_draw=seed"),
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
    with pytest.raises(UserError, match="got full with 1 values, lora with 1 values, at 100 rows on moods"):
        check_tuning(both, str(tmp_path / "results" / "rates.yaml"))


def test_tune_takes_several_sizes_at_the_length_of_the_runs(asked):
    given = {"task": [asked[0].removeprefix("task=")], "method": ["lora"], "data.train_rows": ["56", "450"]}
    grids = rate_grids("own", given)
    assert [(first.data.train_rows, axes["train.epochs"]) for first, axes in grids] == [(56, ["50"]), (450, ["10"])]
    assert len({tuple(axes["train.lr"]) for _, axes in grids}) == 1 and len(grids[0][1]["train.lr"]) == 5


def test_what_rows_are_like_says_of_which_rows_it_is(asked):
    whole = own_facts(select_runs("own", [*asked, "method=lora", "seed=3,4"]))
    part = own_facts(select_runs("own", [*asked, "method=lora", "seed=3,4", "data.train_rows=56"]))
    assert whole and part and not any("of the" in line for line in whole)
    assert all(line.endswith(", of the 56 train rows that seed 4 draws") for line in part)


def test_rates_for_numbers_of_rows_leave_the_rate_on_all_rows(asked):
    """All rows are tuned for where they are asked for as such; and a rate that was chosen on them comes first."""
    given = {"task": [asked[0].removeprefix("task=")], "method": ["lora"], "data.train_rows": ["450", "null"]}
    part, whole = rate_grids("own", given)
    assert (part[0].data.train_rows, whole[0].data.train_rows) == (450, None)
    with pytest.raises(UserError, match=r"data.train_rows=900 is all rows of .*: null tunes for them"):
        rate_grids("own", given | {"data.train_rows": ["450", "900"]})
    place = whole[0].model.name, whole[0].protocol, whole[0].task, "lora"
    on_all = Rate(*place, 1e-3, (0,), {1e-3: 0.5})
    by_number = Rate(*place, 2e-3, (0,), {2e-3: 0.5}, 900)
    for order in ([on_all, by_number], [by_number, on_all]):
        assert nearest_rate(order, place, 900, 900) == on_all


# The report


def score(run):
    """LoRA is ahead on few rows, full fine-tuning has the best mean on all; both gain with every doubling."""
    few = run.train_rows < 900
    level = {"full": 0.6, "lora": 0.65 if few else 0.595}[run.method]
    wobble = 0.001 * (run.seed * (5 if run.method == "lora" else 3) % 7) * (1 if few else 5)
    return level + 0.02 * math.log2(run.train_rows / 56) + wobble


def test_a_report_says_what_more_rows_add_and_which_method_is_ahead(asked, tmp_path):
    runs = populate(tmp_path / "results", "own", [*asked, "method=full,lora"], score)
    of = {(run.method, run.train_rows, run.seed): 100 * score(run) for run in runs}
    report = build_report("own", asked)

    def shown(values):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        word = "higher" if low > 0 else "lower" if high < 0 else "undecided"
        return f"{np.mean(values):+.1f} ({low:+.1f} to {high:+.1f})", word

    added, word = shown([of["lora", 900, seed] - of["lora", 450, seed] for seed in range(1, 6)])
    start = "LoRA (qv, r8), moods-"
    (line,) = (line for line in report.answers if line.startswith(start))
    ending = f"900 train rows instead of 450 change the score by {added}, n = 5: {word}"
    assert line.endswith(ending)
    few, word = shown([of["lora", 56, seed] - of["full", 56, seed] for seed in range(1, 6)])
    smallest, largest = (line for line in report.answers if line.startswith("At "))
    assert word == "higher" and smallest.startswith("At 56 train rows of moods-")
    assert smallest.endswith(f": LoRA (qv, r8) is ahead: {few} against Full fine-tuning; n = 5")
    many, word = shown([of["full", 900, seed] - of["lora", 900, seed] for seed in range(1, 6)])
    assert word == "undecided" and largest.startswith("At 900 train rows")
    assert f"undecided: Full fine-tuning has the best mean, {many} against LoRA (qv, r8); n = 5" in largest
    (table,) = (table for table in report.tables if table.name == "rows_own")
    assert [value.number for value in table.values["Train rows"]] == [56, 112, 225, 450, 900]
    medians = [np.median([of["lora", size, seed] for seed in range(1, 6)]) for size in (56, 112, 225, 450, 900)]
    assert [value.number for value in table.values["LoRA (qv, r8)"]] == pytest.approx(medians)
    (panel,) = report.figures["rows_own"]["panels"]
    means = {line["label"]: dict(zip(line["x"], line["y"], strict=True)) for line in panel["series"]}
    assert means["Full fine-tuning"][225] == pytest.approx(np.mean([of["full", 225, s] for s in range(1, 6)]), abs=1e-3)


def test_the_method_ahead_is_that_of_the_seeds_that_all_methods_have(asked, tmp_path):
    """LoRA's mean is the higher one only because full fine-tuning has further seeds, which are bad."""
    level = {"full": lambda seed: 0.7 if seed < 6 else 0.1, "lora": lambda seed: 0.68}
    for method, seeds in (("lora", "1,2,3,4,5"), ("full", "1,2,3,4,5,6,7,8,9")):
        words = [*asked, f"method={method}", f"seed={seeds}", "data.train_rows=56,null"]
        populate(tmp_path / "results", "own", words, lambda run: level[run.method](run.seed) + 1e-4 * noise(run.run_id))
    lines = [line for line in build_report("own", asked[1:2]).answers if line.startswith("At ")]
    assert len(lines) == 2 and all("Full fine-tuning is ahead: +2.0 (" in line and "n = 5" in line for line in lines)


def test_a_tie_has_no_best_mean(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=full,lora", "data.train_rows=56"], lambda run: 0.5)
    (line,) = build_report("own", asked[1:2]).answers
    assert "undecided: Full fine-tuning and LoRA (qv, r8) have the same mean, +0.0 against LoRA" in line
    assert "the same on every seed" in line


def test_a_gain_between_rates_that_were_tuned_unlike_is_not_judged(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=lora", "data.train_rows=56,null"], score)
    runs = with_sizes(gather("own", asked[1:2]).runs)
    place, whole = ("minilm", "ours", "moods", "lora", 1e-3, (0,)), {1e-3: 0.5}
    for few, word in ((whole, "higher"), ({1e-3: 0.5, 1e-2: 0.4}, "not judged, because their learning rates")):
        origin = {size: Rate(*place, tried, size % 900 or None) for size, tried in ((56, few), (900, whole))}
        origins = {run.run_id: f"tuned, of {origin[run.size].tuned_alike}" for run in runs.itertuples()}
        (line,) = size_sentences(runs, origins)
        assert f"n = 5: {word}" in line


def test_a_doubling_is_one_beside_other_sizes_and_a_metric_of_which_less_is_better_is_named(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=lora", "data.train_rows=225,450,600,null"], score)
    gathered = gather("own", asked[1:2])
    runs = with_sizes(gathered.runs.assign(metric=f"loss{LOWER}"))
    (line,) = size_sentences(runs, {})
    assert f"{LOWER}: 900 train rows instead of 450" in line


def test_a_collapsed_run_without_a_score_is_named(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=lora", "data.train_rows=56,null"], score)
    runs = with_sizes(gather("own", asked[1:2]).runs)
    lost = runs["seed"].eq(3) & runs["size"].eq(56)
    (line,) = size_sentences(runs.assign(best=runs["best"].mask(lost), collapsed=lost.astype(float)), {})
    assert "n = 4: " in line and line.endswith(" (1 of 10 runs collapsed)")


def test_methods_that_were_not_tuned_alike_are_not_compared(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=lora"], score)
    task = select_runs("own", [*asked, "method=full", "seed=1"])[0].task.name
    write_rates(tmp_path / "results" / "rates.yaml", [Rate("minilm", "ours", task, "full", 1e-4, (0,), {1e-4: 0.5})])
    populate(tmp_path / "results", "own", [*asked, "method=full", f"rates={tmp_path}/results/rates.yaml"], score)
    compared = [line for line in build_report("own", asked).answers if line.startswith("At ")]
    assert len(compared) == 2 and all(
        "not judged, because their learning rates were not chosen alike" in c for c in compared
    )


def test_methods_and_sizes_of_a_seed_share_its_train_rows(tmp_path, model_dir, capsys):
    """Trained: a launch from tables to sentences, whose runs hold the fingerprints of what they read."""
    write(tmp_path / "data", 64, 24)
    write_csv(tmp_path / "data" / "test.csv", learnable(20, 3))
    path = write_task(tmp_path / "data", test="test.csv")
    words = [
        f"task={path}",
        "experiment=rows",
        "method=full,lora",
        "seed=1,2",
        *settings(model_dir),
        *folders(tmp_path),
    ]
    assert main(["-m", "profile=own", *words, "train.epochs=1"]) == 0
    out = capsys.readouterr().out
    assert "8 runs of rows, on 32, 64 train rows" in out and "64 train rows instead of 32" in out
    (tested,) = (table for table in build_report("own", words[-2:]).tables if table.name == "rows_test_own")
    assert tested.cells[["Method", "Train rows", "Runs"]].values.tolist() == [
        [method, size, "2"] for size in ("32", "64") for method in ("Full fine-tuning", "LoRA (qv, r8)")
    ]
    records, problems = load_records(tmp_path / "results")
    prints = {}
    for record in records:
        rows, seed = record.provenance["data"]["rows"]["train"], record.config["seed"]
        prints.setdefault((rows, seed), set()).add(record.provenance["data"]["fingerprint"])
    assert not problems and {key: len(of_cell) for key, of_cell in prints.items()} == dict.fromkeys(
        itertools.product((32, 64), (1, 2)), 1
    )
    assert prints[32, 1] != prints[32, 2] and prints[64, 1] == prints[64, 2]
    capsys.readouterr()
    assert main(["-m", "profile=own", *words, "train.epochs=1"]) == 0
    assert "nothing to train, all 8 runs" in capsys.readouterr().out
    write_csv(tmp_path / "data" / "train.csv", learnable(64, 9))
    for other in ([], ["seed=3", "data.train_rows=40"]):  # of these rows, no record has a part
        assert main(["-m", "profile=own", *words, "train.epochs=1", *other]) == 2
        assert "error: the train rows of moods-" in capsys.readouterr().err


def test_train_rows_outside_the_subset_choose_the_epoch_and_the_dev_rows_only_score(tmp_path, model_dir):
    """The epoch is the best on rows that follow the subset's in the seed's order; the score is that epoch's on dev."""
    path = write(tmp_path / "data", 80, 24)
    words = [f"task={path}", "experiment=null", "method=lora", "seed=3", *settings(model_dir), *folders(tmp_path)]
    words += ["data.train_rows=32", "data.train_draw=seed", "train.selection=train_rows", "train.epochs=6"]
    assert main(["-m", "profile=own", *words]) == 0
    (record,), _ = load_records(tmp_path / "results")
    choosing, dev = (
        [epoch["metrics"][split]["accuracy"] for epoch in record.epochs] for split in ("train_rows", "validation")
    )
    assert record.selected["best"] == {"epoch": 1 + int(np.argmax(choosing)), "value": dev[np.argmax(choosing)]}
    task = read_task(path)
    first, left = (read(task, "own", train_rows=32, draw=3, left=left).splits["train"]["idx"] for left in (False, True))
    assert not {*first} & {*left} and {*first, *left} == {
        *read(task, "own", train_rows=64, draw=3).splits["train"]["idx"]
    }
    for changed, message in (
        ("data.train_rows=41", "at most half of 80"),
        ("data.train_draw=fixed", "must be seed with"),
    ):
        with pytest.raises(UserError, match=message):
            select_runs("own", [*words, changed])


def test_the_claims_on_labels_are_judged_at_their_size_on_the_average_of_both_tasks(tmp_path):
    def drawn(run):
        gain = {"full": 0.0, "houlsby": 0.01, "lora": 0.03 if run.train_rows == 100 else -0.02}[run.method]
        return 0.8 + gain + 0.004 * noise(run.run_id)

    runs = populate(tmp_path / "rows", "rows", ["experiment=rows", *FIXED], drawn)
    of = {(run.method, run.train_rows, run.task.name, run.seed): 100 * drawn(run) for run in runs}
    verdicts = {verdict.claim.id: verdict for verdict in build_report("rows", [], tmp_path).verdicts}
    for claim, method, size in (
        ("lora_above_full_at_100_rows", "lora", 100),
        ("lora_above_full_at_300_rows", "lora", 300),
        ("adapters_above_full_at_100_rows", "houlsby", 100),
    ):
        values = [
            np.mean([of[method, size, task, seed] - of["full", size, task, seed] for task in ("stsb", "sst2")])
            for seed in range(41, 51)
        ]
        (finding,) = verdicts[claim].findings
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert finding.n == 10 and np.allclose([finding.mean, finding.low, finding.high], [np.mean(values), low, high])
        word = "supported" if low > 0 else "contradicted" if high < 0 else "undecided"
        assert verdicts[claim].word == word, claim
    assert {verdicts[claim].word for claim in verdicts if "_rows" in claim} == {"supported", "contradicted"}


def test_the_last_launch_of_a_size_stands_in_the_table_and_stated_rates_have_rows_of_their_own(asked, tmp_path):
    few = ["method=lora", "data.train_rows=56,null", "seed=1,2"]
    populate(
        tmp_path / "results", "own", [*asked, "method=lora", "data.train_rows=56", "seed=3", "train.lr=0.5"], score
    )
    for more in (["train.epochs=3"], [], ["train.lr=0.5"]):
        populate(tmp_path / "results", "own", [*asked, *few, *more], score)
    tables = {table.name: table for table in build_report("own", asked[1:2]).tables}
    shown = tables["rows_own"].cells
    assert [name for name in shown if name.startswith("LoRA")] == ["LoRA (qv, r8), lr=0.001", "LoRA (qv, r8), lr=0.5"]
    assert shown["Epochs"].tolist() == ["50", "10"] and len(tables["own_own"].cells) > 0


def test_a_report_takes_the_number_of_all_rows_for_all_rows(asked, tmp_path):
    populate(tmp_path / "results", "own", [*asked, "method=lora", "data.train_rows=56,900", "seed=1,2"], score)
    report = build_report("own", [asked[1], "experiment=rows", "data.train_rows=56,900"])
    (table,) = (table for table in report.tables if table.name == "rows_own")
    assert [value.number for value in table.values["Train rows"]] == [56, 900]


def test_methods_of_two_encoders_or_of_other_epochs_are_not_compared(asked, tmp_path):
    few = ["data.train_rows=56,null", "seed=1,2,3,4,5"]
    populate(tmp_path / "results", "own", [*asked, *few, "method=lora", "train.epochs=9"], score)
    populate(tmp_path / "results", "own", [*asked, *few, "method=full", "train.epochs=4"], score)
    compared = [line for line in build_report("own", [asked[1]]).answers if line.startswith("At ")]
    assert len(compared) == 2 and all("not compared, because their epochs differ" in line for line in compared)
    folder = tiny.folder(tmp_path / "other", "bert")
    where = ["model=local", f"model.path={folder}", "data.max_length=32", f"runtime.results={tmp_path}/two"]
    populate(
        tmp_path / "two", "own", [asked[0], *asked[2:], *few, "method=lora", f"runtime.results={tmp_path}/two"], score
    )
    populate(tmp_path / "two", "own", [asked[0], *asked[2:], *few, "method=full", *where], score)
    report = build_report("own", [f"runtime.results={tmp_path}/two"])
    assert not [line for line in report.answers if line.startswith("At ")]
    (table,) = (table for table in report.tables if table.name == "rows_own")
    assert [name.partition(", ")[2].partition("-")[0] for name in table.cells.columns[3:]] == ["r8), all", "other"]
