"""Composition of overrides into a validated RunConfig: refusals, and the names of runs."""

import os
import re
import subprocess
import sys

import pytest
import tiny
import torch
import transformers
from machines import inject

from lora.checks import SettingsError
from lora.config import kernel_choice
from lora.config.compose import LEAF, check_overrides, compose_config, compose_run, settle
from lora.config.options import CONF
from lora.errors import UserError
from lora.files import ROOT
from lora.sweep.expand import expand
from lora.sweep.grids import split_override
from lora.sweep.request import requested
from lora.training.fused.encoder import fuse
from lora.training.fused.kernels import MAX_TOKENS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=colaa"], "task must be one of .*cola.*got 'colaa'"),
        (["profile=huge"], "profile must be one of base, decide, long, mini, own, paper, small, got 'huge'"),
        (["experiment=table9"], "experiment must be one of glue_table2.*got 'table9'"),
        (["method.rank=0"], "method.rank must be >= 1, got 0"),
        (["train.learning_rate=1"], "learning_rate"),
        (["train.epochs=two"], "train.epochs must be of type int, got 'two'"),
        (["data.source=embedded"], "data.source must be tsv, parquet or hub for task cola, got 'embedded'"),
        (["start=mnli"], "start must be pretrained unless task is mrpc, rte, stsb, got 'mnli'"),
        (["start_seed=3"], "start_seed must be null unless start=mnli, got 3"),
        (["seed=-1"], r"seed must be in \[0, 2\^31\), got -1"),
        (["train.batch=8", "train.accumulation=3"], r"train.batch must be a multiple of accumulation \(3\), got 8"),
        (["method.targets=[]"], "method.targets must be a non-empty list"),
        (["method.targets=[q,q]"], "method.targets must be without repeats"),
        (["method.init_a=gaussian"], "method.init_std must be > 0 with init_a=gaussian"),
        (["method.dropout=1.0"], r"method.dropout must be in \[0, 1\), got 1.0"),
        (["runtime.threads=0"], "runtime.threads must be >= 1, got 0"),
        (["train.precision=fp8"], "train.precision must be one of fp32, bf16, got 'fp8'"),
        (["model.name=../x"], "model.name must be letters, digits, - and _, got"),
        (["method.lr=1"], "lr"),
    ],
)
def test_broken_settings_are_one_message(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        tiny_config(*overrides)


def test_all_problems_of_a_run_come_together(tiny_config):
    with pytest.raises(UserError) as caught:
        tiny_config("method.alpha=-1", "method.rank=0", "train.lr=-1", "data.max_length=1", "runtime.threads=0")
    assert len(str(caught.value).splitlines()) == 5


OTHER_ACTIVATION = dict.fromkeys(tiny.ARCHITECTURES, "hidden_act")
OTHER_ACTIVATION |= {"distilbert": "activation", "modernbert": "hidden_activation"}


def longer(architecture):
    """A model with more positions than the masks can number."""
    settings = tiny.config(architecture)
    settings.max_position_embeddings = 1025
    return transformers.AutoModelForSequenceClassification.from_config(settings)


SAME_RUN = ["data.path=/elsewhere", "runtime.threads=2", "train.eval_batch=7", "model.gradient_checkpointing=true"]
OTHER_RUN = [
    "seed=2",
    "train.lr=2e-3",
    "train.batch=16",
    "train.precision=bf16",
    "model.revision=x",
    "data.max_length=33",
]
OTHER_RUN += [
    "method.alpha=8",
    "method.init_a=gaussian method.init_std=0.1",
    "train.selection=pooled",
    "data.train_rows=9",
]


def test_the_run_id_follows_the_science_and_nothing_else(tiny_config):
    base = tiny_config().run_id
    assert re.match(r"bert-[0-9a-f]{6}\.lora-qv-r8\.cola\.s1-", base)
    assert {tiny_config(override).run_id for override in SAME_RUN} == {base}
    others = [tiny_config(*override.split()).run_id for override in OTHER_RUN]
    assert len({base, *others}) == 1 + len(OTHER_RUN)


def test_the_order_of_targets_does_not_name_another_run(tiny_config):
    assert tiny_config("method.targets=[v,q]").run_id == tiny_config("method.targets=[q,v]").run_id


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("seed=1,2", "seed", ["1", "2"]),
        ("method.targets=[q,v]", "method.targets", ["[q,v]"]),
        ("method.targets=[q],[q,v]", "method.targets", ["[q]", "[q,v]"]),
        ("data.path='/a b/c'", "data.path", ["'/a b/c'"]),
    ],
)
def test_overrides_split_at_the_commas_between_values(override, key, values):
    assert split_override(override) == (key, values)


def test_the_command_line_wins_over_the_grid():
    runs = expand("mini", ["task=reviews", "seed=5", "method=lora,full"], ["glue_table2"])
    assert {(run.method, run.task, run.seed) for run in runs} == {("lora", "reviews", 5), ("full", "reviews", 5)}


