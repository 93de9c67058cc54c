"""Several LoRA adapters on one base: a batch in which each example names its adapter, in one forward pass.

The examples are sorted by adapter. In a projection with LoRA, each example gathers its own A and B, which adds two
batched matrix products, whatever the number of adapters. A layer of the head is applied to one slice per adapter.

DeBERTa-v2 projects relative positions with the layers that also project tokens, once for the whole batch, because
without adapters all examples share the result. With several adapters it differs, so that part of the attention is
computed for the examples of one adapter at a time.

An encoder whose layers do not get one matrix per example, such as XLNet, is refused (`row_probe`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lora.adapters.adapter import Adapter
from lora.adapters.base import check_architecture, check_base, kept_layers
from lora.adapters.folder import read_adapter
from lora.adapters.head import check_range, fitted_head, head_modules, output_layer
from lora.adapters.merge import fitted_layers, remove
from lora.adapters.row_probe import check_rows
from lora.adapters.torch_modes import lasting, thaw
from lora.errors import UserError
from lora.methods.lowrank import LoraLayer
from lora.models.modules import replace

HEAD_LAYERS = (nn.Linear, nn.LayerNorm)


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
        linear: Pretrained layer; its weight and bias are shared.
        factors: A (rank, d_in) and scale * B (d_out, rank) of each adapter, padded with zeros to the highest rank.
    """

    def __init__(self, linear: nn.Linear, factors: Sequence[tuple[Tensor, Tensor] | None], routing: Routing):
        super().__init__()
        self.weight, self.bias, self.routing = linear.weight, linear.bias, routing
        rank = max(len(pair[0]) for pair in factors if pair is not None)
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.register_buffer("a", torch.zeros(len(factors), rank, linear.in_features, **like))
        self.register_buffer("b", torch.zeros(len(factors), rank, linear.out_features, **like))
        for i, pair in enumerate(factors):
            if pair is not None:
                self.a[i, : len(pair[0])] = pair[0]
                self.b[i, : len(pair[0])] = pair[1].T

    def forward(self, x: Float[Tensor, "rows tokens d_in"]) -> Float[Tensor, "rows tokens d_out"]:
        index = self.routing.index
        low = torch.bmm(x, self.a[index].transpose(1, 2))
        out = F.linear(x, self.weight, self.bias)
        return out.baddbmm_(low, self.b[index].to(out.dtype))  # autocast casts everything but this operation


