"""`python -m lora analyse swaps PROFILE`: is W0 recovered when trained adapters are swapped (section 4.1)?

Every LoRA adapter that a sweep saved (`runtime.save_adapter=true`) is swapped in and out of one base, in random order.
After each cycle, all weights of the base are compared bit by bit with the original ones. This project keeps a copy of
W0. The paper has none: it subtracts BA and adds B'A', and `subtraction` measures what that leaves. The results are
stored in results/<profile>/analysis/, so that claim and table are made without adapters.
"""

import argparse
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora.adapters.adapter import Adapter
from lora.adapters.base import base_tensors
from lora.adapters.folder import recorded_adapter
from lora.adapters.merge import swap, unmerge
from lora.config.run import PlannedRun
from lora.data.batching import Encoded, collate, encode, evaluation_batches
from lora.data.read import read
from lora.errors import UserError
from lora.files import write_atomically
from lora.models.load import load_encoder
from lora.records.analysis import SUBTRACTION, SWAP, analysis_json
from lora.report.gather import gather, saved_runs
from lora.report.gather import options as options
from lora.rng import generator

CYCLES = 1000
SWAPS = (1, 100, 1000)
BATCH = 64
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
    adapters: Mapping[str, Mapping[str, tuple[PlannedRun, Adapter]]], cycles: int
) -> tuple[list[dict[str, Any]], set[str]]:
    """The entries of the analysis, one per dtype and encoder with at least two adapters; and their run_ids. `adapters`:
    encoder -> run_id -> run and saved LoRA adapter."""
    cases, used = [], set()
    for name, of_model in adapters.items():
        if len(of_model) < 2:
            continue
        run, _ = next(iter(of_model.values()))
        for label, dtype in DTYPES.items():
            model = load_encoder(run.config.model, run.task, run.seed).model.to(dtype)
            failures = count_failures(model, [adapter for _, adapter in of_model.values()], cycles)
            about = f"swaps of {len(of_model)} adapters on {name}, {label}"
            cases.append({"label": about, "trials": cycles, "failures": failures, "runs": sorted(of_model)})
        used |= set(of_model)
    return cases, used


def subtraction(run: PlannedRun, adapters: Sequence[Adapter], rows: Encoded, pad_token_id: int) -> list[dict[str, Any]]:
    """What the paper's own swaps leave, W - s BA + s' B'A' in the weights' dtype, with adapters that take turns.

    Args:
        run: That of the first adapter, with which every series of swaps ends.
        rows: Dev rows of its task. The truth is that adapter merged into a copy of W0.
    Returns: Per dtype and number of swaps: the error of the recovered W0 in relation to W0 and to s BA (norms over all
        adapted weights), the largest change of a logit, and the number of rows whose class changes.
    """
    cases = []
    for label, dtype in DTYPES.items():
        model = load_encoder(run.config.model, run.task, run.seed).model.to(dtype).eval()
        updates = [
            {
                name: (adapter.scale(name) * (b.float() @ a.float())).to(dtype)
                for name, (a, b) in adapter.pairs().items()
            }
            for adapter in adapters
        ]
        base = {name: model.get_submodule(name).weight.detach().clone() for update in updates for name in update}
        swap(model, adapters[0])
        exact = logits_of(model, rows, pad_token_id)
        for swaps in SWAPS:
            order = [(place - swaps) % len(updates) for place in range(swaps + 1)]
            weights = {name: weight + updates[order[0]].get(name, 0) for name, weight in base.items()}
            for old, new in itertools.pairwise(order):
                weights = {n: w - updates[old].get(n, 0) + updates[new].get(n, 0) for n, w in weights.items()}
            for name, weight in weights.items():
                model.get_submodule(name).weight.data.copy_(weight)
            found = logits_of(model, rows, pad_token_id)
            error = norm((weights[n] - updates[0].get(n, 0)).float() - w.float() for n, w in base.items())
            case = {"label": label, "swaps": swaps, "task": run.task.name, "rows": len(found)}
            case |= {"of_weight": error / norm(base.values()), "of_update": error / norm(updates[0].values())}
            changed = int((found.argmax(-1) != exact.argmax(-1)).sum())
            cases.append(case | {"logits": float((found - exact).abs().max()), "changed": changed})
    return cases


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """The Frobenius norm over all tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@torch.inference_mode()
def logits_of(model: nn.Module, rows: Encoded, pad_token_id: int) -> torch.Tensor:
    logits = torch.empty(len(rows.lengths), model.config.num_labels)
    for batch in evaluation_batches(rows.lengths, BATCH):
        inputs = collate(rows, batch, pad_token_id)
        inputs.pop("labels")
        logits[torch.from_numpy(batch)] = model(**inputs).logits.float()
    return logits


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, whatever the result; 2 fewer than two adapters exist, or one is not its record's."""
    gathered = gather(given.profile, given.overrides)
    adapters: dict[str, dict[str, tuple[PlannedRun, Adapter]]] = {}
    for record, run in saved_runs(gathered):
        if run.method == "lora":
            adapter = recorded_adapter(record, run.config.runtime.outputs)
            adapters.setdefault(run.model, {})[record.run_id] = run, adapter
    cases, used = analyse(adapters, CYCLES)
    if not cases:
        raise UserError(
            f"no two LoRA runs of {given.profile} left their adapters here: train them with runtime.save_adapter=true"
        )
    folder = gathered.folder / "analysis"
    write_atomically(folder / SWAP, analysis_json({one: gathered.state.ok[one].adapter for one in used}, cases))
    for case in cases:
        print(f"{case['label']}: {case['failures']} of {case['trials']} cycles left other weights")
    cases, made_from = [], {}
    for of_model in adapters.values():
        classifying = [run_id for run_id, (run, _) in of_model.items() if run.task.labels]
        if len(of_model) > 1 and classifying:
            run, adapter = of_model[classifying[0]]
            others = [other for run_id, (_, other) in of_model.items() if run_id != classifying[0]]
            cases += subtraction(run, [adapter, *others], *dev_rows(run))
            made_from |= {run_id: gathered.state.ok[run_id].adapter for run_id in of_model}
    if cases:
        write_atomically(folder / SUBTRACTION, analysis_json(made_from, cases))


def dev_rows(run: PlannedRun) -> tuple[Encoded, int]:
    """The encoded dev rows of a run, and the padding token."""
    task, data = run.task, run.config.data
    rows = read(task, data.source, data.path, data.revision, data.train_rows).splits[task.validation_splits[0]]
    tokenizer = load_encoder(run.config.model, task, run.seed).tokenizer
    return encode(rows, task, tokenizer, data.max_length), tokenizer.pad_token_id
