"""The names of an encoder's linear layers, dropouts and LayerNorms, for each architecture. It does not import torch.

A new architecture needs an entry in `ARCHITECTURES`, and one in `tests/helpers/tiny.py`, whose models all tests use.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers. Module names are relative to an encoder layer, unless stated otherwise.

    Args:
        title: Name in messages and pages.
        layers: The list of encoder layers, relative to the body.
        targets: Short target -> linear layer, or slice of a fused one.
        attention_end, ffn_end: Last module before the residual, which a Houlsby adapter follows.
        ffn_norm: LayerNorm after the FFN's residual, which Pfeiffer adapters apply twice. None for pre-norm layers:
            their LayerNorms precede the attention and the FFN, and the next layer follows the residual.
        fused: Linear layer -> targets that are equal slices of its outputs, in order. A slice's name is the layer's, a
            dot and the target.
        sdpa: Whether transformers has an SDPA implementation of the attention.
        pretrained_head: Modules of the head, outside the body, that keep a checkpoint's values, like BERT's pooler.
        carried_head: Modules of the head, outside the body, that a run copies from its MNLI run.
        unused: Regular expression for checkpoint tensors of the pretraining head, added to `model.unused_weights`.
    """

    title: str
    layers: str
    targets: dict[str, str]
    attention_end: str
    ffn_end: str
    ffn_norm: str | None
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sdpa: bool = True
    pretrained_head: tuple[str, ...] = ()
    carried_head: tuple[str, ...] = ()
    unused: str = r"(?!)"


def _targets(*names: str) -> dict[str, str]:
    return dict(zip("qkvoif", names, strict=True))


_ATTENTION = tuple(f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense"))
_BERT = Architecture(
    title="BERT",
    layers="encoder.layer",
    targets=_targets(*_ATTENTION, "intermediate.dense", "output.dense"),
    attention_end="attention.output.dropout",
    ffn_end="output.dropout",
    ffn_norm="output.LayerNorm",
)
ARCHITECTURES: dict[str, Architecture] = {  # by transformers' `model_type`
    "bert": _BERT,
    "roberta": replace(_BERT, title="RoBERTa"),
    "xlm-roberta": replace(_BERT, title="XLM-RoBERTa"),
    "camembert": replace(_BERT, title="CamemBERT"),
    "electra": replace(_BERT, title="ELECTRA"),
    "deberta-v2": replace(
        _BERT,
        title="DeBERTa-v2/v3",
        targets=_BERT.targets | {t: f"{_BERT.targets[t]}_proj" for t in "qkv"},
        sdpa=False,  # disentangled attention
        carried_head=("pooler",),
    ),
    "distilbert": Architecture(
        title="DistilBERT",
        layers="transformer.layer",
        targets=_targets(*(f"attention.{name}_lin" for name in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"),
        attention_end="attention.out_lin",  # no dropout follows it
        ffn_end="ffn.dropout",
        ffn_norm="output_layer_norm",
    ),
    "mpnet": replace(
        _BERT,
        title="MPNet",
        targets=_BERT.targets | {t: f"attention.attn.{t}" for t in "qkvo"},
        attention_end="attention.dropout",
        sdpa=False,  # adds a relative position bias to the scores
    ),
    # Pre-norm, with a gated FFN: `i` is all of Wi, whose outputs are the activation's input and the gate; `f` is Wo.
    "modernbert": Architecture(
        title="ModernBERT",
        layers="layers",
        targets=_targets(*(f"attn.Wqkv.{t}" for t in "qkv"), "attn.Wo", "mlp.Wi", "mlp.Wo"),
        attention_end="attn.out_drop",
        ffn_end="mlp.Wo",  # the FFN's dropout precedes it
        ffn_norm=None,
        fused={"attn.Wqkv": ("q", "k", "v")},
        pretrained_head=("head",),
        unused=r"^decoder\.",
    ),
}


@dataclass(frozen=True)
class Slice:
    """Slice number `index` of `count` equal slices of a fused linear layer's outputs."""

    module: str
    index: int
    count: int

    def rows(self, outputs: int) -> slice:
        """The slice's rows in a weight with `outputs` rows."""
        width = outputs // self.count
        return slice(self.index * width, (self.index + 1) * width)


@functools.lru_cache(maxsize=4096)
def place_of(name: str) -> tuple[frozenset[str], Slice | None]:
    """The short targets that a name stands for in any architecture, and the slice that it names, if any."""
    short, part = set(), None
    for known in ARCHITECTURES.values():
        match = re.search(rf"(?:^|\.){re.escape(known.layers)}\.\d+\.", name)
        if match is None:
            continue
        within = name[match.end() :]
        short |= {target for target, place in known.targets.items() if place == within}
        for fused, targets in known.fused.items():
            if within.removeprefix(f"{fused}.") in targets:
                module, _, target = name.rpartition(".")
                part = Slice(module, targets.index(target), len(targets))
    return frozenset(short), part


def slice_of(name: str) -> Slice | None:
    """The slice of a fused layer that a name stands for. None if it names a module."""
    return place_of(name)[1]


def module_of(name: str) -> str:
    """The module of a target's name: the named module itself, or the fused layer of a slice."""
    part = slice_of(name)
    return name if part is None else part.module


def in_order(names: Iterable[str]) -> list[str]:
    """The names, with slices in the order of their rows, independent of the order of targets or of a file's tensors."""
    return sorted(names, key=lambda name: 0 if slice_of(name) is None else slice_of(name).index)


def numbered(name: str) -> str:
    """The name with `*` for numbers, which is the same for all encoder layers."""
    return re.sub(r"\.\d+\.", ".*.", name)


def named_by(target: str, names: Iterable[str]) -> list[str]:
    """The elements of `names` that a target stands for.

    Args:
        target: A short name, a full name, a name with `*` for numbers as in messages, or a glob. Full name, numbered
            name and glob are tried in this order. Globs are `fnmatch`'s: case-sensitive, with a `*` that crosses dots.
    """
    names = list(names)
    if target in _BERT.targets:
        return [name for name in names if target in place_of(name)[0]]
    for means in (str.__eq__, lambda name, target: numbered(name) == target, fnmatchcase):
        matches = [name for name in names if means(name, target)]
        if matches:
            return matches
    return []