class ManyHeads(nn.Module):
    """A linear layer or LayerNorm of the head with weights for each adapter.

    Missing outputs of a linear layer are -inf, which no argmax picks.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.LayerNorm,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        routing: Routing,
    ):
        super().__init__()
        self.routing, self.eps = routing, getattr(layer, "eps", None)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", bias)
        self.out_features = max(len(weight) for weight in weights)

    def forward(self, x: Float[Tensor, "rows *more d_in"]) -> Float[Tensor, "rows *more d_out"]:
        outputs = []
        for i, start, stop in self.routing.spans:
            weight, bias, own = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}"), x[start:stop]
            if self.eps is None:
                out = F.linear(own, weight, bias)
            else:
                out = F.layer_norm(own, weight.shape, weight, bias, self.eps)
            outputs.append(F.pad(out, (0, self.out_features - out.shape[-1]), value=-torch.inf))
        return torch.cat(outputs)


def bias_by_adapter(attention: nn.Module, routing: Routing) -> Callable[..., Tensor]:
    """DeBERTa-v2's scores between content and relative positions, computed for one adapter's examples at a time."""
    whole = attention.disentangled_attention_bias

    def bias(query: Tensor, key: Tensor, relative: Tensor, embeddings: Tensor, scale_factor: int) -> Tensor:
        index, spans, heads = routing.index, routing.spans, attention.num_attention_heads
        scores = []
        try:
            for span in spans:
                rows = slice(span[1] * heads, span[2] * heads)
                routing.index, routing.spans = index[span[1] : span[1] + 1], (span,)
                scores.append(whole(query[rows], key[rows], relative, embeddings, scale_factor))
        finally:
            routing.index, routing.spans = index, spans
        return torch.cat(scores)

    return bias


class AdapterSet(nn.Module):
    """A transformers model that serves several LoRA adapters at once.

    It is for inference only: it stays in eval mode, even if its or the model's `train` is called.

    Args:
        model: Model without a method, or with LoRA, merged or not, which is taken off. It is used, not copied;
            `release` returns it with its pretrained weights and in its original mode.
        adapters: Name in batches -> adapter in memory or its folder. Targets, ranks and numbers of labels may differ.
        allow_other_base: Accept adapters that were trained on other weights.
        allow_changed_architecture: Accept an encoder with other settings if every tensor fits.
    Raises: UserError: If an adapter is not LoRA, does not fit, or has another base, or if rows of a batch cannot have
        different adapters in this encoder. The model is then unchanged.
    """

    @lasting
    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, Adapter | str | Path],
        allow_other_base: bool = False,
        allow_changed_architecture: bool = False,
    ):
        super().__init__()
        if not adapters:
            raise UserError("a set of adapters needs at least one adapter")
        check_head(model)
        thaw(model)
        kept, layers, heads = kept_layers(model), [], []
        for name, given in adapters.items():
            try:
                adapter = given if isinstance(given, Adapter) else read_adapter(given)
                if adapter.base is not None and not allow_changed_architecture:
                    check_architecture(model, adapter.base)
                layers.append(fitted_layers(model, kept, adapter))
                scale_into_b(adapter, layers[-1])
                heads.append(fitted_head(model, adapter.head))
                if adapter.base is not None and not allow_other_base:
                    check_base(model, adapter.base, adapter.weights)
            except UserError as error:
                raise UserError(f"adapter {name}: {error}") from error
        places = list(dict.fromkeys(name for own in layers for name in own))
        parts = {name: part for name, part in head_modules(model).items() if isinstance(part, HEAD_LAYERS)}
        check_rows(model, places, parts)
        remove(model)
        self.modes = [(module, module.training) for module in model.modules()]
        output = output_layer(model)
        self.labels = {name: len(head[f"{output}.weight"]) for name, head in zip(adapters, heads, strict=True)}
        self.routing, self.model = Routing(), model
        self.places: list[str] = []
        self.taken = nn.ModuleList()  # the model's own modules at these places, moved and cast with the set
        for name in places:
            pairs = [own[name].factors() if name in own else None for own in layers]
            self.take(name, ManyLora(model.get_submodule(name), pairs, self.routing))
        for name, part in parts.items():
            weights = [head[f"{name}.weight"] for head in heads]
            biases = [head.get(f"{name}.bias") for head in heads]
            self.take(name, ManyHeads(part, weights, biases, self.routing))
        self.relative = [module for module in model.modules() if projects_positions(module)]
        for attention in self.relative:
            attention.disentangled_attention_bias = bias_by_adapter(attention, self.routing)
        self.eval()

    def take(self, name: str, module: nn.Module) -> None:
        self.places.append(name)
        self.taken.append(self.model.get_submodule(name))
        replace(self.model, name, module)

    def train(self, mode: bool = True) -> "AdapterSet":
        """Stay in eval mode, whatever `mode` is, even if a model that contains the set is trained."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, names: Sequence[str], **inputs: Tensor) -> list[Float[Tensor, " labels"]]:
        """The logits of each example under its own adapter.

        Args:
            names: Name of each example's adapter.
            inputs: Outputs of the model's tokenizer.
        Returns: For each example, in order, as many logits as its adapter has labels.
        Raises: UserError: If a name is unknown, the numbers of names and examples differ, or the model was released.
        """
        self.check_in_use()
        if any(module.training for module, _ in self.modes):  # train() was called on the model or a part of it
            self.eval()
        unknown = sorted(set(names) - set(self.labels))
        if unknown:
            raise UserError(f"no adapter {', '.join(unknown)} is loaded; the adapters are {', '.join(self.labels)}")
        rows = len(inputs["input_ids"])
        if len(names) != rows:
            raise UserError(f"a batch of {rows} examples needs {rows} adapter names, one for each, got {len(names)}")
        if not rows:
            return []
        numbers = {name: number for number, name in enumerate(self.labels)}
        order = sorted(range(rows), key=lambda row: numbers[names[row]])
        used = [numbers[names[row]] for row in order]
        place = torch.tensor(order, device=inputs["input_ids"].device)
        self.routing.index = torch.tensor(used, device=place.device)
        self.routing.spans = tuple((n, used.index(n), used.index(n) + used.count(n)) for n in dict.fromkeys(used))
        sorted_rows = {key: tensor[place] if len(tensor) == rows else tensor for key, tensor in inputs.items()}
        logits = self.model(**sorted_rows).logits
        return [logits[order.index(row), : self.labels[names[row]]] for row in range(rows)]

    def release(self) -> nn.Module:
        """Return the pretrained model with the head that it had before any adapter's. The set is then unusable."""
        self.check_in_use()
        for attention in self.relative:
            del attention.disentangled_attention_bias
        for name, module in zip(self.places, self.taken, strict=True):
            replace(self.model, name, module)
        for module, training in self.modes:
            module.training = training
        model = self.model
        self.model, self.relative, self.places, self.taken, self.modes = None, [], [], nn.ModuleList(), []
        return model

    def check_in_use(self) -> None:
        """Raises: UserError: If the model was released."""
        if self.model is None:
            raise UserError("this set of adapters has released its model: create a new set")


def scale_into_b(adapter: Adapter, layers: Mapping[str, LoraLayer]) -> None:
    """Multiply each B by its scale. Raises: UserError: If a factor overflows in the model's dtype."""
    for module, layer in layers.items():
        for name, part in layer.parts(module).items():
            part.lora_b.mul_(part.scale)
            check_range(f"{name}.lora_a", adapter.weights[f"{name}.lora_a"], part.lora_a)
            if not torch.isfinite(part.lora_b).all():
                raise UserError(
                    f"the adapter's {name}.lora_b, scaled, has values that are not finite in {part.lora_b.dtype}"
                )


def check_head(model: nn.Module) -> None:
    """Raises: UserError: If a layer of the head has parameters but is neither linear nor a LayerNorm."""
    for name, module in head_modules(model).items():
        if not isinstance(module, HEAD_LAYERS) and next(module.parameters(recurse=False), None) is not None:
            raise UserError(
                f"{name} is a {type(module).__name__}: only heads of linear layers and LayerNorms can be mixed in a "
                f"batch"
            )


def projects_positions(module: nn.Module) -> bool:
    """Whether a module is an attention with LoRA on relative positions, in layers shared with tokens or not."""
    if not (hasattr(module, "disentangled_attention_bias") and module.relative_attention and module.pos_att_type):
        return False
    names = ("query_proj", "key_proj") if module.share_att_key else ("pos_query_proj", "pos_key_proj")
    return any(isinstance(getattr(module, name, None), ManyLora) for name in names)
