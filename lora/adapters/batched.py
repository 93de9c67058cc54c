"""Several LoRA adapters resident on one base: a batch whose rows each name theirs, in one forward pass.

Rows are sorted by adapter for the pass. On a projection with LoRA, each row gathers its own A and B: two batched
products beside the base's one, whatever the number of adapters. A layer of the head is a slice of rows per adapter.

DeBERTa-v2 projects its relative positions with the same layers as its tokens, on an input without rows, since without
adapters all rows share the result. With several it differs by adapter: that part of the attention is computed for the
rows of one adapter at a time.
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
from lora.adapters.torch_modes import lasting, thaw
from lora.errors import UserError
from lora.methods.lowrank import LoraLinear
from lora.models.modules import replace


@dataclass
class Routing:
    """Which adapter each row of the batch in progress uses.

    Args:
        index: The adapter of every row, ascending.
        spans: (adapter, first row, row after the last) of every adapter that the batch uses.
    """

    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    spans: tuple[tuple[int, int, int], ...] = ()


class ManyLora(nn.Module):
    """h = W0 x + b + scale_i * B_i A_i x, i being the row's adapter; of an adapter without this module, W0 x + b.

    Args:
        linear: The pretrained layer; its weight and bias are shared.
        factors: A (rank, d_in) and scale * B (d_out, rank) per adapter; zeros fill the ranks up to the highest.
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
        return out.baddbmm_(low, self.b[index].to(out.dtype))  # autocast, which casts the rest, leaves this alone


class ManyLinear(nn.Module):
    """A layer of the head that every adapter has of its own; missing outputs are -inf, which no argmax takes."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], routing: Routing):
        super().__init__()
        self.routing = routing
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", bias)
        self.out_features = max(len(weight) for weight in weights)

    def forward(self, x: Float[Tensor, "rows *more d_in"]) -> Float[Tensor, "rows *more d_out"]:
        parts = []
        for i, start, stop in self.routing.spans:
            part = F.linear(x[start:stop], getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}"))
            parts.append(F.pad(part, (0, self.out_features - part.shape[-1]), value=-torch.inf))
        return torch.cat(parts)


def bias_by_adapter(attention: nn.Module, routing: Routing) -> Callable[..., Tensor]:
    """DeBERTa-v2's scores between content and relative positions, for the rows of one adapter after another."""
    whole = attention.disentangled_attention_bias

    def bias(query: Tensor, key: Tensor, relative: Tensor, embeddings: Tensor, scale_factor: int) -> Tensor:
        index, spans, heads = routing.index, routing.spans, attention.num_attention_heads
        parts = []
        try:
            for span in spans:
                rows = slice(span[1] * heads, span[2] * heads)
                routing.index, routing.spans = index[span[1] : span[1] + 1], (span,)
                parts.append(whole(query[rows], key[rows], relative, embeddings, scale_factor))
        finally:
            routing.index, routing.spans = index, spans
        return torch.cat(parts)

    return bias


class AdapterSet(nn.Module):
    """A model of transformers that serves several LoRA adapters at once.

    A set serves and does not train: it is in eval mode, which `train` does not change, nor does `train` of the model.

    Args:
        model: Without a method, or with LoRA, merged or not, which is taken off. It is used, not copied; `release`
            gives it back as it was pretrained, in the mode that it came in.
        adapters: In memory or as folders, by the names that batches will use. Targets, ranks and numbers of labels may
            differ.
        allow_other_base: Take adapters that were trained on other weights.
        allow_changed_architecture: Take an encoder with other settings, as long as every tensor fits.
    Raises: UserError: If an adapter is not LoRA's, does not fit or is of another base. The model is then as it was.
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
            raise UserError("a set of adapters needs at least one")
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
        remove(model)
        self.modes = [(module, module.training) for module in model.modules()]
        output = output_layer(model)
        self.labels = {name: len(head[f"{output}.weight"]) for name, head in zip(adapters, heads, strict=True)}
        self.routing, self.model = Routing(), model
        self.places: list[str] = []
        self.taken = nn.ModuleList()  # the model's own modules at these places; they move and are cast with the set
        for name in dict.fromkeys(name for own in layers for name in own):
            pairs = [(own[name].lora_a, own[name].lora_b) if name in own else None for own in layers]
            self.take(name, ManyLora(model.get_submodule(name), pairs, self.routing))
        for name, module in head_modules(model).items():
            if isinstance(module, nn.Linear):
                weights = [head[f"{name}.weight"] for head in heads]
                self.take(name, ManyLinear(weights, [head.get(f"{name}.bias") for head in heads], self.routing))
        self.relative = [module for module in model.modules() if projects_positions(module)]
        for attention in self.relative:
            attention.disentangled_attention_bias = bias_by_adapter(attention, self.routing)
        self.eval()

    def take(self, name: str, module: nn.Module) -> None:
        self.places.append(name)
        self.taken.append(self.model.get_submodule(name))
        replace(self.model, name, module)

    def train(self, mode: bool = True) -> "AdapterSet":
        """Leave the set in eval mode, whatever is asked for, as when a model that holds it is trained."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, names: Sequence[str], **inputs: Tensor) -> list[Float[Tensor, " labels"]]:
        """The logits of every row under its own adapter.

        Args:
            names: The adapter of every row.
            inputs: As the model's tokenizer gives them.
        Returns: In the rows' order, as many logits for each as its adapter has labels.
        Raises: UserError: If a name is unknown, there are not as many as rows, or the model was released.
        """
        self.check_in_use()
        if any(module.training for module, _ in self.modes):  # set by train() of the model itself, or of a part of it
            self.eval()
        unknown = sorted(set(names) - set(self.labels))
        if unknown:
            raise UserError(f"no adapter {', '.join(unknown)} is loaded; here are: {', '.join(self.labels)}")
        rows = len(inputs["input_ids"])
        if len(names) != rows:
            raise UserError(f"a batch of {rows} rows needs {rows} adapter names, one for each, got {len(names)}")
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
        """The model as it was pretrained, with the head that it had before any adapter's; the set is then of no use."""
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
            raise UserError("this set of adapters has released its model: make another one")


def scale_into_b(adapter: Adapter, layers: Mapping[str, LoraLinear]) -> None:
    """Multiply B by the scale. Raises: UserError: If a factor is not finite in the model's dtype."""
    for name, (a, _) in adapter.pairs().items():
        layer = layers[name]
        layer.lora_b.mul_(layer.scale)
        check_range(f"{name}.lora_a", a, layer.lora_a)
        if not torch.isfinite(layer.lora_b).all():
            raise UserError(
                f"the adapter's {name}.lora_b, scaled, has values that are not finite in {layer.lora_b.dtype}"
            )


def check_head(model: nn.Module) -> None:
    """Raises: UserError: If a layer of the head has parameters and is not linear."""
    for name, module in head_modules(model).items():
        if not isinstance(module, nn.Linear) and next(module.parameters(recurse=False), None) is not None:
            raise UserError(f"{name} is a {type(module).__name__}: one batch mixes heads of linear layers only")


def projects_positions(module: nn.Module) -> bool:
    """Whether it is an attention with LoRA on relative positions: in the layers the tokens share, or in their own."""
    if not (hasattr(module, "disentangled_attention_bias") and module.relative_attention and module.pos_att_type):
        return False
    names = ("query_proj", "key_proj") if module.share_att_key else ("pos_query_proj", "pos_key_proj")
    return any(isinstance(getattr(module, name, None), ManyLora) for name in names)
