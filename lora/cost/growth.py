"""`python -m lora bench growth`: how time and memory grow with model, batch, length, rank and number of runs.

Along each axis, it compares a step of LoRA on Wq and Wv, with one thread, with its matrix products alone (`floor`).
It also measures whole sweeps of more and more runs.
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import machine
from lora.cost.floor import floor_seconds, lora_step, sizes_of
from lora.cost.results import add_place, at_least_one, folder_of, origin, publish, say
from lora.cost.steps import WARMUP, saved_bytes
from lora.cost.subjects import MODELS, Batch, Subject, changed, of_size, ours, random_batch
from lora.cost.throughput import sides
from lora.cost.throughput.runs import TASKS_TIMED, common_overrides
from lora.cost.timing import slope, take_turns
from lora.models.modules import trainable
from lora.table import markdown
from lora.training.allocator import keep_freed_memory

BATCH, TOKENS, RANK = 16, 28, 8  # except on the axis that varies it
AXES: dict[str, tuple] = {
    "model": MODELS,
    "batch": (4, 8, 16, 32, 64),
    "length": (16, 32, 64, 128, 256),
    "rank": (1, 4, 16, 64),
}
EVERY = [*AXES, "runs"]
RUNS = (2, 4, 8, 16)
RUN_ROWS, RUN_EPOCHS = 200, 1
REPETITIONS = 5
STATE_BYTES = 12  # per trained value: its gradient and AdamW's two moments, in float32


@dataclass(frozen=True)
class Point:
    """The setting of one step."""

    model: str
    batch: int
    tokens: int
    rank: int

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.tokens}"


def points(axis: str, values: Sequence[Any]) -> list[Point]:
    base = Point("minilm", BATCH, TOKENS, RANK)
    field = {"model": "model", "batch": "batch", "length": "tokens", "rank": "rank"}[axis]
    return [dataclasses.replace(base, **{field: value}) for value in values]


def measure_axis(
    chosen: Sequence[Point], config_of: Callable[[str], RunConfig], repetitions: int
) -> list[dict[str, Any]]:
    """Measure the steps of an axis, interleaved, each with its floor.

    Args:
        config_of: Maps a model to a run of it; the run's rank is replaced.
    """
    subjects: dict[tuple[str, int], Subject] = {}
    batches: dict[Point, Batch] = {}
    for point in chosen:
        key = point.model, point.rank
        if key not in subjects:
            subjects[key] = ours(changed(config_of(point.model), method={"rank": point.rank}))
        batches[point] = random_batch(subjects[key].model, point.shape)
    actions = {
        str(number): functools.partial(subjects[point.model, point.rank].step, batches[point])
        for number, point in enumerate(chosen)
    }
    times = take_turns(actions, repetitions, WARMUP)
    found = []
    for number, point in enumerate(chosen):
        subject, seconds = subjects[point.model, point.rank], times[str(number)]
        products = lora_step(sizes_of(subject.model), point.shape, point.rank)
        trained = sum(p.numel() for _, p in trainable(subject.model))
        found.append(
            dataclasses.asdict(point)
            | {
                "parameters": sum(p.numel() for p in subject.model.parameters()),
                "trained": trained,
                "step_ms": 1000 * statistics.median(seconds),
                "step_ms_all": [1000 * value for value in seconds],
                "floor_ms": 1000 * floor_seconds(products, config_of(point.model).train.precision),
                "operations": sum(product.operations for product in products),
                "saved_mib": saved_bytes(subject, batches[point]) / 2**20,
                "weights_mib": sum(p.numel() * p.element_size() for p in subject.model.parameters()) / 2**20,
                "state_mib": STATE_BYTES * trained / 2**20,
            }
        )
    return found


def measure_runs(counts: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Measure whole sweeps, from the command to its end, after a warm-up. `cells` is the key in committed files."""
    overrides = common_overrides(RUN_ROWS, RUN_EPOCHS)
    sides.run_ours(-1, TASKS_TIMED, [0], overrides, folder)
    found = []
    for number, count in enumerate(counts):
        seeds = range(1, count // len(TASKS_TIMED) + 1)
        turn = sides.run_ours(number, TASKS_TIMED, list(seeds), overrides, folder)
        peak = None if turn.peak_bytes is None else turn.peak_bytes / 2**20
        found.append({"cells": count, "seconds": turn.seconds, "peak_mib": peak})
    return found


def slopes(axis: str, found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The exponents of time, floor and saved bytes along an axis."""
    key = {"model": "parameters", "batch": "batch", "length": "tokens", "rank": "rank"}[axis]
    sizes = [point[key] for point in found]
    return {name: slope(sizes, [point[name] for point in found]) for name in ("step_ms", "floor_ms", "saved_mib")}


def per_run(found: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Seconds per additional run, and once per command, by least squares; None for a single count."""
    if len(found) < 2:
        return None
    line = statistics.linear_regression([each["cells"] for each in found], [each["seconds"] for each in found])
    return {"seconds_per_cell": line.slope, "seconds_once": line.intercept}


def document(growth: Mapping[str, Any]) -> str:
    """growth.md."""
    settings = growth["settings"]
    parts = [
        f"# How time and memory grow on {growth['device']}",
        f"One LoRA step (q, v), {settings['precision']}, one thread; {settings['batch']} x {settings['tokens']} "
        f"tokens, r = {settings['rank']} and MiniLM where the axis does not say otherwise; the median of "
        f"{settings['repetitions']} interleaved steps. Floor: the step's matrix products alone, each at the speed that "
        f"torch multiplies such matrices with here. Saved: what the forward pass keeps for the backward pass.",
    ]
    for axis, found in growth["axes"].items():
        rows = [
            {
                axis: point["tokens" if axis == "length" else axis],
                "step, ms": f"{point['step_ms']:,.1f}",
                "floor, ms": f"{point['floor_ms']:,.1f}",
                "step / floor": f"{point['step_ms'] / point['floor_ms']:.2f}",
                "GFLOP": f"{point['operations'] / 1e9:,.1f}",
                "saved, MiB": f"{point['saved_mib']:,.1f}",
                "weights, MiB": f"{point['weights_mib']:,.1f}",
                "state, MiB": f"{point['state_mib']:,.1f}",
            }
            for point in found["points"]
        ]
        fitted = ", ".join(
            f"{title} {'-' if found['slopes'][name] is None else format(found['slopes'][name], '.2f')}"
            for name, title in (("step_ms", "step"), ("floor_ms", "floor"), ("saved_mib", "saved"))
        )
        against = "the number of parameters" if axis == "model" else axis
        parts += [
            f"## By {axis}",
            markdown(pd.DataFrame(rows)),
            f"Slopes of the logarithms against {against}: {fitted}.",
        ]
    if growth["cells"]:
        rows = [
            {
                "runs": each["cells"],
                "s": f"{each['seconds']:.1f}",
                "memory, MiB": "-" if each["peak_mib"] is None else f"{each['peak_mib']:,.0f}",
            }
            for each in growth["cells"]
        ]
        parts += ["## By number of runs", markdown(pd.DataFrame(rows))]
        line = growth["per_cell"]
        if line is not None:
            parts.append(
                f"A run of {settings['cell_rows']} rows and {settings['cell_epochs']} epoch takes "
                f"{line['seconds_per_cell']:.2f} s more, the command {line['seconds_once']:.1f} s whatever the number."
            )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def measure(axes: Sequence[str], repetitions: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    keep_freed_memory()
    runtime = {"device": "cpu", "threads": 1}
    config = changed(compose_run([*common_overrides(), "task=reviews"]), runtime=runtime, train={"kernels": "fused"})
    load = machine.sample_load()
    found = {}
    for axis in (axis for axis in AXES if axis in axes):
        say(f"by {axis}: {', '.join(map(str, AXES[axis]))}")
        measured = measure_axis(points(axis, AXES[axis]), functools.partial(of_size, config), repetitions)
        found[axis] = {"points": measured, "slopes": slopes(axis, measured)}
    runs: list[dict[str, Any]] = []
    if "runs" in axes:
        say(f"by runs: {', '.join(map(str, RUNS))}")
        with tempfile.TemporaryDirectory(prefix="lora-growth-") as folder:
            runs = measure_runs(RUNS, Path(folder))
    return origin(machine.cpu_device()) | {
        "load": dataclasses.asdict(load) | {"idle": load.idle},
        "settings": {
            "precision": config.train.precision,
            "batch": BATCH,
            "tokens": TOKENS,
            "rank": RANK,
            "repetitions": repetitions,
            "cell_rows": RUN_ROWS,
            "cell_epochs": RUN_EPOCHS,
        },
        "axes": found,
        "cells": runs,
        "per_cell": per_run(runs),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=EVERY,
        default=EVERY,
        metavar="AXIS",
        help=f"of {', '.join(EVERY)}; fewer than all are printed, not written",
    )
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of every step (default %(default)s)")
    add_place(parser)


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or a sweep that could not run."""
    at_least_one(chosen, "repetitions")
    folder = folder_of("bench", chosen)
    growth = measure(chosen.axes, chosen.repetitions)
    if set(chosen.axes) == set(EVERY):
        publish(folder / growth["device"], "growth", growth, document(growth))
    print(document(growth))
