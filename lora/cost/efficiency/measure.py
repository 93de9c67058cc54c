"""One measurement, from its plan to a summary."""

import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora.cost import harness, machine
from lora.cost.efficiency.plan import Plan, run_of
from lora.cost.efficiency.summary import SCHEMA, summarise
from lora.cost.shapes import rows_and_tokens
from lora.cost.subjects import Subject, load, ours, peft, random_batch, require_peft, serve, served
from lora.errors import UserError
from lora.models.load import max_positions
from lora.models.modules import count_parameters
from lora.records.provenance import code_version
from lora.training.device import device_name, keep_freed_memory

Samples = list[dict[str, Any]]


def measure(plan: Plan, say: Callable[[str], None], tick: Callable[[], None] = lambda: None) -> tuple[dict, Samples]:
    """Measure everything that the plan names.

    Args:
        say: Receives progress messages, one line each.
        tick: Called after every round: plan.rounds times for steps and as often for served batches.
    Returns: The summary, and the samples behind its times.
    Raises: UserError: If the encoder is absent or reads fewer tokens than a shape has, the kernels do not cover it, or
        PEFT is planned but not installed.
    """
    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    if "peft" in plan.methods:
        require_peft()
    torch.set_num_threads(plan.threads)
    model = describe_encoder(plan)
    busy = {"before": machine.busy_cores()}
    if not machine.is_idle(busy.values()):
        say(f"warning: other processes keep {busy['before']:.2f} cores busy; measure on an idle machine")
    measured = {name: {"settings": settings_of(plan, name)} for name in plan.methods}
    for name in plan.trained:  # before this process grows
        say(f"peak memory of {name}, in a process of its own")
        process = (partial(make_trainee, plan, name), plan.largest, plan.threads, plan.device)
        peak = harness.in_fresh_process(harness.peak_mib, *process)
        measured[name]["peak_mib"] = None if peak is None else {plan.largest: peak}
    keep_freed_memory()  # as in training

    say(f"training steps, {plan.rounds} rounds")
    samples = time_steps(plan, measured, tick)
    busy["after the steps"] = machine.busy_cores()
    say(f"served batches, {plan.rounds} rounds")  # the trained models are freed before these are built
    samples += time_served(plan, tick)
    busy["at the end"] = machine.busy_cores()
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


def resolve_device(wanted: str, kernels: str | None) -> str:
    """The device to measure on. `auto` is a GPU if torch sees one, unless the kernels are `fused`, those for CPUs.

    Raises: UserError: If `cuda` is requested but not available.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device is cuda, but torch sees no CUDA device here; use --device auto or cpu")
    if wanted == "auto":
        return "cuda" if available and kernels != "fused" else "cpu"
    return wanted


def device_of(device: str) -> str:
    """The name of a CPU or GPU in tables; its slug names the device's folder."""
    return device_name(torch.device("cuda")) if device == "cuda" else machine.cpu_name()


def describe_machine(device: str) -> dict[str, Any]:
    packages = machine.versions()
    python = packages.pop("python")
    return {"device": device_of(device), **machine.describe(), "python": python, "packages": packages}


def describe_encoder(plan: Plan) -> dict[str, Any]:
    model, weights = load(run_of(plan, "base"))
    longest = max(rows_and_tokens(shape)[1] for shape in (*plan.step_shapes, *plan.latency_shapes))
    if longest > max_positions(model):
        raise UserError(f"a shape has {longest} tokens, but {plan.model} reads at most {max_positions(model)}")
    return {"name": plan.model, "weights": weights, "parameters": count_parameters(model)["total"]}


def settings_of(plan: Plan, name: str) -> dict[str, Any] | None:
    """The method's arguments; None for the base, which has no method."""
    return None if name == "base" else dataclasses.asdict(run_of(plan, name).method)


def make_trainee(plan: Plan, name: str) -> Subject:
    return (peft if name == "peft" else ours)(run_of(plan, name))


def time_steps(plan: Plan, measured: dict[str, dict[str, Any]], tick: Callable[[], None]) -> Samples:
    """Time a training step of every method. Adds to `measured` the quantities that need no clock, and LoRA's floor."""
    trainees = {name: make_trainee(plan, name) for name in plan.trained}
    if not trainees:
        return []
    model = next(iter(trainees.values())).model
    batches = {shape: random_batch(model, shape) for shape in plan.step_shapes}
    for name, trainee in trainees.items():
        measured[name] |= harness.counts(trainee, batches)
    if "lora" in trainees:
        rank, place = run_of(plan, "lora").method.rank, (plan.precision, plan.device)
        floors = {shape: harness.floor_ms(model, shape, rank, *place) for shape in plan.step_shapes}
        measured["lora"]["floor_ms"] = None if None in floors.values() else floors
    return sampled(plan, "step", {name: trainee.step for name, trainee in trainees.items()}, batches, tick)


def time_served(plan: Plan, tick: Callable[[], None]) -> Samples:
    """Time a forward pass of every model as deployed."""
    models = {name: served(run_of(plan, name), name == "lora_merged") for name in plan.served}
    if not models:
        return []
    batches = {shape: random_batch(next(iter(models.values())), shape) for shape in plan.latency_shapes}
    return sampled(plan, "latency", {name: partial(serve, model) for name, model in models.items()}, batches, tick)


def sampled(plan: Plan, kind: str, actions: dict, batches: dict, tick: Callable[[], None]) -> Samples:
    """Time every method on every shape in every round, after an untimed call. Returns: One sample of each."""
    seconds = harness.times(actions, batches, plan.rounds, plan.device, after_round=tick)
    return [
        {"kind": kind, "method": name, "shape": shape, "round": number, "ms": round(1000 * values[number], 5)}
        for number in range(plan.rounds)
        for shape, methods in seconds.items()
        for name, values in methods.items()
    ]
