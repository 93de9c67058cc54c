"""One call of the experiment, from its plan to a summary."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora.cost.efficiency import machine
from lora.cost.efficiency.plan import Plan, method_run
from lora.cost.efficiency.subjects import (
    Trainee,
    build_encoder,
    loss_of,
    make_batch,
    make_server,
    make_trainee,
    serve,
    train_step,
)
from lora.cost.efficiency.summary import SCHEMA, summarise
from lora.cost.efficiency.timing import Call, interleave
from lora.cost.saved import checkpoint_bytes, peak_of_child, saved_bytes
from lora.models.modules import count_parameters
from lora.records.provenance import code_version
from lora.training.allocator import keep_freed_memory
from lora.training.usage import device_name, optimizer_bytes

Batch = dict[str, Tensor]
Work = dict[str, dict[str, Call]]


def measure(
    plan: Plan, say: Callable[[str], None], tick: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure everything that the plan names.

    Args:
        say: Told what goes on, a line at a time.
        tick: Called after every round, of which there are plan.rounds of steps and as many of served batches.
    Returns: The summary and the samples that its times come from.
    Raises: UserError: If the encoder is absent, or the kernels do not cover it.
    """
    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    torch.set_num_threads(plan.threads)
    shares = {"before": machine.busy_cores()}
    if machine.is_idle(shares) is False:
        say(f"warning: other processes keep {shares['before']:.2f} cores busy; times of an idle machine are better")

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
    work = training_work(plan, measured)
    before = machine.cpu_times()
    samples = interleave("step", work, plan.rounds, plan.calls, plan.seed, plan.device, tick)
    shares["during steps"] = machine.others_share(before, machine.cpu_times())

    say(f"served batches, {plan.rounds} rounds")
    del work  # its models, before those that serve are built
    work = serving_work(plan)
    before = machine.cpu_times()
    samples += interleave("latency", work, plan.rounds, plan.calls, plan.seed, plan.device, tick)
    shares["during served batches"] = machine.others_share(before, machine.cpu_times())

    about = {
        "schema": SCHEMA,
        "model": model,
        "plan": dataclasses.asdict(plan) | {"path": plan.path and Path(plan.path).name},
        "machine": machine.describe(device_name(torch.device(plan.device))),
        "idle": {"idle": machine.is_idle(shares), "cores busy with others": shares},
        "code": code_version(),
        "started_at": started_at,
        "seconds": round(time.monotonic() - started, 1),
    }
    return summarise(measured, samples, about), samples


def settings_of(plan: Plan, name: str) -> dict[str, Any] | None:
    """The method's arguments; None where there is no method."""
    return None if name == "base" else dataclasses.asdict(method_run(plan, name).method)


def training_work(plan: Plan, measured: dict[str, dict[str, Any]]) -> Work:
    """Method -> shape -> a training step. What needs no clock is counted on the way, into `measured`."""
    work, counter = {}, itertools.count(1)
    for name in plan.trained:
        trainee = make_trainee(plan, name)
        batches = {shape: make_batch(trainee.model, shape, plan) for shape in plan.step_shapes}
        measured[name] |= count(trainee, batches)
        work[name] = {shape: partial(_next_step, trainee, batch, counter) for shape, batch in batches.items()}
    return work


def _next_step(trainee: Trainee, batch: Batch, counter: Iterator[int]) -> None:
    train_step(trainee, batch, next(counter))


def serving_work(plan: Plan) -> Work:
    """Method -> shape -> a forward pass of the model as it is deployed."""
    work = {}
    for name in plan.methods:
        model = make_server(plan, name)
        work[name] = {shape: partial(serve, model, make_batch(model, shape, plan)) for shape in plan.latency_shapes}
    return work


def count(trainee: Trainee, batches: dict[str, Batch]) -> dict[str, Any]:
    """What needs no clock. Ends with one step of the optimizer, so that its state is there to be counted."""
    parameters = count_parameters(trainee.model)
    saved = {shape: saved_bytes(trainee.model, partial(loss_of, trainee, batch, 0)) for shape, batch in batches.items()}
    train_step(trainee, next(iter(batches.values())), 0)
    return {
        "trainable": parameters["trainable_method"],
        "trainable_with_head": parameters["trainable_method"] + parameters["trainable_head"],
        "checkpoint_bytes": checkpoint_bytes(trainee.model, with_head=True),
        "checkpoint_bytes_without_head": checkpoint_bytes(trainee.model, with_head=False),
        "optimizer_bytes": optimizer_bytes(trainee.optimizer),
        "saved_activation_bytes": {shape: each.activations for shape, each in saved.items()},
        "saved_cast_bytes": {shape: each.casts for shape, each in saved.items()},
    }
