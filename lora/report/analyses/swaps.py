"""`python -m lora analyse swaps PROFILE`: is W0 recovered exactly when trained adapters are swapped (section 4.1)?

Every LoRA adapter that a sweep saved (`runtime.save_adapter=true`) is swapped in and out of one base, in random order.
After each cycle, all weights of the base are compared bit by bit with the original ones. The results are stored in
results/<profile>/analysis/swap.json, on which the claim is judged without adapters.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import base_tensors
from lora.adapters.folder import recorded_adapter
from lora.adapters.merge import swap, unmerge
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import write_atomically
from lora.models.load import load_encoder
from lora.records.analysis import SWAP, analysis_json
from lora.report.gather import gather, saved_runs
from lora.report.gather import options as options
from lora.rng import generator

CYCLES = 1000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def count_failures(model: nn.Module, adapters: Sequence[Adapter], cycles: int) -> int:
    """Number of cycles after which W0 differs from the original. A cycle swaps in a random adapter and unmerges it."""
    before = {name: tensor.detach().clone() for name, tensor in base_tensors(model).items()}
    failures = 0
    for number in torch.randint(len(adapters), (cycles,), generator=generator(0, "swaps")).tolist():
        swap(model, adapters[number])
        unmerge(model)
        after = base_tensors(model)
        failures += after.keys() != before.keys() or any(not same_bits(after[name], before[name]) for name in before)
    return failures


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are bitwise equal: 0 differs from -0, and a NaN equals itself."""
    return one.dtype == other.dtype and torch.equal(one.detach().view(torch.uint8), other.view(torch.uint8))


def analyse(
    adapters: Mapping[str, Mapping[str, tuple[RunConfig, Adapter]]], cycles: int
) -> tuple[list[dict[str, Any]], set[str]]:
    """The entries of the analysis, one per dtype and encoder with at least two adapters; and their run_ids. `adapters`:
    encoder -> run_id -> configuration and saved LoRA adapter."""
    cases, used = [], set()
    for name, of_model in adapters.items():
        if len(of_model) < 2:
            continue
        config, _ = next(iter(of_model.values()))
        for label, dtype in DTYPES.items():
            model = load_encoder(config.model, TASKS[config.task], config.seed).model.to(dtype)
            failures = count_failures(model, [adapter for _, adapter in of_model.values()], cycles)
            about = f"swaps of {len(of_model)} adapters on {name}, {label}"
            cases.append({"label": about, "trials": cycles, "failures": failures, "runs": sorted(of_model)})
        used |= set(of_model)
    return cases, used


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, whatever the result; 2 fewer than two adapters exist, or one is not its record's."""
    gathered = gather(given.profile, given.overrides)
    adapters: dict[str, dict[str, tuple[RunConfig, Adapter]]] = {}
    for record, config in saved_runs(gathered):
        if config.method.name == "lora":
            adapter = recorded_adapter(record, config.runtime.outputs)
            adapters.setdefault(config.model.name, {})[record.run_id] = config, adapter
    cases, used = analyse(adapters, CYCLES)
    if not cases:
        raise UserError(
            f"no two LoRA runs of {given.profile} left their adapters here: train them with runtime.save_adapter=true"
        )
    path = gathered.folder / "analysis" / SWAP
    made_from = {run_id: gathered.state.ok[run_id].adapter for run_id in used}
    write_atomically(path, analysis_json(made_from, cases))
    for case in cases:
        print(f"{case['label']}: {case['failures']} of {case['trials']} cycles left other weights")
