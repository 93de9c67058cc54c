"""Models of tests/helpers/tiny.py with adapters whose tensors are random, as after training."""

import copy

import tiny
import torch
from torch.nn import functional as F

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.methods import apply
from lora.methods.configs import LoraConfig, PfeifferConfig
from lora.models.modules import checksum

METHODS = tiny.METHODS | {"pfeiffer": PfeifferConfig(bottleneck=6, layer_norms="trained")}
# What keeps a model's logits, whatever is done with its adapter: name -> an architecture and the configuration on it.
PATTERNS = {"albert": ("*.query", "*.ffn"), "deberta": ("*.in_proj", "*.pos_proj"), "bart": ("*.v_proj", "*.fc2")}
LORA = {
    architecture: (architecture, LoraConfig(targets=PATTERNS.get(architecture, tuple("qkvoif")), rank=3, alpha=7))
    for architecture in (*tiny.ARCHITECTURES, *tiny.OTHERS)
}
VARIANTS = {
    "two matrices": LoraConfig(targets=("k", "v"), rank=3, alpha=7),
    "ranks": LoraConfig(targets=("q", "v", "o"), rank=3, ranks={"o": 5}, alpha=6),
    "ranks, alpha in ratio": LoraConfig(targets=("q", "v"), rank=2, ranks={"v": 4}, alpha=3, alpha_at_rank=2),
    "rslora": LoraConfig(targets=("q", "v"), rank=4, ranks={"q": 2}, alpha=3, scaling="rslora"),
    "dropout": LoraConfig(targets=("k",), rank=4, alpha=7.5, dropout=0.1),
}
LORA |= {f"roberta, {name}": ("roberta", config) for name, config in VARIANTS.items()}
CASES = LORA | {
    f"{architecture}, {name}": (architecture, config)
    for architecture in ("bert", "deberta-v2")
    for name, config in METHODS.items()
    if name != "lora"
}
# Five tasks: their targets, ranks, scales and numbers of labels differ.
FIVE = {
    "mnli": (LoraConfig(targets=("q", "v"), rank=4, alpha=8), 3),
    "rte": (LoraConfig(targets=("q", "v"), rank=4, alpha=16), 2),
    "stsb": (LoraConfig(targets=("q", "k", "v", "o"), rank=2, alpha=6), 1),
    "cola": (LoraConfig(targets=("k", "f"), rank=8, alpha=4, scaling="rslora"), 2),
    "mrpc": (LoraConfig(targets=("v", "o"), rank=3, ranks={"o": 5}, alpha=9, alpha_at_rank=3), 2),
}


def with_method(architecture: str, config, seed: int = 1, outputs: int = 2, **extra) -> torch.nn.Module:
    """The tiny base of seed 0 with a method applied and every trainable parameter moved by random amounts."""
    model = tiny.model(architecture, outputs, **extra)
    model.base_model.load_state_dict(tiny.model(architecture, **extra).base_model.state_dict())
    shake(model, apply(model, config, seed), 0.3, seed)
    return model


def shake(model, names, size: float, seed: int) -> None:
    """Move parameters by random amounts."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            parameter += size * torch.randn(parameter.shape, generator=source)


def train_steps(model, architecture: str, steps: int) -> None:
    """Take AdamW steps on fixed labels without dropout."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batch = tiny.inputs(architecture)
    labels = torch.arange(len(batch["input_ids"])) % 2
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()


def bytes_of(adapter: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (adapter.weights | adapter.head).values())


def state(model) -> tuple[str, list[type], list[bool]]:
    """What a refused call must leave: all values, the kinds of modules, and what is trained."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return checksum(model.state_dict().items()), [type(module) for module in model.modules()], flags


def five(architecture: str) -> dict[str, Adapter]:
    return {
        task: adapter_of(with_method(architecture, config, seed, outputs), origin=Origin(task=task))
        for seed, (task, (config, outputs)) in enumerate(FIVE.items())
    }


def logits(model, architecture: str, rows: int = 5) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(architecture, rows)).logits


def assert_same_logits(one, other, architecture: str) -> None:
    """Compare two models in float64: in float32, the last digits are a property of the CPU."""
    found, expected = (logits(copy.deepcopy(model).double(), architecture) for model in (one, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
