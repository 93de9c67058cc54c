"""LoRA: a frozen linear layer plus a trained low-rank update of all its outputs, or of slices of them."""

import functools
import math
import re
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lora.errors import UserError
from lora.methods.configs import LoraConfig
from lora.models.architectures import in_order, module_of, slice_of
from lora.models.modules import find_target, replace, train_only, weight_of
from lora.rng import generator

LOW_RANK = re.compile(r"(.+)\.lora_([abm])")  # names of its parameters, trained or frozen


class LoraLinear(nn.Module):
    """h = W0 x + b + scale * B A x. It replaces a linear layer and keeps that layer's parameter names.

    Source: Hu et al. 2021, section 4.1.

    Args:
        linear: The layer to adapt, adapted already or not. Its weight and bias are shared, not copied.
        rank: r, at most the smaller dimension of W0.
        scale: Factor of B A, alpha / r.
        dropout: Dropout on the input of A.
    """

    rows = slice(None)

    def __init__(self, linear: "nn.Linear | LoraLayer", rank: int, scale: float, dropout: float):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.weight, self.bias = linear.weight, linear.bias
        add_factors(self, linear.weight, linear.out_features)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        added = update(self, self.weight, F.dropout(x, self.dropout, self.training))
        h = F.linear(x, self.weight, self.bias)
        return (h + added).to(h.dtype)

    def parts(self, name: str) -> "dict[str, LoraLinear | LoraSlice]":
        """Name of the adapted layer -> the module with A and B, if this layer is called `name`."""
        return {name: self}

    def factors(self) -> tuple[Tensor, Tensor]:
        return factors(self)


class LoraSlice(nn.Module):
    """A and B for one slice of a fused layer's outputs.

    Args:
        rows: The slice's rows of W0.
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"], rows: slice, rank: int, scale: float):
        super().__init__()
        self.rows, self.rank, self.scale = rows, rank, scale
        add_factors(self, weight, rows.stop - rows.start)


class LoraSlices(nn.Module):
    """h = W0 x + b, plus scale * B A x in each slice of h that has LoRA: Wq, Wk or Wv in one fused matrix.

    It replaces the fused layer and keeps its parameter names. Each slice has its own A, B and scale, in a child named
    after its target. Dropout on the input of A is drawn once for all slices.
    """

    def __init__(self, linear: "nn.Linear | LoraLayer", dropout: float):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.dropout = linear.weight, linear.bias, dropout

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        h, kept = F.linear(x, self.weight, self.bias), F.dropout(x, self.dropout, self.training)
        for part in self.children():
            h[..., part.rows] += update(part, self.weight, kept)
        return h

    def parts(self, name: str) -> dict[str, LoraSlice]:
        """Name of the slice -> the module with A and B, if this layer is called `name`."""
        return {f"{name}.{target}": part for target, part in self.named_children()}

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole layer, if all slices have the same scale."""
        return in_blocks([(part.rows, *factors(part)) for part in self.children()], self.out_features)


LoraLayer = LoraLinear | LoraSlices


def add_factors(part: LoraLinear | LoraSlice, weight: Float[Tensor, "_ d_in"], outputs: int) -> None:
    """Give a part A (rank, d_in), uninitialised, and B (outputs, rank), zero, on W0's device."""
    like = {"device": weight.device, "dtype": factor_dtype(weight.dtype)}
    part.lora_a = nn.Parameter(torch.empty(part.rank, weight.shape[1], **like))
    part.lora_b = nn.Parameter(torch.zeros(outputs, part.rank, **like))
    part.register_parameter("lora_m", None)  # DoRA's norms
    part.register_buffer("start_a", None)  # A0 and -B0, if they are not zero
    part.register_buffer("start_b", None)


def factors(part: LoraLinear | LoraSlice) -> tuple[Tensor, Tensor]:
    """A and B whose product is what was added to W0: with A0 and B0, of twice the rank."""
    if part.start_a is None:
        return part.lora_a, part.lora_b
    return torch.cat([part.lora_a, part.start_a]), torch.cat([part.lora_b, part.start_b], dim=1)


