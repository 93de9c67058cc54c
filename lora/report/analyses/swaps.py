"""`python -m lora analyse swaps PROFILE`: is W0 recovered when trained adapters are swapped (section 4.1)?

Every LoRA adapter that a sweep saved (`runtime.save_adapter=true`) is swapped in and out of one base, in random order.
After each cycle, all weights of the base are compared bit by bit with the original ones. This project keeps a copy of
W0. The paper has none: it subtracts BA and adds B'A', and `subtraction` measures what that leaves. The results are
stored in results/<profile>/analysis/, so that claim and table are made without adapters.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import base_tensors
from lora.adapters.folder import recorded_adapter
from lora.adapters.merge import swap, unmerge
from lora.adapters.predict import logits_of
from lora.config.run import PlannedRun
from lora.data.batching import encode
from lora.data.read import read
from lora.errors import UserError
from lora.files import write_atomically
from lora.models.load import load_encoder
from lora.models.modules import checksum
from lora.records.analysis import SUBTRACTION, SWAP, analysis_json
from lora.report.gather import gather, saved_runs
from lora.report.gather import options as options
from lora.rng import generator

CYCLES = 1000
SWAPS = (1, 100, 1000)
BATCH = 64
CPU = torch.device("cpu")
SWAP_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Adapters = Mapping[str, tuple[PlannedRun, Adapter]]  # run_id -> run and LoRA, classes before scores


def count_failures(model: nn.Module, adapters: Sequence[Adapter], cycles: int) -> int:
    """Number of cycles after which W0 differs from the original. A cycle swaps in a random adapter and unmerges it."""
    before = checksum(base_tensors(model).items(), xxhash.xxh3_128)
    failures = 0
    for number in torch.randint(len(adapters), (cycles,), generator=generator(0, "swaps")).tolist():
        swap(model, adapters[number])
        unmerge(model)
        failures += checksum(base_tensors(model).items(), xxhash.xxh3_128) != before
    return failures


def swap_cases(adapters: Adapters, cycles: int) -> list[dict[str, Any]]:
    """The entries of the analysis, one per dtype."""
    (run, _), *_ = adapters.values()
    cases = []
    for label, dtype in SWAP_DTYPES.items():
        model = load_encoder(run.config.model, run.task, run.seed).model.to(dtype)
        failures = count_failures(model, [adapter for _, adapter in adapters.values()], cycles)
        about = f"swaps of {len(adapters)} adapters on {run.model}, {label}"
        cases.append({"label": about, "trials": cycles, "failures": failures, "runs": sorted(adapters)})
    return cases


def subtraction(adapters: Adapters) -> list[dict[str, Any]]:
    """What the paper's own swaps leave, W - s BA + s' B'A' in the weights' dtype, with adapters that take turns.

    Every series of swaps ends with the first one. The truth is that adapter merged into a copy of W0, on the dev rows
    of its task.

    Returns: Per dtype and number of swaps: the error of the recovered W0 in relation to W0 and to s BA (norms over all
        adapted weights), the largest change of a logit, and the number of rows whose class changes. Empty if no adapter
        is of a classification.
    """
    (run, first), *_ = adapters.values()
    task = run.task
    data = run.config.data
    if not task.labels:
        return []
    rows = read(task, **run.config.rows).splits[task.validation_splits[0]]
    cases = []
    for label, dtype in SWAP_DTYPES.items():
        encoder = load_encoder(run.config.model, task, run.seed)
        model, pad = encoder.model.to(dtype).eval(), encoder.tokenizer.pad_token_id
        encoded = dataclasses.replace(encode(rows, task, encoder.tokenizer, data.max_length), labels=None)
        updates = [update_of(adapter, dtype) for _, adapter in adapters.values()]
        base = {name: model.get_submodule(name).weight.detach().clone() for update in updates for name in update}
        swap(model, first)
        exact = logits_of(model, encoded, pad, BATCH, CPU)
        for swaps in SWAPS:
            order = [(place - swaps) % len(updates) for place in range(swaps + 1)]
            weights = {name: weight + updates[order[0]].get(name, 0) for name, weight in base.items()}
            for old, new in itertools.pairwise(order):
                weights = {
                    name: w - updates[old].get(name, 0) + updates[new].get(name, 0) for name, w in weights.items()
                }
            for name, weight in weights.items():
                model.get_submodule(name).weight.data.copy_(weight)
            swapped = logits_of(model, encoded, pad, BATCH, CPU)
            error = frobenius((weights[name] - updates[0].get(name, 0)).float() - w.float() for name, w in base.items())
            case = {"label": label, "swaps": swaps, "task": task.name, "rows": len(swapped)}
            case |= {"of_weight": error / frobenius(base.values()), "of_update": error / frobenius(updates[0].values())}
            changed = int((swapped.argmax(-1) != exact.argmax(-1)).sum())
            cases.append(case | {"logits": float(abs(swapped - exact).max()), "changed": changed})
    return cases


def update_of(adapter: Adapter, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Module -> s BA, computed in float32 and rounded once."""
    pairs = adapter.pairs().items()
    return {name: (adapter.scale(name) * (b.float() @ a.float())).to(dtype) for name, (a, b) in pairs}


def frobenius(tensors: Iterable[torch.Tensor]) -> float:
    """The Frobenius norm over all tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, whatever the result; 2 fewer than two adapters exist, or one is not its record's."""
    gathered = gather(given.profile, given.overrides)
    by_model: dict[str, dict[str, tuple[PlannedRun, Adapter]]] = {}
    for record, run in sorted(saved_runs(gathered), key=lambda saved: not saved[1].task.labels):
        if run.method == "lora":
            adapter = recorded_adapter(record, run.config.runtime.outputs)
            by_model.setdefault(run.model, {})[record.run_id] = run, adapter
    swapped = [adapters for adapters in by_model.values() if len(adapters) > 1]
    if not swapped:
        raise UserError(
            f"no two LoRA runs of {given.profile} left their adapters here: train them with runtime.save_adapter=true"
        )
    made_from = {run_id: gathered.state.ok[run_id].adapter for adapters in swapped for run_id in adapters}
    cases = [case for adapters in swapped for case in swap_cases(adapters, CYCLES)]
    write_atomically(gathered.folder / "analysis" / SWAP, analysis_json(made_from, cases))
    for case in cases:
        print(f"{case['label']}: {case['failures']} of {case['trials']} cycles left other weights")
    if cases := [case for adapters in swapped for case in subtraction(adapters)]:
        write_atomically(gathered.folder / "analysis" / SUBTRACTION, analysis_json(made_from, cases))
