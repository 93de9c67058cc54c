"""`python -m lora efficiency`: measure the cost of each method on this machine, and write its tables."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from lora.config.compose import compose_run, describe_group
from lora.config.encoder_files import longest_input
from lora.config.run import RunConfig
from lora.cost import machine, subjects
from lora.cost.efficiency.summary import FORM_TITLES, SUMMARY_SCHEMA, UNTRAINED, build_summary, document, read_summaries
from lora.cost.subjects import Batch, random_batch
from lora.errors import UserError
from lora.files import check_writable, write_atomically
from lora.methods.bridge import tuner_config
from lora.models.modules import count_parameters
from lora.records.provenance import code_version
from lora.rng import shuffled
from lora.training.device import check_precision, device_name, keep_freed_memory

MINI = ("profile=mini", "task=reviews")
MODELS = {  # encoder -> overrides of a run that trains it: its profile, model and task
    "minilm": MINI,
    "roberta_base": ("profile=paper", "protocol=printed", "model=roberta_base", "task=sst2"),
    "roberta_large": ("profile=paper", "protocol=printed", "model=roberta_large", "task=sst2"),
}
ROUNDS = 20  # ours: MiniLM in about five minutes on two cores
STEP = ("16x28", "32x64")  # training steps. Ours: mini's batch, and a batch that fills the cores
LATENCY = ("1x32", "1x128", "8x128", "16x128", "32x64")  # served batches. 1x128 is Table 1's; the others are ours


def configure(model: str, device: str, kernels: str | None, precision: str | None) -> RunConfig:
    """The LoRA run that is measured, with the encoder of `model` and the method and optimizer of `mini`."""
    chosen = MODELS.get(model) or ("profile=small", "model=local", f"model.path={model}", "task=sst2")
    usual = compose_run([*chosen, "method=lora", f"runtime.device={device}"])
    kernels = kernels or ("stock" if device == "cuda" else usual.train.kernels)
    mini = compose_run([*MINI, "method=lora", "runtime.device=cpu"])
    train = replace(mini.train, kernels=kernels, precision=precision or usual.train.precision)
    runtime = replace(mini.runtime, device=device, threads=usual.runtime.threads)
    return replace(mini, model=usual.model, train=train, runtime=runtime)


def measured_run(config: RunConfig, name: str) -> RunConfig:
    """The run whose method is measured under `name`: that of `mini`, or one of PEFT's types with its defaults."""
    method = {"base": "full", "lora_merged": "lora"}.get(name, name)
    if method in describe_group("method"):
        return replace(config, method=compose_run([*MINI, f"method={method}"]).method)
    tuner_config(method)  # names the types, if it is none
    return replace(config, method=compose_run([*MINI, "method=peft", f"method.type={method}"]).method)


