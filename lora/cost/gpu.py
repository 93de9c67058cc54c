"""`python -m lora bench gpu` (`make bench-gpu`): one training step of every contender on one GPU, in minutes.

bf16 under autocast with transformers' modules and torch's fused attention, for three sizes of encoder, beside PEFT,
full fine-tuning and the time of the matrix products alone. Times are of CUDA events. Each shape is warmed up.
"""

import argparse
import re
import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import machine
from lora.cost.floor import floor_seconds, lora_step, sizes_of
from lora.cost.results import add_reference, as_json, results_folder, say
from lora.cost.steps import saved_bytes, time_steps
from lora.cost.subjects import Build, Contender, of_size, ours, peft, random_batch
from lora.cost.throughput.runs import common_overrides
from lora.cost.timing import ratio_of
from lora.errors import UserError
from lora.files import write_atomically
from lora.methods.configs import FullConfig
from lora.records.provenance import code_version
from lora.table import markdown

MODELS = ("minilm", "roberta_base", "roberta_large")
SHAPES = {"16x28": (16, 28), "32x64": (32, 64), "32x128": (32, 128)}
REPETITIONS = 20
PRECISION, ATTENTION = "bf16", "sdpa"


def roster(build: Build, config: RunConfig, device: str, compiled: bool) -> dict[str, Callable[[], Contender]]:
    """The contenders by name. A compiled model meets every shape in the warm-up."""
    method = config.method
    found = {
        "ours": lambda: ours(build, config, "ours", method, PRECISION, device, ATTENTION),
        "full": lambda: ours(build, config, "full", FullConfig(), PRECISION, device, ATTENTION),
        "peft": lambda: peft(build, config, "peft", method, PRECISION, device, ATTENTION),
    }
    if compiled:
        found["ours compiled"] = lambda: ours(
            build, config, "ours compiled", method, PRECISION, device, ATTENTION, compiled=True
        )
    return found


def measure(
    builds: Mapping[str, Build],
    config: RunConfig,
    device: str,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    repetitions: int = REPETITIONS,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """One entry per model and shape: every contender's steps, what they keep, and the floor.

    Args:
        builds: Model -> how to make one.
        device: `cuda`; on `cpu` the same code runs, with this project's compiled kernels.
    """
    found = []
    for model, build in builds.items():
        contenders = {name: make() for name, make in roster(build, config, device, compiled).items()}
        plain = contenders["ours"].model
        for name, (rows, tokens) in shapes.items():
            say(f"{model} {name}")
            batch = random_batch(rows, tokens, plain.config.vocab_size, device)
            times = time_steps(contenders, batch, repetitions, device)
            products = lora_step(sizes_of(plain), rows, tokens, config.method.rank)
            found.append(
                {
                    "model": model,
                    "shape": name,
                    "step_ms": {key: 1000 * statistics.median(values) for key, values in times.items()},
                    "examples_per_second": rows / statistics.median(times["ours"]),
                    "step_vs_peft": ratio_of(times["ours"], times["peft"]),
                    "step_vs_full": ratio_of(times["ours"], times["full"]),
                    "floor_ms": 1000 * floor_seconds(products, PRECISION, device),
                    "saved_mib": {
                        key: saved_bytes(each, batch) / 2**20
                        for key, each in contenders.items()
                        if key in ("ours", "peft")
                    },
                }
            )
        del contenders, plain
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def document(measured: Mapping[str, Any]) -> str:
    """gpu.md."""
    rows = []
    for each in measured["steps"]:
        ratio, full = each["step_vs_peft"], each["step_vs_full"]
        rows.append(
            {
                "model": each["model"],
                "batch x tokens": each["shape"],
                **{f"{name}, ms": f"{value:,.2f}" for name, value in each["step_ms"].items()},
                "floor, ms": f"{each['floor_ms']:,.2f}",
                "ours / PEFT": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                "ours / full": f"{full['median']:.2f} ({full['low']:.2f} to {full['high']:.2f})",
                "examples / s": f"{each['examples_per_second']:,.0f}",
                "saved, ours, MiB": f"{each['saved_mib']['ours']:,.1f}",
                "saved, PEFT, MiB": f"{each['saved_mib']['peft']:,.1f}",
            }
        )
    settings = measured["settings"]
    return (
        f"# One training step on {measured['device_name']}\n\n{markdown(pd.DataFrame(rows))}\n"
        f"LoRA on Wq and Wv, r = {settings['rank']}, {settings['precision']} under autocast, {settings['attention']} "
        f"attention; medians of {settings['repetitions']} interleaved steps by CUDA events, in parentheses "
        f"their 95% intervals. Floor: the step's matrix products alone. Commit {measured['code']['commit']}; "
        f"{measured['measured_at']}; torch {measured['versions']['torch']}.\n"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: all")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of every step (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="this project's step also under torch.compile")
    add_reference(parser)


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done, 2 no GPU here or a mistake in the call."""
    if chosen.repetitions < 1:
        raise UserError(f"--repetitions must be >= 1, got {chosen.repetitions}")
    if not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA device, and torch sees none here; `make bench` runs on a CPU")
    if not torch.cuda.is_bf16_supported():
        raise UserError("this benchmark trains in bf16, which this GPU does not have")
    config = compose_run([*common_overrides(), "task=reviews"])
    builds = {model: of_size(model, config) for model in chosen.models}
    steps = measure(builds, config, "cuda", SHAPES, chosen.repetitions, chosen.compile)
    name = torch.cuda.get_device_name()
    measured = {
        "device_name": name,
        "machine": machine.describe_machine(),
        "versions": machine.versions() | {"cuda": torch.version.cuda},
        "code": code_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "precision": PRECISION,
            "attention": ATTENTION,
            "rank": config.method.rank,
            "repetitions": chosen.repetitions,
        },
        "steps": steps,
    }
    folder = results_folder(chosen.reference) / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    write_atomically(folder / "gpu.json", as_json(measured))
    write_atomically(folder / "gpu.md", document(measured).encode())
    print(document(measured))