def test_values_on_the_command_line_alone_are_the_grid():
    runs = requested("mini", ["task=ratings", "seed=4,5"])
    assert sorted(run.run_id for run in runs) == sorted(
        settle(compose_config(["profile=mini", "task=ratings", f"seed={seed}"])).run_id for seed in (4, 5)
    )
    everything = requested("mini", [])
    assert {run.run_id for run in everything} == {run.run_id for run in expand("mini")}


def test_the_quick_way_composes_what_hydra_does(tiny_overrides):
    """Hydra's own composition is the truth, over every group and kind of value that a grid uses."""
    seen = 0
    for more in (
        ["method=full", "task=stsb", "seed=3"],
        ["method=lora", "method.targets=[q,k]", "method.rank=4", "method.alpha_at_rank=null", "method.ranks={q:2}"],
        ["method=houlsby", "task=rte", "train.lr=5e-4", "train.precision=bf16", "data.train_rows=7"],
        ["profile=paper", "model=roberta_base", "model.path=null", "protocol=printed", "task=sst2", "data.source=tsv"],
        ["train.lr=2e-4", "train.lr=5e-4", "method.targets=[k]", "train.clip_norm=null", "task=rte"],
        ["train.lr=${train.adam_eps}", "train.batch=4"],
        ["train.lr=2e-4", "runtime.group=rate-${train.lr}"],
        ["protocol=printed", "train.lr=1e-4"],
        ["method.rank={q:2}"],
        ["train.batch=true"],
        ["+train.extra=1"],
        ["~model.path"],
    ):
        overrides = [*tiny_overrides, *more]
        try:
            expected = settle(compose_config(overrides))
        except UserError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                compose_run(overrides)
        else:
            assert compose_run(overrides) == expected
            seen += 1
    assert seen == 7


def test_nothing_in_conf_is_made_from_the_seed(tiny_overrides):
    """This lets runs that differ in the seed alone share one resolution. The last of two seeds holds, as in Hydra."""
    assert not [path for path in CONF.rglob("*.yaml") if re.search(r"\$\{(oc\.select:)?\.*seed\b", path.read_text())]
    for seeds in (["seed=7"], ["seed=7", "seed=11"], [], ["seed=0"], ["seed='3'"], ["seed=-1"], ["seed=007"]):
        overrides = [*tiny_overrides, *seeds]
        try:
            expected = settle(compose_config(overrides))
        except (UserError, SettingsError) as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                compose_run(overrides)
        else:
            assert compose_run(overrides) == expected


def test_nothing_in_conf_is_made_from_a_leaf():
    """This lets runs that differ in rates and ranks alone share one resolution."""
    made_from = {
        name for path in CONF.rglob("*.yaml") for name in re.findall(r"\$\{(?:[^{}]*:)?([\w.]+)", path.read_text())
    }
    assert {"hparams.", "profile.name", "runtime.results"} <= made_from
    assert not [name for name in made_from if LEAF.match(f"{name}=1") or name in ("train", "method.")]
    assert all(LEAF.match(f"{key}=1") for key in ("train.lr", "method.rank"))
    assert not any(LEAF.match(one) for one in ("data.path=x", "train={lr: 1}", "runtime.results=x"))


def test_an_unknown_key_is_refused_the_quick_way_too(tiny_overrides):
    with pytest.raises(UserError, match="learning_rate"):
        compose_run([*tiny_overrides, "train.learning_rate=1"])


UNKNOWN = "is not a setting"
ALL = r" \(python -m lora --cfg job lists them all\)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+foo=1"], f"foo {UNKNOWN}{ALL}"),
        (["+lr=1e-3"], f"lr {UNKNOWN}; the nearest is train.lr{ALL}"),
        (["+hparams.foo=1"], f"hparams.foo {UNKNOWN}{ALL}"),
        (["+profile.foo=1"], f"profile.foo {UNKNOWN}{ALL}"),
        (["~profile.foo"], f"profile.foo {UNKNOWN}{ALL}"),
        (["method=full", "+method.rank=1"], f"method.rank {UNKNOWN} of what was chosen"),
        (["+train.lr=1"], r"'\+train.lr=1' would add train.lr, which exists: write train.lr=1"),
        (["+profile.train_rows=8"], ".* would add profile.train_rows, which exists: write profile.train_rows=8"),
        (["+method=lora"], ".* would add method, which exists: write method=lora"),
        (["~train.clip_norm"], r"'~train.clip_norm' would remove a setting; .*\(train.clip_norm=null turns some off\)"),
        (["~method"], r"'~method' would remove a setting; give it a value .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_added_or_removed_setting_is_one_message(overrides, message):
    with pytest.raises(UserError) as error:
        check_overrides(overrides)
    assert re.fullmatch(message, str(error.value)), error.value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["profile=mini", "data.path=/x"], "data.path=/x would not be read, because data.source is embedded: add "),
        (
            ["profile=paper", "model=roberta_base", "protocol=printed", "task=rte", "data.path=/x"],
            ".* because data.source is hub: add ",
        ),
        (["profile=small", "task=rte", "data.path=/x", "data.source=hub"], ".* because data.source is hub: add "),
        (["profile=mini", "model.path={model}"], "model.path=.* because the source of model minilm is embedded: add"),
    ],
)
def test_a_folder_that_would_not_be_read_is_refused_once(overrides, message, model_dir):
    asked = [override.format(model=model_dir) for override in overrides]
    for compose in (compose_run, lambda asked: requested(asked[0].removeprefix("profile="), [*asked[1:], "seed=1,2"])):
        with pytest.raises(UserError) as error:
            compose(asked)
        assert re.match(message, str(error.value)), error.value
    assert compose_run([*asked[:-1], "data.path=null"]).data.path is None


