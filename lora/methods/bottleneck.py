"""Bottleneck adapters: Houlsby, Pfeiffer and AdapterDrop."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lora.errors import UserError
from lora.methods.configs import BottleneckConfig, HoulsbyConfig
from lora.models.architectures import ARCHITECTURES
from lora.models.modules import architecture_of, encoder_layers, is_layer_norm, train_only
from lora.rng import generator

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}


class Bottleneck(nn.Module):
    """up(activation(down(x))). The hooks that use it add the skip connection.

    Source: Houlsby et al. 2019, section 2.1: 2dm + m + d parameters.
    """

    def __init__(self, dim: int, config: BottleneckConfig, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.down = nn.Linear(dim, config.bottleneck, device=device, dtype=dtype)
        self.up = nn.Linear(config.bottleneck, dim, device=device, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return self.up(self.activation(self.down(x)))


def add_adapter(module: nn.Module, inputs: tuple[Tensor, ...], output: Float[Tensor, "*rows d"]) -> Tensor:
    """The forward hook of a module that a Houlsby adapter follows, such as BERT's dropout before a residual."""
    return output + module.adapter(output)


def norm_again(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], once: Float[Tensor, "*rows d"]) -> Tensor:
    """The forward hook of a layer's last LayerNorm, which is applied twice with a Pfeiffer adapter in between.

    With the FFN's output x and the residual i: y = LN(x + i), z = adapter(y) + x, out = LN(z + i). Since z + i equals
    adapter(y) + (x + i), the LayerNorm's input s = x + i suffices: out = LN(s + adapter(LN(s))).

    Source: released `modeling_roberta.py`; Pfeiffer et al. 2021.
    """
    again = inputs[0] + norm.adapter(once)
    return F.layer_norm(again, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@torch.no_grad()
def init_bottleneck(adapter: Bottleneck, config: BottleneckConfig, seed: int, name: str) -> None:
    """Draw the weights from N(0, init_std^2), each with a generator named after it, and set the biases to zero.

    With `init_truncated`, the distribution is truncated at 2 std.
    """
    for part in ("down", "up"):
        linear = getattr(adapter, part)
        source = generator(seed, "adapter", name, part)
        draw, std = torch.empty(linear.weight.shape), config.init_std
        if config.init_truncated:
            nn.init.trunc_normal_(draw, 0.0, std, -2 * std, 2 * std, generator=source)
        else:
            draw.normal_(0.0, std, generator=source)
        linear.weight.copy_(draw)
        linear.bias.zero_()


def apply(model: nn.Module, config: BottleneckConfig, seed: int) -> tuple[str, ...]:
    """Insert the method's bottleneck adapters. With a zero up-projection, they would leave the logits unchanged.

    Returns: The names of the trainable parameters: the adapters', the head's and, if trained, the LayerNorms'.
    Raises: UserError: As in `places`.
    """
    names, body = places(model, config), next(model.base_model.parameters())
    for name in names:
        adapter = Bottleneck(model.config.hidden_size, config, body.device, body.dtype)
        if body.device.type != "meta":
            init_bottleneck(adapter, config, seed, name)
        module = model.get_submodule(name)
        module.adapter = adapter.train(module.training)  # a new module would be in training mode
        module.register_forward_hook(add_adapter if isinstance(config, HoulsbyConfig) else norm_again)
    trained = [name for name, _ in model.named_parameters() if ".adapter." in name]
    if config.layer_norms == "trained":
        layers = tuple(f"{layer}." for layer in encoder_layers(model, architecture_of(model)))
        norms = [name for name, module in model.named_modules() if is_layer_norm(module) and name.startswith(layers)]
        trained += [f"{name}.{part}" for name in norms for part in ("weight", "bias")]
    return train_only(model, trained)


def places(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Names of the modules to which bottleneck adapters are added.

    Raises: UserError: If the architecture is unknown, has no such places, or AdapterDrop leaves no layer an adapter.
    """
    known = architecture_of(model)
    if known is None:
        titles = ", ".join(architecture.title for architecture in ARCHITECTURES.values())
        raise UserError(f"adapters have no known place in {type(model).__name__}; they have one in {titles}")
    layers = encoder_layers(model, known)
    if isinstance(config, HoulsbyConfig):
        return [f"{layer}.{end}" for end in (known.attention_end, known.ffn_end) for layer in layers]
    if known.ffn_norm is None:
        raise UserError(
            f"Pfeiffer adapters have no place in {known.title}, whose layers have no LayerNorm after the FFN's "
            f"residual; Houlsby adapters have places"
        )
    if config.drop_layers >= len(layers):
        raise UserError(
            f"method.drop_layers must be below the encoder's depth ({len(layers)} layers), got {config.drop_layers}"
        )
    return [f"{layer}.{known.ffn_norm}" for layer in layers[config.drop_layers :]]
