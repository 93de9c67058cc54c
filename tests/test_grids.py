"""Overrides select from a profile's grids, replace values of a named experiment, or are refused."""

import itertools

import pytest

from lora.config.compose import compose_run
from lora.errors import UserError
from lora.sweep.expand import expand, selected
from lora.sweep.grids import grid, same_value
from lora.sweep.request import default_of, replacements, requested


def ids(runs):
    return {run.run_id for run in runs}


def with_parents(chosen, every):
    """The run_ids of the chosen runs of a profile, and of the MNLI runs that they start from."""
    parents = {run.parent for run in chosen}
    return ids(chosen) | {run.run_id for run in every if run.run_id in parents}


@pytest.mark.parametrize(
    ("profile", "overrides"),
    [
        ("mini", ["task=reviews"]),
        ("mini", ["method=lora", "seed=2"]),
        ("small", ["task=cola"]),
        ("small", ["task=rte", "method=lora", "seed=1"]),
        ("small", ["task=mrpc", "start=mnli"]),
        ("small", ["start=pretrained", "seed=4"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_single_values_select_from_the_profiles_runs(profile, overrides):
    """The truth: all runs of the profile, selected by their own attributes."""
    every = expand(profile)
    wanted = [tuple(override.split("=")) for override in overrides]
    chosen = [run for run in every if all(str(getattr(run, key)) == value for key, value in wanted)]
    assert 0 < len(chosen) < len(every)
    assert ids(requested(profile, overrides)) == with_parents(chosen, every)


def test_a_setting_selects_the_runs_that_have_it_whichever_experiment_expects_them():
    """`method.rank` is varied by two experiments of mini; LoRA of glue_table2 has rank 8 too."""
    every = expand("mini")
    ranks = {run.run_id: getattr(compose_run(run.overrides).method, "rank", None) for run in every}
    found = requested("mini", ["method.rank=8"])
    assert ids(found) == {run_id for run_id, rank in ranks.items() if rank == 8}
    assert {name for run in found for name in run.experiments} == {"glue_table2", "lora_targets", "lora_ranks"}


def test_a_setting_that_no_grid_varies_holds_for_all_runs():
    before, after = expand("mini"), requested("mini", ["train.epochs=1"])
    assert len(before) == len(after) and not ids(before) & ids(after)
    assert {compose_run(run.overrides).train.epochs for run in after} == {1}
    (one,) = (run for run in requested("small", ["experiment=glue_table2", "task=cola", "seed=1", "train.epochs=1"])
              if run.method == "lora")  # fmt: skip
    assert (one.task, one.seed, compose_run(one.overrides).train.epochs) == ("cola", 1, 1)


def test_values_of_a_named_experiment_are_replaced_where_its_grid_lacks_them_and_this_is_said():
    asked = ["experiment=glue_table2", "task=cola", "seed=11"]
    assert {(run.method, run.task, run.seed) for run in requested("small", asked)} == {
        (method, "cola", 11) for method in ("full", "lora", "houlsby", "bitfit", "pfeiffer")
    }
    assert list(map(str, replacements("small", asked))) == [
        "seed=11 is not in the grid of glue_table2: it replaces 1, 2, 3, 4, 5"
    ]
    assert not replacements("small", asked[:2]) and not replacements("small", ["task=cola"])


def test_lists_of_a_named_experiment_may_hold_both():
    """bitfit's block has seeds 1 to 3. A method that no block has joins the selected ones."""
    runs = requested("small", ["experiment=glue_table2", "task=cola", "method=full,bitfit,adapterdrop", "seed=3,4,11"])
    assert {(run.method, run.seed) for run in runs} == {
        *((method, seed) for method in ("full", "adapterdrop") for seed in (3, 4, 11)),
        *((method, seed) for method in ("bitfit", "adapterdrop") for seed in (3, 11)),
    }


def test_each_named_experiment_is_taken_by_itself():
    """lora_targets has seeds 1 to 3, mnli_start 1 to 5."""
    asked = ["experiment=lora_targets,mnli_start", "seed=3,4"]
    seeds = {name: {run.seed for run in requested("small", asked) if name in run.experiments} for name in
             ("lora_targets", "mnli_start")}  # fmt: skip
    assert seeds == {"lora_targets": {3, 4}, "mnli_start": {1, 3, 4}}, "1: the MNLI run that all start from"
    assert list(map(str, replacements("small", asked))) == ["seed=4 is not in the grid of lora_targets: it joins 3"]


def test_the_default_of_a_profile_is_taken_where_a_command_selects_nothing():
    """A key that no grid varies selects nothing. One that a grid varies selects from all of the profile's runs."""
    tasks = ("sst2", "mrpc", "cola", "rte", "stsb")
    for asked in ([], ["train.epochs=1"]):
        runs = requested("small", asked)
        assert sorted((run.method, run.task, run.seed) for run in runs) == sorted(
            itertools.product(("full", "lora", "houlsby"), tasks, (1, 2, 3))
        )
        assert len(runs) == 45 and {run.start for run in runs} == {"pretrained"}
    every = expand("small")
    assert ids(requested("small", [])) < ids(requested("small", [], whole=True)) == ids(every)
    assert default_of("small", ["data.path=x"]) == {
        "experiment": ["glue_table2"],
        "method": ["full", "lora", "houlsby"],
        "seed": ["1", "2", "3"],
    }
    for selecting in (["task=rte"], ["experiment=glue_table2"], ["train.lr=1e-3,2e-3"]):
        assert not default_of("small", selecting)
    assert not default_of("mini", []) and ids(requested("mini", [])) == ids(expand("mini"))


def test_lists_without_an_experiment_are_a_grid_of_their_own():
    runs = requested("small", ["task=cola", "seed=1,11"])
    assert {(run.method, run.seed, run.experiments) for run in runs} == {("lora", seed, ("adhoc",)) for seed in (1, 11)}


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("small", ["task=rte", "seed=11"], r"seed=11 is in no grid of profile small: .*glue_table2.* 1, 2, 3, 4, 5"),
        ("mini", ["task=clauses"], "task=clauses is in no grid of profile mini: .* reviews, ratings, scrambled"),
        ("mini", ["method=adapterdrop"], "method=adapterdrop is in no grid .*\nAdd experiment=NAME .* leave out -m"),
        ("mini", ["method=bitfit", "task=scrambled"], "no run of profile mini has method=bitfit, task=scrambled"),
        ("mini", ["start=mnli", "task=reviews"], "start must be pretrained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_no_run_has_is_refused_with_what_exists(profile, overrides, message):
    with pytest.raises(UserError, match=message):
        requested(profile, overrides)


def test_numbers_are_compared_by_value():
    assert same_value("train.lr", "1e-3", "0.001") and not same_value("train.lr", "1e-3", "0.002")
    assert same_value("method.targets", "[q, v]", "[q,v]") and not same_value("seed", "1", "11")
    assert "0.001" in grid("small", "learning_rate")[1]["train.lr"]
    asked = ["experiment=learning_rate", "task=cola", "method=lora", "train.lr=1e-3"]
    (one,) = requested("small", asked)
    assert one.run_id in ids(expand("small", [], ["learning_rate"]))


def test_a_report_of_selected_runs_shows_no_experiment_that_has_none_of_them():
    """mnli_start cannot have the task: its grid is not replaced, although the report looks at every experiment."""
    assert selected("small", "mnli_start", ["task=cola"]) == []
    assert ids(selected("small", "mnli_start", ["task=rte"])) < ids(expand("small"))