def test_every_mistake_of_a_sweep_is_named_once_with_its_first_run():
    with pytest.raises(UserError) as caught:
        expand("mini", ["train.epochs=1,0,-1", "train.batch=16,0", "seed=1,2"], adhoc=True)
    lines = ["10 runs are invalid:"]
    for epochs, batch in ((1, 0), (0, 16), (0, 0), (-1, 16), (-1, 0)):
        mistakes = ["train.batch must be >= 1, got 0"] if batch == 0 else []
        mistakes += [f"train.epochs must be >= 1, got {epochs}"] if epochs < 1 else []
        lines.append(f"adhoc: profile=mini train.epochs={epochs} train.batch={batch} seed=1 and 1 more: {mistakes[0]}")
        lines += mistakes[1:]
    assert str(caught.value).splitlines() == lines
    with pytest.raises(
        UserError, match=r"^1 run is invalid:\nadhoc: profile=mini train.epochs=0 seed=1: train.epochs must"
    ):
        expand("mini", ["train.epochs=0", "seed=1"], adhoc=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mini_computes_in_the_precision_that_was_measured_to_be_faster(precision, monkeypatch):
    inject(monkeypatch, precision)
    assert compose_run(["task=reviews"]).train.precision == precision
    for asked in ("fp32", "bf16"):
        assert compose_run(["task=reviews", f"train.precision={asked}"]).train.precision == asked
    pinned = {"small": "rte", "long": "rte", "paper": "rte"}  # committed results must not depend on the machine
    for profile, task in pinned.items():
        more = ["model=roberta_base", "protocol=printed"] if profile == "paper" else []
        assert compose_run([f"profile={profile}", f"task={task}", *more]).train.precision == "fp32"


def test_a_run_keeps_the_launchers_precision_on_another_kind_of_machine(monkeypatch):
    """A worker of a cluster may have another CPU. Its run must still be the one that the sweep expects."""
    inject(monkeypatch, "bf16")
    runs = expand("mini", ["task=reviews", "seed=1"], ["glue_table2"])
    inject(monkeypatch, "fp32")
    assert len(runs) == 5
    assert [compose_run(run.overrides).run_id for run in runs] == [run.run_id for run in runs]
    assert not {run.run_id for run in runs} & {
        run.run_id for run in expand("mini", ["task=reviews", "seed=1"], ["glue_table2"])
    }


NO_RUNS = "runtime.results=/nowhere"  # a folder whose runs do not decide what `auto` chooses


def local_run(folder, *overrides):
    return compose_run(["profile=small", "task=rte", "method=lora", "model=local", f"model.path={folder}", *overrides])


FUSED = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")
COVERED = dict.fromkeys(tiny.ARCHITECTURES, "stock") | dict.fromkeys(FUSED, "fused")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_auto_takes_the_fused_kernels_where_they_cover_the_encoder(architecture, tmp_path, monkeypatch):
    """The kernels themselves are the truth: `auto` avoids them exactly where they refuse to compute."""
    monkeypatch.setattr("lora.config.kernel_choice.has_gpu", lambda: False)
    for number, extra in enumerate(({}, {}, {OTHER_ACTIVATION[architecture]: "relu"})):
        if architecture == "deberta-v2" and number == 1:
            continue  # its positions are relative
        model = tiny.model(architecture, **extra) if number != 1 else longer(architecture)
        folder = tmp_path / f"{architecture}{number}"
        model.base_model.save_pretrained(folder)
        config = local_run(folder)
        assert config.train.kernels == (COVERED[architecture] if number == 0 else "stock")
        if config.train.kernels == "fused":
            fuse(model, "fp32", 0)
        else:
            with pytest.raises(UserError, match=r"train\.kernels=fused does not cover"):
                fuse(model, "fp32", 0)
        for kernels in ("fused", "stock"):
            asked = local_run(folder, f"train.kernels={kernels}")
            assert asked.train.kernels == kernels
            assert (asked.run_id == config.run_id) == (kernels == config.train.kernels)


@pytest.mark.parametrize(("device", "with_gpu"), [("auto", "stock"), ("cuda", "stock"), ("cpu", "fused")])
def test_auto_takes_the_stock_kernels_on_a_gpu(device, with_gpu, model_dir, monkeypatch):
    for gpu, expected in ((True, with_gpu), (False, "stock" if device == "cuda" else "fused")):
        monkeypatch.setattr("lora.config.kernel_choice.has_gpu", lambda gpu=gpu: gpu)
        assert local_run(model_dir, f"runtime.device={device}").train.kernels == expected
        config = compose_run(["task=reviews", f"runtime.device={device}", "train.precision=fp32", NO_RUNS])
        assert config.train.kernels == expected
        on_gpu = device == "cuda" or (gpu and device == "auto")
        assert config.model.attention == ("sdpa" if on_gpu else "eager")
        asked = compose_run(["task=reviews", f"runtime.device={device}", "model.attention=eager", NO_RUNS])
        assert asked.model.attention == "eager"
    assert compose_run(["profile=paper", "model=roberta_base", "protocol=printed", "task=rte"]).train.kernels == "stock"


@pytest.mark.parametrize("capability", [7, 8, 9, None])
def test_a_gpu_takes_bf16_where_it_has_it(capability, monkeypatch):
    """Compute capability 8, Ampere, is the first with such products (CUDA C++ programming guide)."""
    monkeypatch.setattr("lora.config.kernel_choice.has_gpu", lambda: True)
    monkeypatch.setattr("lora.config.kernel_choice.ask_driver", lambda ask, kind: capability)
    monkeypatch.setattr("lora.config.precision_choice.run_probe", None)  # a GPU is not measured
    expected = "bf16" if capability in (8, 9) else "fp32"
    assert compose_run(["task=reviews", NO_RUNS]).train.precision == expected
    assert compose_run(["task=reviews", "train.precision=fp32", NO_RUNS]).train.precision == "fp32"
    small = compose_run(["profile=small", "task=rte", NO_RUNS])
    assert (small.train.precision, small.train.kernels, small.model.attention) == ("fp32", "stock", "sdpa")


def test_the_profiles_leave_the_kernels_to_the_machine():
    kernels = {name: compose_config([f"profile={name}"]).train.kernels for name in ("mini", "small", "paper")}
    assert kernels == {"mini": "auto", "small": "auto", "paper": "stock"}


def test_a_run_keeps_the_launchers_kernels_on_another_kind_of_machine(tmp_path, monkeypatch):
    """A worker may have a GPU when the launcher has none, and vice versa."""
    for place in ("lora.config.kernel_choice.has_gpu",):
        monkeypatch.setattr(place, lambda: False)
    runs = expand("mini", ["task=reviews", "seed=1", "train.precision=fp32", NO_RUNS], ["glue_table2"])
    for place in ("lora.config.kernel_choice.has_gpu",):
        monkeypatch.setattr(place, lambda: True)
    assert len(runs) == 5
    assert [compose_run(run.overrides).run_id for run in runs] == [run.run_id for run in runs]
    assert {compose_run(run.overrides).train.kernels for run in runs} == {"fused"}
    others = expand("mini", ["task=reviews", "seed=1", "train.precision=fp32", NO_RUNS], ["glue_table2"])
    assert {compose_run(run.overrides).train.kernels for run in others} == {"stock"}
    assert not {run.run_id for run in runs} & {run.run_id for run in others}


def test_the_choice_and_the_masks_have_one_limit_of_positions():
    assert kernel_choice.MAX_TOKENS == MAX_TOKENS


def test_a_gpu_is_what_torch_finds():
    assert kernel_choice.has_gpu() == torch.cuda.is_available()
    if torch.cuda.is_available():
        assert kernel_choice.gpu_has_bf16() == (torch.cuda.get_device_capability()[0] >= 8)
        assert kernel_choice.gpu_memory() >= torch.cuda.get_device_properties(0).total_memory
    else:
        assert not kernel_choice.gpu_has_bf16() and kernel_choice.gpu_memory() is None


def test_a_gpu_is_looked_for_without_torch(tmp_path):
    """Whether torch is built for CUDA is read from its version file, without loading torch."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch was loaded')")
    script = "import sys; from lora.config import kernel_choice as k; print(k.built_for_cuda(), 'torch' in sys.modules)"
    for cuda in ("'12.8'", "None"):
        (tmp_path / "torch" / "version.py").write_text(f"debug = False\ncuda: Optional[str] = {cuda}\nhip = None\n")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(cuda != "None"), "False"]
