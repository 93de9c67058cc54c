"""`python -m lora bench adapters`: swaps, their drift, mixed batches and file sizes, compared with PEFT.

The model has RoBERTa-base's size and random weights, with LoRA r=8 on q and v: 24 adapted matrices of 768 x 768.
Repetitions are interleaved, so that a slowdown affects every side. Writes results/bench/<device>/adapters.json and .md.
"""

import argparse
import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import peft
import torch
from torch import Tensor, nn

from lora.adapters.adapter import Adapter, Origin
from lora.adapters.base import describe_base
from lora.adapters.batched import AdapterSet
from lora.adapters.folder import WEIGHTS, pack
from lora.adapters.load import load_adapter
from lora.adapters.merge import swap, unmerge
from lora.cost import machine
from lora.cost.adapters_page import document
from lora.cost.parameters import model_of_size
from lora.cost.results import add_place, at_least_one, folder_of, origin, publish
from lora.cost.subjects import random_batch
from lora.cost.timing import median_of, ratio_of, take_turns
from lora.methods.configs import LoraConfig
from lora.models.modules import find_target
from lora.records.machine import cores
from lora.rng import generator, shuffled
from lora.training.fused.encoder import DTYPES

LORA = LoraConfig(targets=("q", "v"), rank=8, alpha=16)
ADAPTERS, ROWS, TOKENS = 8, 32, 64
SWAPPED = 5  # number of adapters that the cycles of `drift` choose among


def roberta_base(dtype: torch.dtype) -> nn.Module:
    """A model of roberta-base's size, with weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_of_size("roberta_base", 2, "sdpa").to(dtype).eval()


def random_adapters(model: nn.Module, count: int) -> list[Adapter]:
    """Adapters of the base: A as it is drawn, B of the size that training gives it, a separate head."""
    base = describe_base(model, "roberta-base of random weights")
    adapters = []
    for number in range(count):
        weights = {}
        for name in [name for target in LORA.targets for name in find_target(model, target)]:
            linear, source = model.get_submodule(name), generator(number, "benchmark", name)
            bound = linear.in_features**-0.5
            weights[f"{name}.lora_a"] = torch.empty(LORA.rank, linear.in_features).uniform_(
                -bound, bound, generator=source
            )
            weights[f"{name}.lora_b"] = torch.empty(linear.out_features, LORA.rank).normal_(0, 0.02, generator=source)
        source = generator(number, "benchmark", "head")
        head = {
            name: torch.empty(parameter.shape).normal_(0, 0.02, generator=source)
            for name, parameter in model.classifier.named_parameters(prefix="classifier")
        }
        adapters.append(Adapter(LORA, weights, head, base, Origin()))
    return adapters


def in_peft(model: nn.Module, adapters: Sequence[Adapter], prefix: str = "") -> nn.Module:
    """PEFT on a copy of the model, with the same adapters, named `0`, `1`, ..."""
    settings = peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["query", "value"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), settings, adapter_name="0")
    for number in range(1, len(adapters)):
        wrapped.add_adapter(str(number), settings)
    with torch.no_grad():
        for number, adapter in enumerate(adapters):
            for name, (a, b) in adapter.pairs().items():
                layer = wrapped.base_model.model.get_submodule(name.removeprefix(prefix))
                layer.lora_A[str(number)].weight.copy_(a)
                layer.lora_B[str(number)].weight.copy_(b)
    return wrapped.eval()


def time_swaps(dtype: torch.dtype, repetitions: int) -> dict[str, Any]:
    """Times of replacing a merged adapter by another: ours (with the head), and PEFT's unmerge and merge (without)."""
    model = roberta_base(dtype)
    adapters = random_adapters(model, 2)
    theirs = in_peft(model, adapters)
    swap(model, adapters[0])
    theirs.merge_adapter(["0"])
    turn = {"ours": 0, "PEFT": 0}

    def ours() -> None:
        turn["ours"] = 1 - turn["ours"]
        swap(model, adapters[turn["ours"]], allow_other_base=True)  # PEFT does not check the base either

    def pefts() -> None:
        turn["PEFT"] = 1 - turn["PEFT"]
        theirs.unmerge_adapter()
        theirs.merge_adapter([str(turn["PEFT"])])

    actions = {"ours": ours, "PEFT": pefts}
    seconds = take_turns(actions, repetitions, warmup=2)  # both directions
    return {
        "ours_ms": median_of([1000 * value for value in seconds["ours"]]),
        "peft_ms": median_of([1000 * value for value in seconds["PEFT"]]),
        "ours_to_peft": ratio_of(seconds["ours"], seconds["PEFT"]),
    }


def drift(dtype: torch.dtype, cycles: Sequence[int]) -> dict[str, Any]:
    """Changes of the base after each of these numbers of cycles, which swap five adapters in one random order."""
    model = roberta_base(dtype)
    adapters = random_adapters(model, SWAPPED)
    theirs = in_peft(model, adapters)
    names = list(adapters[0].pairs())
    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    order, found = random.Random(0).choices(range(SWAPPED), k=max(cycles)), {}
    for cycle, number in enumerate(order, start=1):
        swap(model, adapters[number], allow_other_base=True)
        theirs.merge_adapter([str(number)])
        theirs.unmerge_adapter()
        if cycle in cycles:
            unmerge(model)
            pefts = {name: theirs.base_model.model.get_submodule(name).base_layer.weight for name in names}
            ours = {name: model.get_submodule(name).weight for name in names}
            found[str(cycle)] = {"ours": changes(before, ours), "peft": changes(before, pefts)}
    return found


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    differences = [(after[name].detach().double() - before[name].double()).abs() for name in before]
    changed = sum(int((difference > 0).sum()) for difference in differences)
    return {
        "changed_share": changed / sum(difference.numel() for difference in differences),
        "max_abs": max(float(difference.max()) for difference in differences),
    }


