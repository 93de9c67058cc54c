"""Several LoRA adapters on one base: a batch in which each example names its adapter, in one forward pass.

The examples are sorted by adapter. In a projection with LoRA, each example gathers its own A and B, which adds two
batched matrix products, whatever the number of adapters. A layer of the head is applied to one slice per adapter.

DeBERTa-v2 projects relative positions with the layers that also project tokens, once for the whole batch, because
without adapters all examples share the result. With several adapters it differs, so this model computes the examples of
one adapter at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lora.adapters.adapter import Adapter
from lora.adapters.fit import Fitted, fit
from lora.adapters.head import check_finite, head_modules, output_layer
from lora.adapters.merge import remove
from lora.errors import UserError
from lora.models.architectures import ARCHITECTURES
from lora.models.modules import architecture_of, lasting, replace


@dataclass
class Routing:
    """The adapter of each example in the current batch, which is sorted by adapter.

    Args:
        index: Number of each example's adapter, ascending.
        spans: (adapter, first example, example after the last) for each adapter in the batch.
    """

    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    spans: tuple[tuple[int, int, int], ...] = ()


class ManyLora(nn.Module):
    """h = W0 x + b + scale_i * B_i A_i x for an example of adapter i; W0 x + b if that adapter lacks this module.

    Args:
        replaced: The pretrained layer.
        factors: A (rank, d_in) and scale * B (d_out, rank) of each adapter, padded with zeros to the highest rank.
    """

    def __init__(self, replaced: nn.Linear, factors: Sequence[tuple[Tensor, Tensor] | None], routing: Routing):
        super().__init__()
        self.replaced, self.routing = replaced, routing
        rank = max(len(pair[0]) for pair in factors if pair is not None)
        like = {"dtype": replaced.weight.dtype, "device": replaced.weight.device}
        self.register_buffer("a", torch.zeros(len(factors), rank, replaced.in_features, **like))
        self.register_buffer("b", torch.zeros(len(factors), rank, replaced.out_features, **like))
        for i, pair in enumerate(factors):
            if pair is not None:
                self.a[i, : len(pair[0])] = pair[0]
                self.b[i, : len(pair[0])] = pair[1].T

    def forward(self, x: Float[Tensor, "rows tokens d_in"]) -> Float[Tensor, "rows tokens d_out"]:
        index = self.routing.index[: len(x)]  # DeBERTa's relative positions are one row, for one adapter
        low = torch.bmm(x, self.a[index].transpose(1, 2))
        out = self.replaced(x)
        return out.baddbmm_(low, self.b[index].to(out.dtype))  # autocast casts everything but this operation


class ManyHeads(nn.Module):
    """A linear layer or LayerNorm of the head with weights for each adapter.

    Missing outputs of a linear layer are -inf, which no argmax picks.

    Args:
        eps: The LayerNorm's; None for a linear layer.
        parameters: Weight and bias of each adapter.
    """

    def __init__(self, eps: float | None, parameters: Sequence[tuple[Tensor, Tensor | None]], routing: Routing):
        super().__init__()
        self.eps, self.routing = eps, routing
        for i, (weight, bias) in enumerate(parameters):
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", bias)
        self.outputs = max(len(weight) for weight, _ in parameters)

    def forward(self, x: Float[Tensor, "rows *more d_in"]) -> Float[Tensor, "rows *more d_out"]:
        outputs = []
        for i, start, stop in self.routing.spans:
            weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
            own = x[start:stop].to(weight.dtype)
            if self.eps is None:
                out = F.linear(own, weight, bias)
            else:
                out = F.layer_norm(own, weight.shape, weight, bias, self.eps)
            outputs.append(F.pad(out, (0, self.outputs - out.shape[-1]), value=-torch.inf))
        return torch.cat(outputs)


class AdapterSet(nn.Module):
    """A transformers model that serves several LoRA adapters at once, for inference only.

    Args:
        model: Model of an architecture in `ARCHITECTURES`, without a method, or with LoRA, merged or not, which is
            taken off. It is used, not copied, and afterwards serves this set only.
        adapters: Name in batches -> adapter in memory or its folder. Targets, ranks and numbers of labels may differ.
        allow_other_base: Accept adapters that were trained on other weights.
    Raises: UserError: If the architecture is another one, or an adapter is not LoRA, does not fit, or has another base.
        The model is then unchanged.
    """

    @lasting
    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter | str | Path], allow_other_base: bool = False):
        super().__init__()
        if not adapters:
            raise UserError("a set of adapters needs at least one adapter")
        fitted = []
        for name, adapter in adapters.items():
            try:
                fitted.append(fit(model, adapter, allow_other_base, lora_alone=True))
                scale_into_b(fitted[-1])
            except UserError as error:
                raise UserError(f"adapter {name}: {error}") from error
        if architecture_of(model) is None:
            raise UserError(
                f"batches of several adapters are for {', '.join(ARCHITECTURES)}, and this is a "
                f"{type(model).__name__}; swap serves one adapter at a time"
            )
        remove(model)
        output = output_layer(model)
        self.labels = {name: len(one.head[f"{output}.weight"]) for name, one in zip(adapters, fitted, strict=True)}
        self.routing, self.model = Routing(), model
        for name in dict.fromkeys(name for one in fitted for name in one.layers):
            pairs = [one.layers[name].factors() if name in one.layers else None for one in fitted]
            replace(model, name, ManyLora(model.get_submodule(name), pairs, self.routing))
        for name, part in head_modules(model).items():
            if isinstance(part, nn.Linear | nn.LayerNorm):
                heads = [(one.head[f"{name}.weight"], one.head.get(f"{name}.bias")) for one in fitted]
                replace(model, name, ManyHeads(getattr(part, "eps", None), heads, self.routing))
        self.one_at_a_time = any(getattr(module, "relative_attention", False) for module in model.modules())

    @torch.no_grad()
    def forward(self, names: Sequence[str], **inputs: Tensor) -> list[Float[Tensor, " labels"]]:
        """The logits of each example under its own adapter, in eval mode.

        Args:
            names: Name of each example's adapter.
            inputs: Outputs of the model's tokenizer.
        Returns: For each example, in order, as many logits as its adapter has labels.
        Raises: UserError: If a name is unknown, or the numbers of names and examples differ.
        """
        self.eval()
        unknown = sorted(set(names) - set(self.labels))
        if unknown:
            raise UserError(f"no adapter {', '.join(unknown)} is loaded; the adapters are {', '.join(self.labels)}")
        rows = len(inputs["input_ids"])
        if len(names) != rows:
            raise UserError(f"a batch of {rows} examples needs {rows} adapter names, one for each, got {len(names)}")
        numbers = {name: number for number, name in enumerate(self.labels)}
        order = sorted(range(rows), key=lambda row: numbers[names[row]])
        used = [numbers[names[row]] for row in order]
        spans = [(n, used.index(n), used.index(n) + used.count(n)) for n in dict.fromkeys(used)]
        logits = []
        for together in [[span] for span in spans] if self.one_at_a_time else [spans]:
            start, stop = together[0][1], together[-1][2]
            place = torch.tensor(order[start:stop], device=inputs["input_ids"].device)
            self.routing.index = torch.tensor(used[start:stop], device=place.device)
            self.routing.spans = tuple((n, first - start, last - start) for n, first, last in together)
            part = {key: t[place] if len(t) == rows else t for key, t in inputs.items()}
            logits += self.model(**part).logits
        return [logits[order.index(row)][: self.labels[names[row]]] for row in range(rows)]


def scale_into_b(fitted: Fitted) -> None:
    """Multiply each B by its scale. Raises: UserError: If a factor overflows in the model's dtype, or with DoRA."""
    if fitted.adapter.method.dora:
        raise UserError("DoRA also rescales the pretrained weights, which a batch shares; swap serves one at a time")
    for module, layer in fitted.layers.items():
        for name, part in layer.parts(module).items():
            part.lora_b.mul_(part.scale)
            for factor, tensor in (("lora_a", part.lora_a), ("lora_b, scaled,", part.lora_b)):
                check_finite(f"the adapter's {name}.{factor}", tensor.to(layer.weight.dtype))
