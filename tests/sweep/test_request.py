"""The three ways to ask for runs: values select from a profile's grids, replace those of one grid, or are the grid."""

import dataclasses
import functools
import itertools
import re
import shlex

import own_tasks
import pytest

from lora.config.rates import Rate, write_rates
from lora.errors import UserError
from lora.files import ROOT
from lora.sweep.request import check_tuning, grids_text, select_runs


@functools.cache
def every_run(profile):
    return select_runs(profile, [])


def ids(runs):
    return {run.run_id for run in runs}


def selected_by_hand(runs, values):
    """The runs whose own attributes have the values, with the MNLI runs that they start from."""
    chosen = [
        run
        for run in runs
        if all(str(getattr(run.config if key == "task" else run, key)) in allowed for key, allowed in values.items())
    ]
    if "start" not in values:
        chosen = [run for run in chosen if run.start == "pretrained" or run.model != "minilm"]
    return ids(chosen) | {run.parent for run in chosen if run.parent}


@pytest.mark.parametrize(
    ("profile", "overrides"),
    [
        ("mini", ["method=full,lora", "seed=1,2"]),
        ("mini", ["seed=2", "task=ratings", "method=lora"]),
        ("long", ["task=rte", "method=lora", "seed=6"]),
        ("long", ["task=rte", "start=mnli"]),
        ("decide", ["seed=11"]),
        ("paper", ["model=roberta_base", "task=rte,cola", "seed=1"]),
    ],
)
def test_values_select_from_all_runs_of_the_profile(profile, overrides):
    """Single values and lists alike. Nothing is added but the MNLI run that a selected run starts from."""
    values = {key: text.split(",") for key, _, text in (override.partition("=") for override in overrides)}
    every = every_run(profile)
    found = ids(select_runs(profile, overrides))
    assert found == selected_by_hand(every, values) and found < ids(every)


def test_a_value_that_a_block_leaves_to_conf_selects_too():
    """Rank 8 is in the grid of Table 6 and, without being named, in Table 2's."""
    assert {run.slug for run in select_runs("mini", ["method.rank=8"])} == {f"lora-{t}-r8" for t in ("qv", *"qkvo")}
    assert {run.slug for run in select_runs("long", ["method.rank=2"])} == {"lora-qkvo-r2"}


def test_a_setting_that_no_grid_names_applies_to_all_runs_and_a_list_multiplies():
    runs, two = select_runs("mini", ["train.epochs=3"]), select_runs("mini", ["train.epochs=3,4"])
    assert len(runs) == len(every_run("mini")) and {run.config.train.epochs for run in runs} == {3}
    assert len(two) == 2 * len(runs) and ids(runs) < ids(two)


def test_a_default_is_narrowed_and_never_enlarged():
    """`small` trains a part of its runs. A command that selects gets a part of that part, or what it names instead."""
    default, whole = every_run("small"), select_runs("small", [], whole=True)
    assert len(default) == 45 and ids(default) < ids(whole)
    assert ids(select_runs("small", ["task=cola"])) == {run.run_id for run in default if run.task.name == "cola"}
    (one,) = select_runs("small", ["task=rte", "method=lora", "seed=1"])
    assert (one.start, one.parent) == ("pretrained", None)
    started = select_runs("small", ["task=rte", "seed=1", "start=mnli"])
    child, parent = sorted(started, key=lambda run: run.task.name == "mnli")
    assert child.parent == parent.run_id
    assert {run.seed for run in select_runs("small", ["seed=4", "method=bitfit,full"])} == {4}
    assert {run.experiments[0] for run in select_runs("small", ["method.rank=64"])} == {"lora_ranks"}


def test_a_value_that_no_grid_has_is_one_message_with_the_two_other_ways():
    with pytest.raises(UserError) as error:
        select_runs("mini", ["task=ratings", "seed=1,7", "method=lora,dora"])
    first, *ways = str(error.value).splitlines()
    assert first.startswith("method=dora is in no grid of profile mini (glue_table2, lora_targets, lora_ranks): they")
    command = "python -m lora -m profile=mini experiment=%s task=ratings seed=1,7 method=%s"
    assert [way.partition(": ")[2].strip() for way in ways] == [
        command % ("glue_table2", "dora"),
        command % ("null", "lora,dora"),
    ]
    for way, method, count in (("glue_table2", "dora", 2), ("null", "lora,dora", 4)):
        asked = [f"experiment={way}", "task=ratings", "seed=1,7", f"method={method}"]
        assert len(select_runs("mini", asked)) == count