def update(
    part: LoraLinear | LoraSlice, weight: Float[Tensor, "_ d_in"], x: Float[Tensor, "*rows d_in"]
) -> Float[Tensor, "*rows d_out"]:
    """What a part adds to W0 x + b: scale * B A x. With DoRA, also what turns W0 x into its share of m V / ||V||.

    Source: PEFT's `DoraLinearLayer`, whose dropout also precedes the added W0 x.

    Args:
        weight: The whole layer's.
        x: After dropout.
    """
    if weight.dtype != part.lora_a.dtype:  # with one dtype, autocast alone decides
        x = x.to(part.lora_a.dtype)
    a, b = factors(part)
    low_rank = part.scale * F.linear(F.linear(x, a), b)
    if part.lora_m is None:
        return low_rank
    gain = part.lora_m / row_norms(part, weight)
    return gain * low_rank + (gain - 1) * F.linear(x, weight[part.rows].to(x.dtype))


@torch.no_grad()  # as in section 4.3 of Liu et al. 2024: the norm counts as a constant
def row_norms(part: LoraLinear | LoraSlice, weight: Float[Tensor, "_ d_in"]) -> Float[Tensor, " d_out"]:
    """The norm of each row of V = W0 + scale * B A."""
    a, b = factors(part)
    with torch.autocast(weight.device.type, enabled=False):
        direction = weight[part.rows].to(a.dtype) + part.scale * (b @ a)
        return torch.linalg.vector_norm(direction, dim=1)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of A and B: at least float32, as in PEFT. In half precision, most updates of a step round to zero."""
    return torch.promote_types(dtype, torch.float32)


def in_blocks(
    parts: Iterable[tuple[slice, Float[Tensor, "_ d_in"], Float[Tensor, "_ _"]]], outputs: int
) -> tuple[Float[Tensor, "sum d_in"], Float[Tensor, "d_out sum"]]:
    """A and B of a whole layer from those of its slices: the A's stacked, the B's as blocks, zero elsewhere.

    Args:
        parts: Rows of each slice, its A and its B.
        outputs: d_out.
    """
    parts = list(parts)
    a = torch.cat([a for _, a, _ in parts])
    b = torch.cat([b.flatten() for _, _, b in parts]).new_zeros(outputs, len(a))
    start = 0
    for rows, _, block in parts:
        b[rows, start : start + block.shape[1]] = block
        start += block.shape[1]
    return a, b


def adapt(
    layers: dict[str, LoraLayer], name: str, linear: nn.Linear | LoraLayer, rank: int, config: LoraConfig
) -> LoraLinear | LoraSlice:
    """Add LoRA for a linear layer, or for a slice of one, to the layers that will replace a model's.

    Args:
        layers: Name of a module -> its new layer.
        linear: The layer `name`, or the layer that contains the slice `name`.
    Returns: The module with A and B.
    Raises: UserError: If LoRA is named both for the whole layer and for a slice of it.
    """
    module, part = module_of(name), slice_of(name)
    if module in layers and (part is None or isinstance(layers[module], LoraLinear)):
        raise UserError(f"{module} would have LoRA as a whole and on a slice of it: name one of the two")
    adapted: LoraLinear | LoraSlice
    if part is None:
        adapted = layers[module] = LoraLinear(linear, rank, config.scale_at(rank), config.dropout)
    else:
        adapted = LoraSlice(linear.weight, part.rows(linear.out_features), rank, config.scale_at(rank))
        layers.setdefault(module, LoraSlices(linear, config.dropout)).add_module(name.rpartition(".")[2], adapted)
    adapted.lora_a.requires_grad_(not config.frozen_a)
    if config.dora:
        adapted.lora_m = nn.Parameter(torch.empty_like(adapted.lora_b[:, 0]))
    return adapted


@torch.no_grad()
def init_a(lora_a: Float[Tensor, "rank d_in"], config: LoraConfig, seed: int, name: str) -> None:
    """Draw A from a generator named after its module, on the CPU in float32."""
    draw, source = torch.empty(lora_a.shape), generator(seed, "lora_a", name)
    if config.init_a == "gaussian":
        draw.normal_(0.0, config.init_std, generator=source)
    else:  # the bound of kaiming_uniform_(a=sqrt(5))
        bound = 1 / math.sqrt(lora_a.shape[1])
        draw.uniform_(-bound, bound, generator=source)
    lora_a.copy_(draw)


@torch.no_grad()
def initialize(
    part: LoraLinear | LoraSlice, weight: Float[Tensor, "_ d_in"], config: LoraConfig, seed: int, name: str
) -> None:
    """Set A, and what else does not start at zero. What is random is drawn from a generator named after the module.

    Source: PEFT's `orthogonal_init`, `pissa_init` and `olora_init`, which subtract scale * B0 A0 from W0.

    Args:
        weight: The whole layer's.
    """
    rank, shape = part.rank, (len(part.lora_b), part.lora_a.shape[1])
    if config.init_a == "orthogonal":
        draw = functools.partial(torch.randn, generator=generator(seed, "lora_a", name))
        basis = torch.linalg.qr(draw(rank, rank))[0]
        part.lora_a.copy_(basis[0::2].T @ draw(rank // 2, shape[1]) / 10)
        part.lora_b.copy_(draw(shape[0], rank // 2) @ basis[1::2] / 10)
    elif config.starts_in_base:
        pretrained = weight[part.rows].to("cpu", part.lora_a.dtype)
        if config.init_a == "pissa":
            left, values, right = torch.linalg.svd(pretrained, full_matrices=False)
            root = (values[:rank] / part.scale).sqrt()
            a, b = root[:, None] * right[:rank], left[:, :rank] * root
        else:
            left, right = torch.linalg.qr(pretrained)
            a, b = right[:rank], left[:, :rank]
        part.lora_a.copy_(a)
        part.lora_b.copy_(b)
        part.start_a = part.lora_a.detach().clone()
        part.start_b = -part.lora_b.detach()
    else:
        init_a(part.lora_a, config, seed, name)
    if part.lora_m is not None:
        part.lora_m.copy_(row_norms(part, weight))


def apply(model: nn.Module, config: LoraConfig, seed: int) -> tuple[str, ...]:
    """Apply LoRA to every module that the targets name. The logits do not change (with B not zero: but for rounding).

    Returns: The names of the trainable parameters: every A, unless it is frozen, every B, and the head's.
    Raises: UserError: If a target is missing, named twice, or smaller than its rank. The model is then unchanged.
    """
    planned: dict[str, int] = {}
    for target in config.targets:
        rank = config.rank_of(target)
        for name in find_target(model, target):
            if name in planned:
                raise UserError(f"module {name} is named by two of {', '.join(config.targets)}: name it once")
            if rank > (limit := min(weight_of(model, name).shape)):
                raise UserError(f"rank {rank} is above the smaller dimension of {name}: it must be in 1..{limit}")
            planned[name] = rank
    layers: dict[str, LoraLayer] = {}
    for name in in_order(planned):
        linear, rank = model.get_submodule(module_of(name)), planned[name]
        part = adapt(layers, name, linear, rank, config)
        if part.lora_a.device.type != "meta":
            initialize(part, linear.weight, config, seed, name)
    for name, layer in layers.items():
        replace(model, name, layer)
    return train_only(model, trained_in(layers))


def trained_in(layers: Mapping[str, LoraLayer]) -> list[str]:
    """Full names of the parameters that LoRA trains in these layers."""
    return [
        f"{name}.{part}"
        for name, layer in layers.items()
        for part, parameter in layer.named_parameters()
        if parameter.requires_grad and part.rpartition(".")[2].startswith("lora_")
    ]
