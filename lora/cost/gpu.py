"""`python -m lora bench gpu` (`make bench-gpu`): one training step of every subject on one GPU, in minutes.

Steps run in bf16 under autocast, with transformers' modules and torch's fused attention, on three sizes of encoder. The
baselines are PEFT, full fine-tuning and the matrix products alone. CUDA events time each shape after a warm-up.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import machine, shapes
from lora.cost.floor import floor_seconds, lora_step, sizes_of
from lora.cost.results import add_place, at_least_one, folder_of, origin, publish, say
from lora.cost.steps import saved_bytes, time_steps
from lora.cost.subjects import MODELS, Subject, changed, of_size, ours, peft, random_batch
from lora.cost.throughput.runs import common_overrides
from lora.cost.timing import name_of, ratio_of, shown
from lora.errors import UserError
from lora.methods.configs import FullConfig
from lora.table import markdown

REPETITIONS = 20
PRECISION, ATTENTION = "bf16", "sdpa"


def on_gpu(config: RunConfig, model: str) -> RunConfig:
    """The run with this encoder on a GPU: bf16, stock kernels, sdpa attention."""
    train = {"precision": PRECISION, "kernels": "stock"}
    return changed(of_size(config, model), train=train, model={"attention": ATTENTION}, runtime={"device": "cuda"})


def roster(config: RunConfig, compiled: bool) -> dict[str, Subject]:
    """The subjects by name. The warm-up shows every shape to a compiled model."""
    found = {"ours": ours(config), "full": ours(changed(config, method=FullConfig())), "peft": peft(config)}
    return found | ({"ours compiled": ours(config, compiled=True)} if compiled else {})


def measure(
    configs: Mapping[str, RunConfig],
    step_shapes: Sequence[str] = shapes.GPU_STEP,
    repetitions: int = REPETITIONS,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """One entry per model and shape: every subject's step time, saved memory of ours and PEFT's, and the floor.

    Args:
        configs: Model -> its run; with runtime.device=cpu the same code measures a CPU.
    """
    found = []
    for model, config in configs.items():
        say(f"{model}: {', '.join(step_shapes)}")
        device, subjects = config.runtime.device, roster(config, compiled)
        encoder = subjects["ours"].model
        batches = {shape: random_batch(encoder, shape) for shape in step_shapes}
        for shape, times in time_steps(subjects, batches, repetitions, device).items():
            products = lora_step(sizes_of(encoder), shape, config.method.rank)
            kept = {key: saved_bytes(subjects[key], batches[shape]) / 2**20 for key in ("ours", "peft")}
            found.append(
                {
                    "model": model,
                    "shape": shape,
                    "step_ms": {key: 1000 * statistics.median(values) for key, values in times.items()},
                    "examples_per_second": shapes.rows_and_tokens(shape)[0] / statistics.median(times["ours"]),
                    "step_vs_peft": ratio_of(times["ours"], times["peft"]),
                    "step_vs_full": ratio_of(times["ours"], times["full"]),
                    "floor_ms": 1000 * floor_seconds(products, config.train.precision, device),
                    "saved_mib": kept,
                }
            )
        del subjects, encoder, batches
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def document(measured: Mapping[str, Any]) -> str:
    """gpu.md."""
    rows = [
        {
            "model": each["model"],
            "batch x tokens": each["shape"],
            **{f"{name}, ms": f"{value:,.2f}" for name, value in each["step_ms"].items()},
            "floor, ms": f"{each['floor_ms']:,.2f}",
            "ours / PEFT": shown(each["step_vs_peft"], 2),
            "ours / full": shown(each["step_vs_full"], 2),
            "examples / s": f"{each['examples_per_second']:,.0f}",
            "saved, ours, MiB": f"{each['saved_mib']['ours']:,.1f}",
            "saved, PEFT, MiB": f"{each['saved_mib']['peft']:,.1f}",
        }
        for each in measured["steps"]
    ]
    settings = measured["settings"]
    return (
        f"# One training step on {measured['device']}\n\n{markdown(pd.DataFrame(rows))}\n"
        f"LoRA on Wq and Wv, r = {settings['rank']}, {settings['precision']} under autocast, {settings['attention']} "
        f"attention; medians of {settings['repetitions']} interleaved steps by CUDA events, in parentheses "
        f"the {name_of(measured['steps'][0]['step_vs_peft'])}. Floor: the step's matrix products alone. Commit "
        f"{measured['code']['commit']}; {measured['measured_at']}; torch {measured['versions']['torch']}.\n"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: all")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of every step (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="this project's step also under torch.compile")
    add_place(parser)


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 no GPU with bf16, or a mistake in the call."""
    at_least_one(chosen, "repetitions")
    folder = folder_of("bench", chosen)
    if not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA device, and torch sees none here; `make bench` runs on a CPU")
    if not torch.cuda.is_bf16_supported():
        raise UserError("this benchmark trains in bf16, which this GPU does not have")
    config = compose_run([*common_overrides(), "task=reviews"])
    name = torch.cuda.get_device_name()
    steps = measure({m: on_gpu(config, m) for m in chosen.models}, shapes.GPU_STEP, chosen.repetitions, chosen.compile)
    measured = origin(name)
    measured["versions"] |= {"cuda": torch.version.cuda}
    settings = {"precision": PRECISION, "attention": ATTENTION, "rank": config.method.rank}
    measured |= {"settings": settings | {"repetitions": chosen.repetitions}, "steps": steps}
    publish(folder / machine.slug(name), "gpu", measured, document(measured))
    print(document(measured))