@pytest.mark.parametrize("experiment", [[], ["experiment=own_task"]])
def test_the_seeds_and_methods_of_a_task_of_ones_own_are_free(tmp_path, experiment):
    task = f"task={own_tasks.write_task(tmp_path)}"
    asked = [([], {"full", "lora", "houlsby"}), (["method=lora"], {"lora"})]
    for chosen, methods in asked + [(["method=lora,bitfit"], {"lora", "bitfit"})] * bool(experiment):
        runs = select_runs("own", [task, "seed=1,2,3,4,5", *chosen, *experiment])
        assert {(run.method, run.seed) for run in runs} == {*itertools.product(methods, range(1, 6))}


def test_values_replace_those_of_a_named_grid_that_lacks_them():
    runs = select_runs("small", ["experiment=glue_table2", "task=cola", "method=adapterdrop", "seed=3,11"])
    assert {(run.method, run.task.name) for run in runs} == {("adapterdrop", "cola")}
    assert sorted(run.seed for run in runs) == [3, 11]
    seeds = {run.seed for run in select_runs("mini", ["method=lora", "seed=2,9"])}
    assert seeds == {2, 9}, "seeds are free without an experiment too"


def test_a_mix_of_a_grids_values_and_others_is_refused_with_the_two_lines_to_type():
    with pytest.raises(UserError) as error:
        select_runs("mini", ["experiment=lora_targets", "method.rank=4,16"])
    first, *ways = str(error.value).splitlines()
    assert first == "method.rank=4,16 mixes values of the grid with others (16)"
    for way, rank, count in zip(ways, (4, 16), (6, 21), strict=True):
        _, _, _, _, profile, *asked = shlex.split(way.partition(":")[2])
        runs = select_runs(profile.partition("=")[2], asked)
        assert len(runs) == count and {run.config.method.rank for run in runs} == {rank}


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        (["experiment=lora_targets", "method.rank=4"], ["6 of 21 runs of lora_targets"]),
        (
            ["experiment=lora_targets", "method.rank=16"],
            ["lora_targets with method.rank=16 in place of 8, 4, 2: 21 runs; not at one number of parameters any more"],
        ),
        (["experiment=lora_targets", "method.rank=4", "train.lr=1e-3,3e-3"], ["12 of 42 runs of lora_targets"]),
        (["experiment=lora_ranks", "train.epochs=3"], []),
        (
            ["seed=9", "method=bitfit"],
            ["glue_table2 with seed=9 in place of 1, 2, 3: 2 runs", "lora_targets with", "lora_ranks with"],
        ),
    ],
)
def test_a_launch_says_what_it_does_to_each_grid(asked, lines):
    found = grids_text("mini", asked, select_runs("mini", [*asked, "train.precision=fp32"]))
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == lines


def test_values_that_a_named_grid_has_select_its_blocks():
    """The commands by which the long run was planned: each block has its own rates and seeds."""
    asked = ["experiment=learning_rate", "seed=5", "method=full", "train.lr=2e-5,5e-5"]
    runs = select_runs("long", asked)
    assert {(run.task.name, run.seed, run.config.train.lr) for run in runs} == {("cola", 5, 2e-5), ("cola", 5, 5e-5)}
    assert len(select_runs("decide", ["experiment=lora_targets", "seed=6"])) == 7


def test_without_an_experiment_the_values_are_the_grid():
    asked = ["experiment=null", "task=ratings,reviews", "method=lora,bitfit", "seed=7,8"]
    assert {(run.task.name, run.method, run.seed) for run in select_runs("mini", asked)} == {
        *itertools.product(("ratings", "reviews"), ("lora", "bitfit"), (7, 8))
    }


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("mini", ["experiment=mnli_start"], "experiment mnli_start has no grid for profile 'mini'; it has: small"),
        ("mini", ["profile=mini,small"], "profile takes one value in a sweep, got mini, small"),
        ("mini", ["method=houlsby", "method.rank=1"], "no run of profile mini has method=houlsby method.rank=1 toge"),
    ],
)
def test_a_request_without_runs_is_one_message(profile, overrides, message):
    with pytest.raises(UserError, match=message):
        select_runs(profile, overrides)


