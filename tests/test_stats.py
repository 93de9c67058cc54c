"""Intervals against SciPy's own, their coverage by simulation, corrections by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora.errors import UserError
from lora.order import drawn
from lora.stats import (
    all_pairs,
    holm,
    mean_interval,
    median_coverage,
    paired_differences,
    paired_p,
    resamples,
)


def runs(values: dict[tuple[str, int], float], slug: str = "lora") -> pd.DataFrame:
    rows = [
        {"run_id": f"{slug}.{task}.s{seed}", "task": task, "seed": seed, "best": value}
        for (task, seed), value in values.items()
    ]
    return pd.DataFrame(rows, columns=["run_id", "task", "seed", "best"])


def test_runs_are_paired_by_task_and_seed():
    one = runs({("rte", 1): 0.70, ("rte", 2): 0.60, ("cola", 1): 0.5, ("cola", 3): math.nan})
    other = runs({("rte", 2): 0.65, ("rte", 1): 0.60, ("cola", 2): 0.4, ("cola", 3): 0.1}, "full")
    pairs = paired_differences(one, other)
    assert pairs[["task", "seed", "run_id", "run_id_other"]].values.tolist() == [
        ["rte", 1, "lora.rte.s1", "full.rte.s1"],
        ["rte", 2, "lora.rte.s2", "full.rte.s2"],
    ]
    assert pairs["difference"].tolist() == pytest.approx([10.0, -5.0])


def test_two_runs_of_one_seed_are_no_side_of_a_pair():
    twice = pd.concat([runs({("rte", 1): 0.7}), runs({("rte", 1): 0.6}, "other")])
    with pytest.raises(UserError, match=r"one task and seed.*lora\.rte\.s1, other\.rte\.s1"):
        paired_differences(twice, runs({("rte", 1): 0.6}))


def test_the_range_of_a_few_seeds_covers_the_median_as_often_as_said():
    source = np.random.default_rng(0)
    for n, said in ((3, 0.75), (5, 0.9375)):
        values = source.exponential(size=(20_000, n))  # of any continuous distribution
        covered = (values.min(axis=1) < math.log(2)) & (values.max(axis=1) > math.log(2))
        assert median_coverage(n) == said == pytest.approx(covered.mean(), abs=0.01)


def test_many_values_give_the_interval_of_scipys_bootstrap():
    values = np.random.default_rng(1).normal(0.3, 1, 400)
    ours = mean_interval([values])
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert (ours.mean, ours.n) == (pytest.approx(values.mean()), 400)


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 3), (1, 4), (1, 5), (1, 10), (4, 5), (3, 3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(tasks, seeds):
    """Where plain percentiles of one task's 5 seeds cover 84%."""
    source, covered, repeats = np.random.default_rng(3), 0, 600
    for _ in range(repeats):
        found = mean_interval([source.normal(task, 1 + task, seeds) for task in range(tasks)])
        covered += found.low <= (tasks - 1) / 2 <= found.high
    assert 0.92 <= covered / repeats <= 0.985


def test_tasks_are_strata_that_count_alike():
    """The mean is over tasks, however many seeds each has; the spread between tasks is no part of the interval."""
    found = mean_interval([np.array([1.0, 1.0, 1.0]), np.array([5.0, 5.0])])
    assert (found.mean, found.low, found.high, found.n) == (3.0, 3.0, 3.0, 2)


def test_an_interval_is_the_same_each_time_and_turns_with_its_sign():
    """The same resamples serve every comparison, so one - other and other - one mirror each other."""
    values = np.array([0.1, 0.5, -0.2, 0.9, 0.3])
    found, mirrored = mean_interval([values]), mean_interval([-values])
    assert found == mean_interval([values.copy()])
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_three_values_alone_have_students_interval():
    values = np.array([0.5, 1.0, 2.5])
    found = mean_interval([values])
    expected = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_strata_are_resampled_apart():
    assert (resamples(5, 0) != resamples(5, 1)).any() and resamples(5, 0).max() == 4


@pytest.mark.parametrize("strata", [[], [np.array([])], [np.array([1.0]), np.array([])]])
def test_without_values_there_is_no_mean(strata):
    found = mean_interval(strata)
    assert math.isnan(found.mean) and math.isnan(found.low) and found.n == 0


def test_one_value_has_no_interval():
    found = mean_interval([np.array([2.0])])
    assert (found.mean, found.n) == (2.0, 1) and math.isnan(found.low) and math.isnan(found.high)


def test_p_values_are_scipys():
    one, other = np.array([0.5, 0.7, 0.6, 0.9]), np.array([0.4, 0.5, 0.7, 0.6])
    assert paired_p(one - other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert math.isnan(paired_p(np.array([1.0]))) and math.isnan(paired_p(np.array([0.2, 0.2])))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0 and math.isnan(holm([0.5, math.nan])[1])
    assert holm([]) == []


def test_holm_keeps_the_error_of_a_family_where_nothing_is_true():
    families = np.random.default_rng(4).uniform(size=(4000, 10))
    wrong = np.mean([min(holm(list(family))) < 0.05 for family in families])
    assert wrong == pytest.approx(1 - 0.995**10, abs=0.012)  # the smallest of 10 is compared with 0.005


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
    assert table["p"].notna().tolist() == [False, True, False, False, True]  # Full and LoRA differ alike on CoLA
    assert len(all_pairs({})) == 0


def test_draws_are_even_and_reproducible():
    many = drawn((70_000,), 7, "dice")
    assert stats.chisquare(np.bincount(many, minlength=7)).pvalue > 1e-3
    assert drawn((3, 4), 9, "a", 1).tolist() == drawn((3, 4), 9, "a", 1).tolist() != drawn((3, 4), 9, "a", 2).tolist()
