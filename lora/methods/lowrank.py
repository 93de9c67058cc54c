"""LoRA: a frozen linear layer plus a trained low-rank update."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lora.errors import UserError
from lora.methods.configs import LoraConfig
from lora.models.modules import find_target, replace, train_only
from lora.rng import generator


class LoraLinear(nn.Module):
    """h = W0 x + b + scale * B A x. It replaces a linear layer and keeps that layer's parameter names.

    Source: Hu et al. 2021, section 4.1.

    Args:
        linear: Layer to adapt, or an already adapted one. Its weight and bias are shared, not copied.
        rank: r, at most the smaller dimension of W0.
        scale: Factor of B A, alpha / r.
        dropout: Dropout on the input of A.
    """

    def __init__(self, linear: "nn.Linear | LoraLinear", rank: int, scale: float, dropout: float):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.weight, self.bias = linear.weight, linear.bias
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        update = F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * update

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scale={self.scale:g}"


@torch.no_grad()
def init_a(lora_a: Float[Tensor, "rank d_in"], config: LoraConfig, seed: int, name: str) -> None:
    """Draw A from a generator named after its module, on the CPU in float32: the same for every device and dtype."""
    draw, source = torch.empty(lora_a.shape), generator(seed, "lora_a", name)
    if config.init_a == "gaussian":
        draw.normal_(0.0, config.init_std, generator=source)
    else:  # the bound of kaiming_uniform_(a=sqrt(5))
        bound = 1 / math.sqrt(lora_a.shape[1])
        draw.uniform_(-bound, bound, generator=source)
    lora_a.copy_(draw)


def apply(model: nn.Module, config: LoraConfig, seed: int) -> tuple[str, ...]:
    """Put LoRA on every module that the targets name. The logits do not change, since B is zero.

    Returns: The names of the trainable parameters: every A and B, and the head's.
    Raises: UserError: If a target is missing, named twice, or smaller than its rank. The model is then unchanged.
    """
    planned: dict[str, int] = {}
    for target in config.targets:
        rank = config.rank_of(target)
        for name in find_target(model, target):
            linear = model.get_submodule(name)
            limit = min(linear.in_features, linear.out_features)
            if rank > limit:
                raise UserError(
                    f"rank {rank} is above the smaller dimension of {name} "
                    f"({linear.out_features} x {linear.in_features}): it must be in 1..{limit}"
                )
            if name in planned:
                raise UserError(f"module {name} is named by two of {', '.join(config.targets)}: name it once")
            planned[name] = rank
    for name, rank in planned.items():
        module = LoraLinear(model.get_submodule(name), rank, config.scale_at(rank), config.dropout)
        if module.lora_a.device.type != "meta":
            init_a(module.lora_a, config, seed, name)
        replace(model, name, module)
    return train_only(model, [f"{name}.{part}" for name in planned for part in ("lora_a", "lora_b")])