def test_a_tuned_rate_is_that_of_the_option_and_of_what_makes_another_method_of_it(tmp_path):
    path = tmp_path / "rates.yaml"
    names = {"lora": 1e-3, "dora": 2e-3, "lora_plus": 3e-4, "vera": 5e-3, "peft method.type=hra": 4e-3}
    names |= {"lora method.dora=true": 6e-3, "lora train.lora_plus=16": 7e-3, "lora method.init_a=pissa": 8e-3}
    write_rates(path, [Rate("minilm", "ours", "cola", name, lr, (99,), {lr: 0.6}) for name, lr in names.items()])
    asked = ["experiment=null", "task=cola", "seed=1", f"rates={path}"]
    runs = [
        run for name in names for run in select_runs("small", [*asked, *f"method={name}".split(" "), "train.epochs=1"])
    ]
    assert {run.config.runtime.rate_name: run.config.train.lr for run in runs} == names
    for others in (["method=peft", "method.type=boft"], ["method=vera", "method.type=hra", "method.options=null"]):
        (other,) = select_runs("small", [*asked, *others])
        assert other.config.runtime.rate_from != "tuned"
    (rank_4,) = select_runs("small", [*asked, "method=lora", "method.rank=4", "method.targets=[q]"])
    assert rank_4.config.train.lr == 1e-3
    both = select_runs("small", [*asked, "method=lora", "method.scaling=lora,rslora"])
    with pytest.raises(UserError, match=r"with method=lora, then with method=lora method\.scaling=rslora, and with"):
        check_tuning(both, path)


def test_methods_that_were_tuned_unequally_are_not_compared(tmp_path):
    path = tmp_path / "rates.yaml"
    asked = ["task=cola", "seed=1", "train.precision=fp32", f"rates={path}"]
    tried = {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.4}
    write_rates(path, [Rate("minilm", "ours", "cola", "lora", 3e-3, (99,), tried)])
    with pytest.raises(UserError, match=r"must be tuned alike, got .*lora with 3 values.* on cola .*rates=null"):
        check_tuning(select_runs("small", asked), path)
    (one,) = select_runs("small", [*asked, "method=lora"])
    assert (one.config.train.lr, one.config.runtime.rate_from) == (3e-3, "tuned")
    assert select_runs("small", [*asked, "rates=null"]) and select_runs("small", [*asked, "train.lr=1e-3"])
    more = [Rate("minilm", "ours", "cola", method, 1e-3, (99,), tried) for method in ("full", "houlsby")]
    write_rates(path, more)
    assert {run.config.runtime.rate_from for run in select_runs("small", asked)} == {"tuned"}
    write_rates(path, [Rate("minilm", "ours", "cola", "full", 1e-3, (99,), tried | {1e-5: 0.5})])
    with pytest.raises(UserError, match="full with 4 values, lora with 3 values"):
        check_tuning(select_runs("small", asked), path)
    for unlike, words in (
        ({"stated": "train.epochs=8"}, r"full with 3 values, lora with 3 values \(train.epochs=8\)"),
        ({"seeds": (98, 99)}, "full with 3 values, lora with 3 values on 2 seeds"),
    ):
        full = Rate("minilm", "ours", "cola", "full", 1e-3, (99,), tried)
        write_rates(path, [full, dataclasses.replace(full, method="lora", **unlike)])
        with pytest.raises(UserError, match=words):
            check_tuning(select_runs("small", [*asked, "method=full,lora"]), path)


PLACED = ("data.path=", "data.source=", "runtime.", "launcher")


def sweeps_of_the_readmes() -> list[str]:
    """Profile and settings of the sweeps that READMEs show; `paper` composes for minutes."""
    texts = [path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md")]]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    plain = [re.search(r"-m lora -m ((?:[a-z._]+=\S+ *)+)(?!.*\")", line) for line in lines]
    made = [re.search(r"make reproduce-glue (.*?)ARGS=\"(.*?)\"", line) for line in lines]
    found = [match[1] for match in plain if match]
    for match in filter(None, made):
        own = [f"profile={word[8:]}" for word in match[1].split() if word.startswith("PROFILE=")]
        own += ["task=my_task.yaml"] if "TASK=" in match[1] else []
        found.append(" ".join([*own, match[2]]))
    named = {" ".join(word for word in one.split() if not word.startswith(PLACED)) for one in found}
    return sorted(one for one in named if "=" in one.replace("profile=", "") and "profile=paper" not in one)


@pytest.mark.parametrize("sweep", sweeps_of_the_readmes())
def test_every_sweep_of_the_readmes_has_runs(sweep, tmp_path):
    words = sweep.replace("my_task.yaml", str(own_tasks.write_task(tmp_path))).split()
    usual = "own" if "my_task.yaml" in sweep else "mini"
    profile = [word[8:] for word in words if word.startswith("profile=")] or [usual]
    assert select_runs(profile[0], [word for word in words if not word.startswith("profile=")], measure="assumed")
