"""Intervals and p-values against SciPy's own, coverage by simulation, corrections by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora.cost.timing import median_interval, sign_p
from lora.report.runs import chosen_by_others
from lora.report.stats import all_pairs, by_seed, holm, mean_interval, mean_p, paired_differences, seeds_needed

TASKS = ("cola", "mrpc", "rte", "sst2", "stsb")


def runs(values: dict[tuple[str, int], float], slug: str = "lora") -> pd.DataFrame:
    rows = [
        {"run_id": f"{slug}.{task}.s{seed}", "task": task, "seed": seed, "best": value, "device": "a CPU"}
        for (task, seed), value in values.items()
    ]
    return pd.DataFrame(rows, columns=["run_id", "task", "seed", "best", "device"]).assign(terms="")


def test_runs_are_paired_by_task_and_seed():
    one = runs({("rte", 1): 0.70, ("rte", 2): 0.60, ("cola", 1): 0.5, ("cola", 3): math.nan})
    other = runs({("rte", 2): 0.65, ("rte", 1): 0.60, ("cola", 2): 0.4, ("cola", 3): 0.1}, "full")
    pairs = paired_differences(one, other)
    assert pairs[["task", "seed", "run_id", "run_id_other"]].values.tolist() == [
        ["rte", 1, "lora.rte.s1", "full.rte.s1"],
        ["rte", 2, "lora.rte.s2", "full.rte.s2"],
    ]
    assert pairs["difference"].tolist() == pytest.approx([10.0, -5.0])


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_the_interval_is_scipys_of_students_t(count):
    values = np.random.default_rng(count).normal(0.3, 1, count)
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.n) == (pytest.approx(values.mean()), count)


@pytest.mark.parametrize(("correlation", "spreads"), [(0.0, (1, 1, 1, 1, 1)), (0.4, (0.2, 0.5, 1, 2, 4))])
def test_the_interval_of_an_average_over_tasks_covers_the_truth(correlation, spreads):
    """5 seeds of 5 tasks whose differences share a component per seed. Independent strata cover 0.81 at 0.4."""
    source, repeats, seeds = np.random.default_rng(6), 6000, 5
    shared = source.normal(size=(repeats * seeds, 1))
    own = source.normal(size=(repeats * seeds, 5))
    truth = np.arange(5.0)
    values = truth + np.asarray(spreads) * (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own)
    places = np.arange(repeats * seeds)
    pairs = pd.concat(
        pd.DataFrame({"task": task, "seed": places, "difference": values[:, i]}) for i, task in enumerate(TASKS)
    )
    averages = by_seed(pairs, TASKS).to_numpy(float).reshape(repeats, seeds)
    found = [mean_interval(each) for each in averages]
    covered = np.mean([each.low <= truth.mean() <= each.high for each in found])
    assert 0.94 <= covered <= 0.96


@pytest.mark.parametrize("rounds", [6, 9, 20, 61])
def test_the_interval_and_the_sign_test_of_a_median_are_scipys(rounds):
    for values in np.random.default_rng(rounds).lognormal(0.0, 0.3, (20, rounds)).round(1):
        theirs = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
        assert median_interval(values) == (theirs.low, theirs.high)
        for side in ("less", "greater"):
            p = stats.quantile_test(values, q=1, p=0.5, alternative=side).pvalue
            assert sign_p(values, 1.0, side) == pytest.approx(p)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_without_spread_there_is_neither_an_interval_nor_what_follows_from_it(values):
    found = mean_interval(np.array(values))
    assert (found.mean, found.n) == (2.0, len(values)) and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(mean_p(np.array(values), 0, "two-sided"))
    assert math.isnan(seeds_needed(np.array(values), [(0.0, "less")]))


def test_equal_differences_have_no_spread_though_they_are_rounded():
    """A difference of one of RTE's 277 examples, at different levels, varies by 1e-16 before it is rounded."""
    one = runs({("rte", seed): (150 + seed) / 277 for seed in range(1, 6)})
    other = runs({("rte", seed): (149 + seed) / 277 for seed in range(1, 6)})
    values = by_seed(paired_differences(one, other), ["rte"]).to_numpy(float)
    assert math.isnan(mean_interval(values).low) and math.isnan(mean_p(values, 0, "two-sided"))


