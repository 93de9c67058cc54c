"""An adapter: the tensors that a method trained, their meaning, and their origin."""

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lora.adapters.base import Base, carried_parameters, describe_base, kept_layers
from lora.config.run import ModelConfig
from lora.data.tasks import TARGET_SPAN
from lora.errors import UserError, listed
from lora.methods.bridge import method_tensors
from lora.methods.configs import LoraConfig, MethodConfig, PeftConfig
from lora.methods.lowrank import LOW_RANK, LoraLayer, factor_dtype, factors
from lora.models.architectures import named_by
from lora.models.modules import check_classifier, is_head, lasting

LOST = 1e-3  # of the range of scores between two numbers, at most; in half precision, twice what a range from 0 has


@dataclass(frozen=True)
class Score:
    """A metric on a dev split after an epoch, as a fraction; None if it is undefined."""

    metric: str
    split: str
    epoch: int
    value: float | None


@dataclass(frozen=True)
class Origin:
    """Where an adapter came from. What is unknown is None.

    Args:
        labels: Label words by class index; () for regression.
        columns: The text columns of a task of one's own, which is known nowhere else; None for the others.
        max_length: Number of tokens that inputs were cut to in training.
        encoder: Configuration that finds the base, without the path of a local folder.
        tokenizer: Identity of the tokenizer's files (`lora.config.encoder_files.tokenizer_name`).
        shift, factor: What turns an output of the head into a score (`lora.data.tasks.Task.target_scale`).
    """

    task: str | None = None
    labels: tuple[str, ...] | None = None
    score: Score | None = None
    run_id: str | None = None
    max_length: int | None = None
    encoder: ModelConfig | None = None
    columns: tuple[str, ...] | None = None
    tokenizer: str | None = None
    shift: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """A trained adapter, in memory.

    Args:
        method: The method's arguments, such as alpha and rank.
        weights: The tensors that the method trained in the encoder's body, by parameter name.
        head: The head's tensors by parameter name; for a missing one, the model keeps its own.
        base: The pretrained model that the adapter was trained on; None if its file does not say.
    Raises: UserError: If a tensor is not finite, or LoRA's tensors are not those that `method` states.
    """

    method: MethodConfig
    weights: dict[str, Tensor]
    head: dict[str, Tensor]
    base: Base | None = None
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self):
        for name, tensor in (self.weights | self.head).items():
            # a NaN or an infinity survives in the sum of magnitudes, which cannot overflow in float64
            if not math.isfinite(tensor.to(torch.float64).abs().sum()):
                raise UserError(f"adapter tensor {name} has values that are not finite: training diverged")
        if isinstance(self.method, LoraConfig):
            expected = lora_shapes(self.weights, self.method)
            shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
            if different := sorted({name for name, _ in expected.items() ^ shapes.items()}):
                raise UserError(
                    f"the adapter must have lora_a, lora_b and, with dora only, lora_m of the layers that its targets "
                    f"name, at the ranks that it states; missing, unknown or of another shape: {listed(different)}"
                )

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors of a LoRA: module name -> (A, B)."""
        names = [name.removesuffix(".lora_a") for name in self.weights if name.endswith(".lora_a")]
        return {name: (self.weights[f"{name}.lora_a"], self.weights[f"{name}.lora_b"]) for name in names}

    def scale(self, name: str) -> float:
        """The factor of B A in a module."""
        return self.method.scale_at(len(self.weights[f"{name}.lora_a"]))


def lora_shapes(weights: dict[str, Tensor], method: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape at the ranks of the method, for every module of the weights that a target names."""
    sizes = {name: tensor.numel() for name, tensor in weights.items()}
    modules = dict.fromkeys(name.rpartition(".")[0] for name in weights)
    shapes: dict[str, tuple[int, ...]] = {}
    for target in method.targets:
        rank = method.rank_of(target)
        for module in named_by(target, modules):
            inputs = sizes.get(f"{module}.lora_a", 0) // rank
            outputs = sizes.get(f"{module}.lora_b", 0) // rank
            shapes |= {f"{module}.lora_a": (rank, inputs), f"{module}.lora_b": (outputs, rank)}
            if method.dora:
                shapes[f"{module}.lora_m"] = (outputs,)
    return shapes


@lasting
def adapter_of(model: nn.Module, base: Base | None = None, origin: Origin | None = None) -> Adapter:
    """Copy a model's trained tensors, and a frozen A, to the CPU. The model may be merged.

    With an init that starts at factors of W0, the adapter is a LoRA of twice the rank, B A - B0 A0, on the same base.

    Args:
        base: Description of the model's base; None reads and hashes the base now.
    Raises: UserError: If the model has no method, is compiled or wrapped, or a value is not finite.
    """
    check_classifier(model)
    applied = getattr(model, "applied", None)
    if applied is None:
        raise UserError(
            f"this {type(model).__name__} has no method: add one with lora.apply, or with its weights by "
            f"lora.load_adapter"
        )
    parameters = carried_parameters(model)
    names = dict.fromkeys([*applied.trained, *filter(LOW_RANK.fullmatch, parameters)])
    tensors = {name: parameters[name].detach().cpu().clone() for name in names}
    method = applied.method
    if isinstance(method, LoraConfig) and method.starts_in_base:
        method = method.as_saved()
        for module, layer in (dict(model.named_modules()) | kept_layers(model)).items():
            for name, part in layer.parts(module).items() if isinstance(layer, LoraLayer) else ():
                a, b = factors(part)
                tensors |= {f"{name}.lora_a": a.detach().cpu(), f"{name}.lora_b": b.detach().cpu()}
    head = {name: tensors.pop(name) for name in list(tensors) if is_head(model, name) and not LOW_RANK.fullmatch(name)}
    if isinstance(method, PeftConfig):
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in method_tensors(model).items()}
    return Adapter(method, tensors, head, base or describe_base(model), origin or Origin())


def in_scores(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """The adapter with outputs in the units of the task's scores: its head's last layer absorbs shift and factor.

    Args:
        dtype: The outputs'.
    Raises: UserError: If that dtype has too few numbers in the range of the scores, or that layer has no bias.
    """
    shift, factor = adapter.origin.shift, adapter.origin.factor
    if (shift, factor) == (0, 1):
        return adapter
    task = adapter.origin.task
    low = shift
    high = shift + TARGET_SPAN * factor
    numbers, furthest = torch.finfo(dtype), max(-low, high)
    if furthest > min(numbers.max, max(2, LOST / numbers.eps) * (high - low)):
        raise UserError(
            f"{dtype} has too few numbers in the range of {task}'s scores, {low:.15g} to {high:.15g}: use python -m "
            f"lora predict, or load_adapter or swap on a model in a wider dtype"
        )
    last = {name: tensor for name, tensor in adapter.head.items() if len(tensor) == 1}  # the one layer with one output
    if {tensor.dim() for tensor in last.values()} != {1, 2}:
        raise UserError(f"this adapter of {task} is for predict: its head has no bias for the scores")
    wide = {name: tensor.to(factor_dtype(dtype)) for name, tensor in last.items()}
    scaled = {name: tensor * factor + (shift if tensor.dim() == 1 else 0.0) for name, tensor in wide.items()}
    origin = dataclasses.replace(adapter.origin, shift=0.0, factor=1.0)
    return dataclasses.replace(adapter, head=adapter.head | scaled, origin=origin)