@torch.no_grad()
def time_batches(repetitions: int) -> dict[str, Any]:
    """Times of a forward pass over one batch: base, one adapter merged and unmerged, eight mixed; and PEFT's."""
    base = roberta_base(torch.float32)
    adapters = random_adapters(base, ADAPTERS)
    merged, unmerged, peft_body = copy.deepcopy(base), copy.deepcopy(base), in_peft(base.roberta, adapters, "roberta.")
    swap(merged, adapters[0])
    load_adapter(unmerged, adapters[0])
    served = AdapterSet(copy.deepcopy(base), {str(number): adapter for number, adapter in enumerate(adapters)})
    inputs = random_batch(base, f"{ROWS}x{TOKENS}")
    del inputs["labels"]
    names = [str(row % ADAPTERS) for row in shuffled(ROWS, "benchmark", "rows").tolist()]
    worst = largest_difference(served(names, **inputs), names, base, adapters, inputs)
    actions = {
        "base": lambda: base(**inputs),
        "merged": lambda: merged(**inputs),
        "unmerged": lambda: unmerged(**inputs),
        "mixed": lambda: served(names, **inputs),
        "PEFT, one adapter, no head": lambda: peft_body(**inputs),
        "PEFT, mixed, no head": lambda: peft_body(**inputs, adapter_names=names),
    }
    seconds = take_turns(actions, repetitions)
    return {
        "ms": {name: median_of([1000 * value for value in values]) for name, values in seconds.items()},
        "merged_to_base": ratio_of(seconds["merged"], seconds["base"]),
        "unmerged_to_base": ratio_of(seconds["unmerged"], seconds["base"]),
        "mixed_to_unmerged": ratio_of(seconds["mixed"], seconds["unmerged"]),
        "peft_mixed_to_one": ratio_of(seconds["PEFT, mixed, no head"], seconds["PEFT, one adapter, no head"]),
        "mixed_difference": worst,
        "peft_with_head": peft_with_head(base, adapters, names, inputs),
    }


def largest_difference(
    found: Sequence[Tensor],
    names: Sequence[str],
    base: nn.Module,
    adapters: Sequence[Adapter],
    inputs: dict[str, Tensor],
) -> float:
    """The largest difference of a mixed batch's logits from those of each adapter alone, unmerged."""
    worst = 0.0
    for number in sorted({int(name) for name in names}):
        alone = copy.deepcopy(base)
        load_adapter(alone, adapters[number])
        logits = alone(**inputs).logits
        rows = [row for row, name in enumerate(names) if int(name) == number]
        worst = max(worst, *(float((found[row] - logits[row]).abs().max()) for row in rows))
    return worst


def peft_with_head(
    base: nn.Module, adapters: Sequence[Adapter], names: Sequence[str], inputs: dict[str, Tensor]
) -> str:
    """PEFT's mixed batch with a separate head per adapter (`modules_to_save`): `works`, or its error."""
    settings = peft.LoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(copy.deepcopy(base), settings, adapter_name="0").eval()
    for number in range(1, len(adapters)):
        wrapped.add_adapter(str(number), settings)
    try:
        wrapped(**inputs, adapter_names=list(names))
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "works"


def sizes() -> dict[str, int]:
    """Bytes of one adapter's tensor file, without and with its head."""
    adapter = random_adapters(roberta_base(torch.float32), 1)[0]
    headless = Adapter(adapter.method, adapter.weights, {}, adapter.base)
    return {"without_head": len(pack(headless)[WEIGHTS]), "with_head": len(pack(adapter)[WEIGHTS])}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    content = origin(machine.cpu_device()) | {
        "load": asdict(machine.sample_load()),
        "threads": torch.get_num_threads(),
        "settings": {
            "model": "RoBERTa-base, random weights",
            "lora": "q,v r=8",
            "rows": ROWS,
            "tokens": TOKENS,
            "adapters": ADAPTERS,
            "swapped": SWAPPED,
        },
    }
    content["swap"] = {name: time_swaps(dtype, arguments.swaps) for name, dtype in DTYPES.items()}
    content["drift"] = {name: drift(dtype, arguments.cycles) for name, dtype in DTYPES.items()}
    content["batch"] = time_batches(arguments.passes)
    content["bytes"] = sizes()
    return content


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swaps", type=int, default=60, help="timed swaps of each side (default 60)")
    parser.add_argument("--passes", type=int, default=15, help="timed passes of each kind (default 15)")
    parser.add_argument("--cycles", type=int, nargs="+", default=[100, 1000], help="when drift is read (100 1000)")
    parser.add_argument("--threads", type=int, default=cores(), help="of torch (default: all cores)")
    add_place(parser)


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call."""
    at_least_one(chosen, "swaps", "passes", "cycles", "threads")
    torch.set_num_threads(chosen.threads)
    folder = folder_of("bench", chosen)
    content = measure(chosen)
    publish(folder / content["device"], "adapters", content, document(content))
    print(document(content))