def measure_methods(
    config: RunConfig, methods: Sequence[str], rounds: int, step_shapes: Sequence[str], latency_shapes: Sequence[str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure every method.

    Args:
        methods: Keys of `FORM_TITLES`, options of conf/method or types of PEFT.
        step_shapes, latency_shapes: Shapes of training and of served batches, as `<rows>x<tokens>`.
    Returns: The summary, and the samples behind its times.
    Raises: UserError: If the encoder is absent or reads fewer tokens than a shape has, or the kernels do not cover it.
    """
    started = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    threads, device = config.runtime.threads, config.runtime.device
    sizes = {shape: subjects.rows_and_tokens(shape) for shape in (*step_shapes, *latency_shapes)}
    torch.set_num_threads(threads)
    encoder, weights = subjects.load(config)
    settings, parameters = encoder.config, count_parameters(encoder)["total"]
    longest = max(tokens for _, tokens in sizes.values())
    most = longest_input(encoder.config.to_dict())
    if longest > most:
        raise UserError(f"a shape has {longest} tokens, but {config.model.name} reads at most {most}")
    del encoder
    names = sorted(dict.fromkeys(methods), key=lambda name: [*FORM_TITLES, name].index(name))
    runs = {name: measured_run(config, name) for name in names}
    trained = [name for name in runs if name not in UNTRAINED]
    measured: dict[str, dict[str, Any]] = {
        name: {"settings": None if name == "base" else asdict(run.method)} for name, run in runs.items()
    }
    busy = {"before": machine.busy_cores()}
    if busy["before"] > machine.IDLE_CORES:
        print(f"warning: other processes keep {busy['before']:.2f} cores busy; measure when idle", file=sys.stderr)
    largest = max(step_shapes, key=lambda shape: sizes[shape][0] * sizes[shape][1])
    for name in trained:  # before this process grows
        peak = subjects.in_fresh_process(subjects.training_peak_mib, runs[name], largest, threads)
        measured[name]["peak_mib"] = None if peak is None else {largest: peak}
    keep_freed_memory()  # as in training
    trainees = {name: subjects.training_subject(runs[name]) for name in trained}
    batches = {shape: random_batch(settings, shape, device) for shape in step_shapes}
    for name, subject in trainees.items():
        measured[name] |= subjects.counts(subject, batches)
    samples = take_turns("step", {name: subject.step for name, subject in trainees.items()}, batches, rounds, device)
    busy["after the steps"] = machine.busy_cores()
    del trainees  # before the served models are built
    models = {name: subjects.serving_model(run, name == "lora_merged") for name, run in runs.items()}
    passes = {name: partial(subjects.serve_batch, model) for name, model in models.items()}
    batches = {shape: random_batch(settings, shape, device) for shape in latency_shapes}
    samples += take_turns("latency", passes, batches, rounds, device)
    busy["at the end"] = machine.busy_cores()
    plan: dict[str, Any] = {
        "model": config.model.name,
        "path": config.model.path and Path(config.model.path).name,
        "methods": list(runs),
    }
    plan |= {"kernels": config.train.kernels, "precision": config.train.precision, "device": device}
    plan |= {"threads": threads, "rounds": rounds, "step_shapes": [*step_shapes], "latency_shapes": [*latency_shapes]}
    about = {
        "schema": SUMMARY_SCHEMA,
        "model": {"name": config.model.name, "weights": weights, "parameters": parameters},
        "plan": plan,
        "machine": {"device": device_of(device)} | machine.describe_machine() | machine.versions(),
        "idle": {"idle": max(busy.values()) <= machine.IDLE_CORES, "cores busy with others": busy},
        "code": code_version(),
        "started_at": started_at,
        "seconds": round(time.monotonic() - started, 1),
    }
    frame = pd.DataFrame(samples)
    return build_summary(measured, frame, about), frame


def take_turns(
    kind: str, actions: Mapping[str, Callable[[Batch], object]], batches: Mapping[str, Batch], rounds: int, device: str
) -> list[dict[str, Any]]:
    """Time every method on every shape in every round, so that a temporary slowdown affects all of them.

    Everything is called once before the first round, to compile kernels and plan matrix products, and once untimed
    before each timed call, to equalise caches and clocks.
    """
    clock = partial(timeit, number=1) if device == "cpu" else subjects.event_seconds
    samples = []
    names = [*actions]
    for act, batch in itertools.product(actions.values(), batches.values()):
        act(batch)
    for number in tqdm(range(rounds), kind, unit="round", dynamic_ncols=True):
        for shape, batch in batches.items():
            for place in shuffled(len(names), shape, number):
                name = names[place]
                act = partial(actions[name], batch)
                act()
                ms = round(1000 * clock(act), 5)
                samples.append({"kind": kind, "method": name, "shape": shape, "round": number, "ms": ms})
    return samples


# The command.


def device_of(device: str) -> str:
    """The name of a CPU or GPU in tables; its slug names the device's folder."""
    return device_name(torch.device("cuda")) if device == "cuda" else machine.cpu_name()


def options(parser: argparse.ArgumentParser) -> None:
    text = f"the encoder: {', '.join(MODELS)} (RoBERTa with random weights), or a folder (default: minilm)"
    parser.add_argument("--model", default="minilm", help=text)
    text = f"forms of an encoder, options of conf/method or types of PEFT (default: {' '.join(FORM_TITLES)})"
    parser.add_argument("--methods", nargs="+", default=list(FORM_TITLES), help=text)
    parser.add_argument("--kernels", choices=["fused", "stock"], help="default: the profile's; stock on a GPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the profile's")
    parser.add_argument(
        "--rounds", type=machine.whole, default=ROUNDS, help=f"visits to every method (default: {ROUNDS})"
    )
    for name, usual in (("step", STEP), ("latency", LATENCY)):
        text = f"rows x tokens of batches (default: {' '.join(usual)})"
        parser.add_argument(f"--{name}-shapes", nargs="+", default=list(usual), help=text)
    machine.add_place(parser)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or no summary to build tables from."""
    results = given.results / "efficiency"
    if given.tables:
        places = sorted({path.parents[1] for path in results.glob("*/*/summary.json")})
        if not places:
            raise UserError(f"{results} holds no device's folder: python -m lora efficiency makes one")
        for place in places:
            write_tables(place)
            print(place / "efficiency.md")
        return
    device = "cuda" if torch.cuda.is_available() and given.kernels != "fused" else "cpu"
    config = configure(given.model, device, given.kernels, given.precision)
    check_precision(config.train.precision, config.runtime.device == "cuda", "--precision")
    check_writable(results)
    shapes = (given.step_shapes, given.latency_shapes)
    summary, samples = measure_methods(config, given.methods, given.rounds, *shapes)
    place, plan = results / machine.slug(device_of(device)), summary["about"]["plan"]
    folder = place / f"{plan['model']}-{plan['kernels']}-{plan['precision']}"
    write_atomically(folder / "samples.csv", samples.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(folder / "summary.json", machine.as_json(summary))
    print(write_tables(place))


def write_tables(device: Path) -> str:
    """Write a device's tables from its summaries. Returns: The text of efficiency.md."""
    text = document([*read_summaries(device).values()])
    write_atomically(device / "efficiency.md", text.encode())
    return text
