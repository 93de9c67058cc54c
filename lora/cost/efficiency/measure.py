"""One measurement, from its plan to a summary."""

import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora.cost import machine
from lora.cost.efficiency.models import build_encoder, make_server, make_trainee, serve
from lora.cost.efficiency.peak import peak_of_child
from lora.cost.efficiency.plan import Plan, method_run
from lora.cost.efficiency.summary import SCHEMA, summarise
from lora.cost.saved import checkpoint_bytes, saved_bytes
from lora.cost.subjects import Batch, Subject, clock_of, random_batch
from lora.cost.timing import Action, interleave
from lora.models.modules import count_parameters
from lora.records.provenance import code_version
from lora.training.allocator import keep_freed_memory
from lora.training.usage import device_name, optimizer_bytes

Work = dict[str, dict[str, Action]]  # shape -> method -> timed action


def measure(
    plan: Plan, say: Callable[[str], None], tick: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure everything that the plan names.

    Args:
        say: Receives progress messages, one line each.
        tick: Called after every round: plan.rounds times for steps and as often for served batches.
    Returns: The summary, and the samples behind its times.
    Raises: UserError: If the encoder is absent, or the kernels do not cover it.
    """
    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    torch.set_num_threads(plan.threads)
    busy = {"before": machine.sample_load().busy_cores}
    if machine.is_idle(busy.values()) is False:
        say(f"warning: other processes keep {busy['before']:.2f} cores busy; measure on an idle machine")

    encoder, weights = build_encoder(plan)
    model = {"name": plan.model, "weights": weights, "parameters": count_parameters(encoder)["total"]}
    del encoder
    measured = {name: {"settings": settings_of(plan, name)} for name in plan.methods}

    for name in plan.trained:  # before this process grows
        say(f"peak memory of {name}, in a process of its own")
        peak = peak_of_child(plan, name)
        if peak is not None:
            measured[name]["peak_mib"] = {plan.largest: peak.peak_mib}
            above = round(peak.peak_mib - peak.libraries_mib, 1)
            measured[name]["peak_above_libraries_mib"] = {plan.largest: above}
    keep_freed_memory()  # as in training

    say(f"training steps, {plan.rounds} rounds")
    samples, busy["during steps"] = visit(plan, "step", training_work(plan, measured), tick)
    say(f"served batches, {plan.rounds} rounds")  # the trained models are freed before these are built
    served, busy["during served batches"] = visit(plan, "latency", serving_work(plan), tick)
    samples += served

    about = {
        "schema": SCHEMA,
        "model": model,
        "plan": dataclasses.asdict(plan) | {"path": plan.path and Path(plan.path).name},
        "machine": describe_machine(plan.device),
        "idle": {"idle": machine.is_idle(busy.values()), "cores busy with others": busy},
        "code": code_version(),
        "started_at": started_at,
        "seconds": round(time.monotonic() - started, 1),
    }
    return summarise(measured, samples, about), samples


def device_of(device: str) -> str:
    """The name of a CPU or GPU in tables; its slug names the device's folder."""
    return device_name(torch.device("cuda")) if device == "cuda" else machine.cpu_name()


def describe_machine(device: str) -> dict[str, Any]:
    packages = machine.versions()
    python = packages.pop("python")
    return {"device": device_of(device), **machine.describe(), "python": python, "packages": packages}


def settings_of(plan: Plan, name: str) -> dict[str, Any] | None:
    """The method's arguments; None for the base, which has no method."""
    return None if name == "base" else dataclasses.asdict(method_run(plan, name).method)


def visit(plan: Plan, kind: str, work: Work, tick: Callable[[], None]) -> tuple[list[dict[str, Any]], float | None]:
    """Time every method on every shape in every round.

    Returns: One sample per round, shape and method, and the number of cores that other processes kept busy meanwhile.
    """
    before = machine.now()
    found = interleave(
        work, plan.rounds, untimed=1, calls=plan.calls, seed=plan.seed, clock=clock_of(plan.device), after_round=tick
    )
    samples = [
        {"kind": kind, "method": name, "shape": shape, "round": number, "ms": round(1000 * seconds[number], 5)}
        for number in range(plan.rounds)
        for shape, methods in found.items()
        for name, seconds in methods.items()
    ]
    return samples, machine.load_between(before, machine.now()).busy_cores


def training_work(plan: Plan, measured: dict[str, dict[str, Any]]) -> Work:
    """A training step of every method. Also adds to `measured` the quantities that need no clock."""
    work: Work = {shape: {} for shape in plan.step_shapes}
    for name in plan.trained:
        trainee = make_trainee(plan, name)
        batches = {shape: random_batch(trainee.model, shape, plan.seed) for shape in plan.step_shapes}
        measured[name] |= count(trainee, batches)
        for shape, batch in batches.items():
            work[shape][name] = partial(trainee.step, batch)
    return work


def serving_work(plan: Plan) -> Work:
    """A forward pass of every model as deployed."""
    work: Work = {shape: {} for shape in plan.latency_shapes}
    for name in plan.methods:
        model = make_server(plan, name)
        for shape in plan.latency_shapes:
            work[shape][name] = partial(serve, model, random_batch(model, shape, plan.seed))
    return work


def count(trainee: Subject, batches: dict[str, Batch]) -> dict[str, Any]:
    """The quantities that need no clock. Takes one step, so that the optimizer has a state to count."""
    parameters = count_parameters(trainee.model)
    saved = {shape: saved_bytes(trainee.model, partial(trainee.loss, batch)) for shape, batch in batches.items()}
    trainee.step(next(iter(batches.values())))
    return {
        "trainable": parameters["trainable_method"],
        "trainable_with_head": parameters["trainable_method"] + parameters["trainable_head"],
        "checkpoint_bytes": checkpoint_bytes(trainee.model, with_head=True),
        "checkpoint_bytes_without_head": checkpoint_bytes(trainee.model, with_head=False),
        "optimizer_bytes": optimizer_bytes(trainee.optimizer),
        "saved_activation_bytes": {shape: each.activations for shape, each in saved.items()},
        "saved_cast_bytes": {shape: each.casts for shape, each in saved.items()},
    }
