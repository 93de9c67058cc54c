"""Runs that start from an MNLI run: its modules, a new head, its run_id in the record, and no start without it."""

import pytest
import tiny
import torch
from safetensors.torch import load_file
from trained import ensure_record

from lora.config.compose import compose_family
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.methods import METHODS, apply
from lora.models.load import load_encoder
from lora.models.modules import is_head, trainable
from lora.records.record import adapter_path, load_records, record_path
from lora.sweep.launch import to_train, train_missing, unfinished
from lora.sweep.request import select_runs, sweep_settings
from lora.sweep.state import sweep_state
from lora.training.mnli_start import start_from


def fresh(config):
    model = load_encoder(config.model, TASKS[config.task], config.seed).model
    apply(model, config.method, config.seed)
    return model


METHODS_AND_KERNELS = [*((name, "stock") for name in METHODS if name != "peft"), ("full", "fused")]


def family_of(tiny_overrides, method="lora", kernels="stock"):
    """A child run and the MNLI run that it starts from."""
    fitting = {"adapterdrop": ["method.drop_layers=1"]}.get(method, [])
    overrides = [*tiny_overrides, "task=rte", "start=mnli", f"method={method}", f"train.kernels={kernels}", *fitting]
    parent, child = (run.config for run in compose_family(overrides))
    return child, parent


@pytest.mark.parametrize(("method", "kernels"), METHODS_AND_KERNELS)
def test_every_method_starts_from_what_its_parent_trained(tiny_overrides, method, kernels):
    child, parent = family_of(tiny_overrides, method, kernels)
    assert (parent.method, parent.task, parent.train.kernels) == (child.method, "mnli", kernels)
    record = ensure_record(parent, mistakes_fail=False)
    stored = load_file(adapter_path(parent.runtime.outputs, parent.run_id))
    untouched, started = fresh(child), fresh(child)
    start_from(started, child)
    body = [name for name, _ in trainable(started) if not is_head(started, name)]
    assert sum(started.get_parameter(name).numel() for name in body) == record.params["trainable_method"]
    assert all(torch.equal(started.get_parameter(name), stored[name]) for name in body)
    assert any(not torch.equal(started.get_parameter(name), untouched.get_parameter(name)) for name in body)
    rest = [name for name, _ in started.named_parameters() if name not in body]
    assert all(torch.equal(started.get_parameter(name), untouched.get_parameter(name)) for name in rest)
    assert any(is_head(started, name) for name in rest)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    values = record.params["trainable_method"] + record.params["trainable_head"]
    assert sum(tensor.numel() for tensor in stored.values()) == values
    trained = ensure_record(child, mistakes_fail=False)
    assert (trained.status, trained.config["start_run"]) == ("ok", parent.run_id)


def test_a_frozen_a_is_the_parents(tiny_overrides):
    """The parent has another seed, so that its A differs."""
    frozen = ["task=rte", "start=mnli", "start_seed=5", "method=lora", "method.frozen_a=true"]
    parent, child = (run.config for run in compose_family([*tiny_overrides, *frozen]))
    ensure_record(parent, mistakes_fail=False)
    stored, started = load_file(adapter_path(parent.runtime.outputs, parent.run_id)), fresh(child)
    factors = [name for name, _ in started.named_parameters() if ".lora_" in name]
    assert len(factors) == 8 and not torch.equal(started.get_parameter(factors[0]), stored[factors[0]])
    start_from(started, child)
    assert all(torch.equal(started.get_parameter(name), stored[name]) for name in factors)


@pytest.mark.parametrize("architecture", ["deberta-v2", "roberta", "modernbert"])
def test_debertas_pooler_is_carried_over_and_its_classifier_is_new(architecture, tiny_overrides, tmp_path):
    """The released models' load hooks do the same to a checkpoint with another number of labels."""
    folder = tiny.folder(tmp_path / architecture, architecture)
    overrides = [*tiny_overrides, f"model.path={folder}", "task=rte", "start=mnli", "method=lora", "train.epochs=1"]
    parent, child = (run.config for run in compose_family(overrides))
    ensure_record(parent, mistakes_fail=False)
    stored = load_file(adapter_path(parent.runtime.outputs, parent.run_id))
    untouched, started = fresh(child), fresh(child)
    start_from(started, child)
    heads = {name: p for name, p in trainable(started) if is_head(started, name)}
    kept = {"pooler.dense.weight", "pooler.dense.bias"} if architecture == "deberta-v2" else set()
    assert kept < set(heads) <= set(stored)
    for name, parameter in heads.items():
        assert torch.equal(parameter, (stored if name in kept else untouched.state_dict())[name])
    assert all(not torch.equal(stored[name], untouched.get_parameter(name)) for name in kept)


def test_a_child_is_refused_without_its_parent(tiny_overrides):
    child, parent = family_of(tiny_overrides)
    with pytest.raises(UserError, match=f"{parent.run_id}.json"):
        ensure_record(child, mistakes_fail=False)
    assert not record_path(child.runtime.results, child.run_id).exists()
    ensure_record(parent, mistakes_fail=False)
    weights = adapter_path(parent.runtime.outputs, parent.run_id)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"is not the file that adapter\.json was written for"):
        ensure_record(child, mistakes_fail=False)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no file adapter\.safetensors"):
        ensure_record(child, mistakes_fail=False)
    assert not record_path(child.runtime.results, child.run_id).exists()


def test_a_sweep_trains_parents_first_and_once(tiny_overrides, tmp_path):
    overrides = [o for o in tiny_overrides if not o.startswith(("task=", "profile="))]
    overrides += ["method=lora", "start=mnli", "task=rte,mrpc", "seed=1,2"]
    runs = select_runs("small", [*overrides, "experiment=null"])
    parents = {run.run_id: run for run in runs if run.task.name == "mnli"}
    assert len(runs) == 6 and len(parents) == 2
    assert {run.parent for run in runs if run.task.name != "mnli"} == set(parents)
    assert all(run.config.runtime.save_adapter for run in parents.values())
    settings, results = sweep_settings("small", overrides), tmp_path / "results"
    todo = to_train(settings, runs, sweep_state(runs, *load_records(results)))
    assert todo == runs
    waves = []

    def launch(wave, done):
        waves.append({run.run_id for run in wave})
        return {run.run_id: "failed" if run.seed == 2 else "ok" for run in wave}

    assert train_missing(todo, set(), str(tmp_path), launch) == {}
    assert waves == [set(parents), {run.run_id for run in runs if run.parent and run.seed == 1}]

    done = ensure_record(next(iter(parents.values())).config, mistakes_fail=True)
    now = sweep_state(runs, *load_records(results))
    assert len(to_train(settings, runs, now)) == 5
    assert sum("not started: its MNLI run" in line for line in unfinished(now, {})) == 2
    adapter_path(settings.runtime.outputs, done.run_id).unlink()
    assert len(to_train(settings, runs, now)) == 6
