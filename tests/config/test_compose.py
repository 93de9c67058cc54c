"""Composition of overrides into a validated RunConfig: refusals, and the names of runs."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass

import pytest
import tiny
import transformers
from machines import GPU, inject, with_gpus
from omegaconf import OmegaConf
from synthetic import write_run

from lora.checks import build
from lora.config.compose import CONF, SOURCES, compose_config, compose_run, quoted
from lora.config.run import NAMED, UNNAMED, DataConfig, ModelConfig, TrainConfig
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import METHODS
from lora.methods.configs import LoraConfig
from lora.sweep.request import select_runs
from lora.training.fused.encoder import fuse


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=colaa"], "task must be one of .*cola.*got 'colaa'"),
        (["profile=huge"], "profile must be one of base, .*, small, got 'huge'"),
        (["train.epochs=two"], "train.epochs must be of type int, got 'two'"),
        (["data.source=embedded"], "data.source must be tsv or parquet or hub for task cola, got 'embedded'"),
        (["start=mnli"], "start must be pretrained unless task is mrpc, rte, stsb, got 'mnli'"),
        (["seed=-1"], r"seed must be in \[0, 2\^31\), got -1"),
        (["train.batch=8", "train.accumulation=3"], r"train.batch must be a multiple of accumulation \(3\), got 8"),
        (["task=rte", "start=mnli", "method.init_a=olora"], "start must be pretrained with .* init_a=pissa or olora"),
        (["train.precision=fp8"], "train.precision must be one of fp32, bf16, got 'fp8'"),
        (["model.name=../x"], "model.name must be letters, digits, - and _, got"),
    ],
)
def test_broken_settings_are_one_message(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        tiny_config(*overrides)


def test_all_problems_of_a_run_come_together(tiny_config):
    with pytest.raises(UserError) as caught:
        tiny_config("method.alpha=-1", "method.rank=0", "train.lr=-1", "data.max_length=1", "runtime.threads=0")
    assert len(str(caught.value).splitlines()) == 5


SAME_RUN = ["data.path=/elsewhere", "runtime.threads=2", "train.eval_batch=7", "model.gradient_checkpointing=true"]
OTHER_RUN = ["seed=2", "train.lr=2e-3", "train.batch=16", "train.precision=bf16", "model.revision=x"]
OTHER_RUN += ["data.max_length=33", "method.alpha=8", "method.init_a=gaussian method.init_std=0.1", "data.train_rows=9"]


def test_the_run_id_follows_the_science_and_nothing_else(tiny_config):
    base = tiny_config().run_id
    assert re.match(r"bert-[0-9a-f]{6}\.lora-qv-r8\.cola\.s1-", base)
    assert {tiny_config(override).run_id for override in SAME_RUN} == {base}
    others = [tiny_config(*override.split()).run_id for override in OTHER_RUN]
    assert len({base, *others}) == 1 + len(OTHER_RUN)
    assert tiny_config("method.targets=[v,q]").run_id == tiny_config("method.targets=[q,v]").run_id


@dataclass(frozen=True)
class LoraLater(LoraConfig):
    """LoRA with an argument that older records lack."""

    tied: bool = False


def test_a_setting_that_is_added_renames_no_older_run(tiny_config):
    """Only a value other than its default names a run. A record without the setting reads as the default."""
    config = tiny_config()
    old = dataclasses.asdict(config.method)
    assert dataclasses.replace(config, method=build(LoraLater, old)).run_id == config.run_id
    changed = dataclasses.replace(config, method=build(LoraLater, old | {"tied": True}))
    assert changed.run_id != config.run_id and changed.settings()["method"]["tied"]


def test_every_setting_is_in_the_name_or_states_that_it_is_not():
    """A setting in neither list would stay out of the names at its default, which only a later one may."""
    sections = {"model": [ModelConfig], "data": [DataConfig], "train": [TrainConfig]}
    sections["method"] = [method.config for method in METHODS.values()]
    later = {"train": {"lora_plus", "head_lr", "class_weights"}, "method": {"dora", "frozen_a", "draw"}}
    later["data"] = {"train_draw"}
    for section, kinds in sections.items():
        fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
        assert fields - later.get(section, set()) == {*NAMED[section].split()} | fields & {*UNNAMED}, section


@pytest.mark.parametrize(
    "more",
    [
        ["method=full", "task=stsb", "seed=3"],
        ["method=lora", "method.targets=[q,k]", "method.rank=4", "method.ranks={q:2}", "train.clip_norm=null"],
        ["profile=paper", "model=roberta_base", "model.path=null", "protocol=printed", "task=sst2", "data.source=tsv"],
        ["train.lr=2e-4", "train.lr=5e-4", "task=rte", "train.epochs=7", "launcher.threads=2"],
    ],
    ids=" ".join,
)
def test_a_run_has_the_values_that_hydra_composes(tiny_overrides, more):
    """Runs of the same groups share one composition, and plain values are set in a copy of it."""
    overrides = [*tiny_overrides, *more]
    whole = OmegaConf.to_container(compose_config(overrides), resolve=True)
    config = json.loads(json.dumps(dataclasses.asdict(compose_run(overrides))))  # lists for tuples
    for section in ("data", "train", "method"):
        shared = {key: whole[section][key] or config[section][key] for key in config[section] if key in whole[section]}
        assert config[section] | shared == config[section] and shared, section
    assert (config["seed"], config["task"]) == (whole["seed"], whole["task"])


def test_nothing_in_conf_is_made_from_a_plain_setting():
    """This lets runs that differ in plain settings alone share one composition."""
    text = "".join(path.read_text() for path in CONF.rglob("*.yaml"))
    names = set(re.findall(r"\$\{(?:[^{}]*:)?([a-z_.]+)", text)) - {"workers", "outputs", "now"}
    groups = re.compile(r"(protocol|model|method|launcher|profile|hparams)\b")
    assert "runtime.results" in names and not {name for name in names if not groups.match(name)} - {*SOURCES}


@pytest.mark.parametrize(
    "folder", ["~/glue", "/a=b", "/it's", "/a (1)", "/ü", "/a b/c", "/a,b'", "relative\\"], ids=lambda folder: folder
)
def test_a_path_needs_no_quotes_of_hydra(tiny_overrides, folder):
    for override in (f"data.path={folder}", f"data.path={quoted(folder)}"):
        config = compose_run([*tiny_overrides, override])
        assert config.data.path == os.path.expanduser(folder)


@pytest.mark.parametrize(
    ("results", "outputs"),
    [
        ("results/mini", "outputs/mini"),
        ("results/small/repeated", "outputs/small/repeated"),
        (f"{ROOT}/results/reference/long", f"{ROOT}/outputs/reference/long"),
        ("/data/mine", "/data/mine/outputs"),
        ("other", "other/outputs"),
    ],
)
def test_outputs_belong_to_their_results(results, outputs):
    """Two folders of results never share a checkpoint or an adapter."""
    run = compose_run(["task=reviews", "train.precision=fp32", f"runtime.results={results}"])
    assert run.runtime.outputs == outputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["foo=1"], r"foo is not a setting of what was chosen \(.*"),
        (["task=rte", "hparams.rte.lr=1"], r"hparams.rte.lr is not a setting of what was chosen.*"),
        (["train.lr.x=1"], r"train.lr.x is not a setting of what was chosen.*"),
        (["lr=1e-3"], "lr is not a setting of .*; see train.lr .*"),
        (["train.learning_rate=1"], "train.learning_rate is not a setting of .*; see train.lr, train.batch, .*"),
        (["profil=small"], "profil is not a setting of .*; see profile .*"),
        (["launcher.gpus=1"], "launcher.gpus is not a setting of .*; see launcher=ray, launcher=slurm .*"),
        (["method=full", "method.rank=1"], "method.rank is not a setting of .*; see method=lora .*"),
        (["+train.lr=1"], r"'\+train.lr=1' is not an override, setting=value: no setting can be added or removed"),
        (["nonsense"], "'nonsense' is not an override, setting=value"),
        (["seed=1,2"], "a single run takes one value, got seed=1,2: python -m lora -m trains several runs"),
        (["method.targets=[q"], r"'method.targets=\[q' is not an override, setting=value: .*"),
        (
            ["method=vera", "method.options.r={a: 8}"],
            r"method.options.r must be of type int or .* or list, got {'a': 8}",
        ),
        (["rates={cola: 1}"], "rates must be null or the path of a file, got .*"),
        (["task=rte", "profile=small", "start_run=x"], "start_run must be null unless start=mnli, got 'x'"),
        (
            ["task=rte", "profile=small", "start=mnli", "start_run=x"],
            "start_run must be null unless start=mnli, got 'x'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_override_that_cannot_be_is_one_message(overrides, message):
    with pytest.raises(UserError) as error:
        compose_run(overrides)
    assert re.fullmatch(message, str(error.value)), error.value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["profile=mini", "task=ratings", "data.path=/x"], ".* because data.source is embedded: add "),
        (["profile=mini", "model.path={model}"], "model.path=.* because model.source is embedded: add"),
    ],
)
def test_a_folder_that_would_not_be_read_is_refused_once(overrides, message, model_dir):
    asked = [override.format(model=model_dir) for override in overrides]
    with pytest.raises(UserError) as error:
        compose_run(asked)
    assert re.match(message, str(error.value)), error.value


def test_every_mistake_of_a_sweep_is_named_once_with_its_first_run():
    with pytest.raises(UserError) as caught:
        select_runs("mini", ["train.epochs=1,0", "train.batch=16,0", "seed=1,2", "experiment=null"])
    batch, epochs = "train.batch must be >= 1, got 0", "train.epochs must be >= 1, got 0"
    assert str(caught.value).splitlines() == [
        f"adhoc train.epochs=1 train.batch=0 seed=1: {batch}",
        f"adhoc train.epochs=0 train.batch=16 seed=1: {epochs}",
        f"adhoc train.epochs=0 train.batch=0 seed=1: {batch}",
        epochs,
    ]
    with pytest.raises(UserError, match=r"^train.epochs must be >= 1, got 0$"):
        select_runs("mini", ["train.epochs=0", "seed=1,2", "experiment=null"])


NO_RUNS = "runtime.results=/nowhere"  # a folder whose runs do not decide what `auto` chooses


def local_run(folder, *overrides):
    return compose_run(["profile=small", "task=rte", "method=lora", "model=local", f"model.path={folder}", *overrides])


OTHER_ACTIVATION = dict.fromkeys(tiny.ARCHITECTURES, "hidden_act")
OTHER_ACTIVATION |= {"distilbert": "activation", "modernbert": "hidden_activation"}


def longer(architecture):
    """A model with more positions than the masks can number."""
    settings = tiny.config(architecture)
    settings.max_position_embeddings = 1025
    return transformers.AutoModelForSequenceClassification.from_config(settings)


FUSED = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_auto_takes_the_fused_kernels_where_they_cover_the_encoder(architecture, tmp_path, monkeypatch):
    """The kernels themselves are the truth: `auto` avoids them exactly where they refuse to compute."""
    with_gpus(monkeypatch)
    models = [tiny.model(architecture), tiny.model(architecture, **{OTHER_ACTIVATION[architecture]: "relu"})]
    if architecture != "deberta-v2":  # its positions are relative
        models.append(longer(architecture))
    for number, model in enumerate(models):
        folder = tmp_path / f"{architecture}{number}"
        model.base_model.save_pretrained(folder)
        tiny.tokenizer(architecture).save_pretrained(folder)
        config = local_run(folder)
        assert config.train.kernels == ("fused" if architecture in FUSED and number == 0 else "stock")
        if config.train.kernels == "fused":
            fuse(model, "fp32", 0)
        else:
            with pytest.raises(UserError, match=r"train\.kernels=fused does not cover"):
                fuse(model, "fp32", 0)
        for kernels in ("fused", "stock"):
            asked = local_run(folder, f"train.kernels={kernels}")
            assert (asked.run_id == config.run_id) == (kernels == config.train.kernels)


@pytest.mark.parametrize(("device", "with_gpu"), [("auto", "stock"), ("cuda", "stock"), ("cpu", "fused")])
def test_auto_takes_the_stock_kernels_on_a_gpu(device, with_gpu, model_dir, monkeypatch):
    for gpu, expected in ((True, with_gpu), (False, "stock" if device == "cuda" else "fused")):
        with_gpus(monkeypatch, *[GPU()] * gpu)
        assert local_run(model_dir, f"runtime.device={device}").train.kernels == expected
        config = compose_run(["task=reviews", f"runtime.device={device}", "train.precision=fp32", NO_RUNS])
        assert config.train.kernels == expected
        on_gpu = device == "cuda" or (gpu and device == "auto")
        assert config.model.attention == ("sdpa" if on_gpu else "eager")
        asked = compose_run(["task=reviews", f"runtime.device={device}", "model.attention=eager", NO_RUNS])
        assert asked.model.attention == "eager"
    assert compose_run(["profile=paper", "model=roberta_base", "protocol=printed", "task=rte"]).train.kernels == "stock"


@pytest.mark.parametrize("capability", [7, 8, 9])
def test_a_gpu_takes_bf16_where_it_has_it(capability, monkeypatch):
    """Compute capability 8, Ampere, is the first with such products (CUDA C++ programming guide)."""
    with_gpus(monkeypatch, GPU(major=capability))
    monkeypatch.setattr("lora.config.auto.run_probe", None)  # a GPU is not measured
    expected = "bf16" if capability in (8, 9) else "fp32"
    assert compose_run(["task=reviews", NO_RUNS]).train.precision == expected
    small = compose_run(["profile=small", "task=rte", NO_RUNS])
    assert (small.train.precision, small.train.kernels, small.model.attention) == ("fp32", "stock", "sdpa")


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
def test_jobs_with_a_gpu_take_no_choice_of_earlier_cpu_runs(launcher, tmp_path, monkeypatch):
    """The machine that launches has no GPU, and earlier runs took the CPU's kernels."""
    with_gpus(monkeypatch)
    asked = ["task=reviews", "method=lora", "seed=1", "train.precision=fp32", f"runtime.results={tmp_path}"]
    (run,) = select_runs("mini", [*asked, "experiment=null"])
    write_run(tmp_path, run, 0.8)
    assert (run.config.train.kernels, run.config.model.attention) == ("fused", "eager")
    here = compose_run([*asked, f"launcher={launcher}"])
    there = compose_run([*asked, f"launcher={launcher}", "launcher.gpus=1"])
    assert (here.train.kernels, here.model.attention) == ("fused", "eager")
    assert (there.train.kernels, there.model.attention, there.train.precision) == ("stock", "sdpa", "fp32")