@pytest.mark.parametrize(
    ("mean", "edges", "comparisons", "known"),
    [(0.5, [(0.0, "less")], 1, 34), (-0.5, [(0.0, "less")], 1, 34), (-0.5, [(0.0, "less")], 4, 47)],
)
def test_the_seeds_needed_are_those_of_tables_of_power(mean, edges, comparisons, known):
    """Cohen 1988: d = 0.5 at a two-sided 5% needs 34 pairs for 80%; at a one-sided 0.625% the sum is of simulations."""
    values = np.array([-1.0, 1.0] * 3)
    values = values / values.std(ddof=1) + mean
    assert seeds_needed(values, edges, comparisons) == pytest.approx(known, abs=0 if comparisons == 1 else 1)


def test_the_seeds_needed_for_a_bound_with_two_ends_are_those_of_simulations():
    values = np.array([-1.0, 1.0] * 3)
    values = values / values.std(ddof=1)
    found = int(seeds_needed(values, [(-1.0, "less"), (1.0, "greater")]))
    draws = np.random.default_rng(0).normal(size=(40_000, found))
    half = stats.t.ppf(0.975, found - 1) * draws.std(axis=1, ddof=1) / math.sqrt(found)
    inside = (draws.mean(axis=1) - half > -1) & (draws.mean(axis=1) + half < 1)
    assert 0.79 < inside.mean() < 0.87  # a seed more or less changes it by 0.04


@pytest.mark.parametrize("side", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("edge", [0.0, 0.2])
def test_p_values_are_scipys(edge, side):
    values = np.array([0.1, 0.2, -0.1, 0.3])
    assert mean_p(values, edge, side) == pytest.approx(stats.ttest_1samp(values, edge, alternative=side).pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0 and math.isnan(holm([0.5, math.nan])[1])
    assert holm([]) == [] and holm([0.6, 0.9]) == [1.0, 1.0]


def test_all_pairs_of_methods():
    groups = {
        "Full": runs({("rte", s): 0.6 for s in (1, 2, 3)} | {("cola", s): 0.3 for s in (1, 2, 3)}),
        "LoRA": runs({("rte", s): 0.6 + s / 100 for s in (1, 2, 3)} | {("cola", s): 0.25 for s in (1, 2, 3)}),
        "BitFit": runs({("rte", s): 0.5 for s in (1, 2)}),
    }
    table = all_pairs(groups)
    assert table[["one", "other", "task", "n"]].values.tolist() == [
        ["LoRA", "Full", "cola", 3],
        ["LoRA", "Full", "rte", 3],
        ["LoRA", "Full", "Avg.", 3],
        ["BitFit", "Full", "rte", 2],
        ["BitFit", "LoRA", "rte", 2],
    ]
    assert table["mean"].tolist() == pytest.approx([-5.0, 2.0, -1.5, -10.0, -11.5])
    averages = np.array([-2.0, -1.5, -1.0])
    assert table["p"][2] == pytest.approx(stats.ttest_1samp(averages, 0).pvalue)
    assert table["p"].notna().tolist() == [False, True, True, False, True]  # Full and LoRA differ alike on CoLA
    low, high = stats.ttest_1samp(averages, 0).confidence_interval(0.95)
    assert (table["low"][2], table["high"][2]) == pytest.approx((low, high))
    none = all_pairs({})
    assert len(none) == 0 and list(none) == list(table)


def test_an_unselected_epoch_is_best_for_the_other_runs():
    values = np.array([[1.0, 5, 2], [3, 4, 1], [2, 6, 9]])  # epochs by runs
    assert chosen_by_others(values).tolist() == [2, 6, 9]
    values[2, 1] = math.nan  # then no run takes the last epoch
    assert chosen_by_others(values).tolist() == [1, 4, 1]