def test_a_resumed_sweep_keeps_the_choices_of_its_runs_on_another_machine(tmp_path, monkeypatch):
    """The most frequent choice of the encoder's finished runs holds; what is stated, and other encoders, are apart."""
    inject(monkeypatch, "bf16")
    asked = ["task=reviews", "method=lora", f"runtime.results={tmp_path}"]
    for run in select_runs("mini", [*asked, "experiment=null", "seed=1,2"]):
        write_run(tmp_path, run, 0.8)
    (other,) = select_runs("mini", [*asked, "experiment=null", "seed=3", "train.precision=fp32", "train.kernels=stock"])
    write_run(tmp_path, other, 0.8)
    inject(monkeypatch, "fp32")
    with_gpus(monkeypatch, GPU())
    kept = compose_run(asked)
    assert (kept.train.kernels, kept.model.attention, kept.train.precision) == ("fused", "eager", "bf16")
    stated = compose_run([*asked, "train.kernels=stock"])
    assert (stated.model.attention, stated.train.precision) == ("eager", "fp32"), "as the third run"
    assert compose_run([*asked, "train.precision=fp32"]).train.kernels == "stock", "as the third run"
    assert compose_run([*asked, "model.name=another"]).train.kernels == "stock", "the GPU's"
    for content in (json.dumps({"status": "ok"}), "{", "[]"):
        (tmp_path / "runs" / "broken.json").write_text(content)
        assert compose_run(asked) == kept
