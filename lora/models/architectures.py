"""Where an encoder's linear layers, dropouts and LayerNorms lie, for each architecture. No torch here.

A new architecture needs an entry in `ARCHITECTURES`, and one in `tests/tiny.py`, whose models every test goes through.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers. Names of modules are those within one encoder layer, but for `layers`.

    Args:
        title: Name in messages and pages.
        layers: List of the encoder layers, in the body.
        targets: Short target -> linear layer, or a slice of a fused one.
        attention_end, ffn_end: Last module before the residual, which a Houlsby adapter follows.
        ffn_norm: LayerNorm after the FFN's residual, which Pfeiffer adapters apply twice. None in a pre-norm layer: its
            LayerNorms come before the attention and the FFN, and what follows the residual is the next layer.
        fused: Linear layer -> targets that are equal slices of its outputs, in order. The name of a slice is the
            layer's, a dot and the target.
        sdpa: Whether transformers has an SDPA implementation of the attention.
        pretrained_head: Modules of the head, outside the body, that keep a checkpoint's values, as BERT's pooler does.
        carried_head: Modules of the head that a run which starts from MNLI takes over.
        unused: Regular expression for checkpoint tensors of the pretraining head, besides `model.unused_weights`.
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
ARCHITECTURES: dict[str, Architecture] = {  # by `model_type` of transformers
    "bert": _BERT,
    "roberta": replace(_BERT, title="RoBERTa"),
    "xlm-roberta": replace(_BERT, title="XLM-RoBERTa"),
    "camembert": replace(_BERT, title="CamemBERT"),
    "electra": replace(_BERT, title="ELECTRA"),
    "deberta-v2": replace(
        _BERT,
        title="DeBERTa-v2/v3",
        targets=_BERT.targets | {t: f"{_BERT.targets[t]}_proj" for t in "qkv"},
        sdpa=False,  # the disentangled attention
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
        sdpa=False,  # a bias for relative positions is added to the scores
    ),
    # Pre-norm, with a gated FFN: `i` is all of Wi, whose outputs are the activation's input and the gate; `f` is Wo.
    "modernbert": Architecture(
        title="ModernBERT",
        layers="layers",
        targets=_targets(*(f"attn.Wqkv.{t}" for t in "qkv"), "attn.Wo", "mlp.Wi", "mlp.Wo"),
        attention_end="attn.out_drop",
        ffn_end="mlp.Wo",  # the FFN's dropout comes before it
        ffn_norm=None,
        fused={"attn.Wqkv": ("q", "k", "v")},
        pretrained_head=("head",),
        unused=r"^decoder\.",
    ),
}


@dataclass(frozen=True)
class Slice:
    """Equal slice number `index` of `count` of a fused linear layer's outputs."""

    module: str
    index: int
    count: int

    def rows(self, outputs: int) -> slice:
        """Of a weight with this number of rows."""
        width = outputs // self.count
        return slice(self.index * width, (self.index + 1) * width)


@functools.lru_cache(maxsize=4096)
def place_of(name: str) -> tuple[frozenset[str], Slice | None]:
    """The short targets that a module stands for in any architecture, and the slice that its name is the name of."""
    short, part = set(), None
    for each in ARCHITECTURES.values():
        match = re.search(rf"(?:^|\.){re.escape(each.layers)}\.\d+\.", name)
        if match is None:
            continue
        within = name[match.end() :]
        short |= {target for target, place in each.targets.items() if place == within}
        for fused, targets in each.fused.items():
            if within.removeprefix(f"{fused}.") in targets:
                module, _, target = name.rpartition(".")
                part = Slice(module, targets.index(target), len(targets))
    return frozenset(short), part


def slice_of(name: str) -> Slice | None:
    """The slice of a fused layer that a name stands for; None for a module's name."""
    return place_of(name)[1]


def module_of(name: str) -> str:
    """The module that a target's name is in: itself, or the fused layer of a slice."""
    part = slice_of(name)
    return name if part is None else part.module


def in_order(names: Iterable[str]) -> list[str]:
    """The names with slices in the order of their rows, whatever the order of targets or of tensors in a file."""
    return sorted(names, key=lambda name: 0 if slice_of(name) is None else slice_of(name).index)


def numbered(name: str) -> str:
    """The name with `*` for numbers, which all encoder layers share."""
    return re.sub(r"\.\d+\.", ".*.", name)


def named_by(target: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that a target stands for.

    Args:
        target: A short name; else a full name; else a name with `*` for numbers, as messages list it; else a glob, as
            `fnmatch` has it: case-sensitive, with a `*` that crosses dots.
    """
    names = list(names)
    if target in _BERT.targets:
        return [name for name in names if target in place_of(name)[0]]
    for means in (str.__eq__, lambda name, target: numbered(name) == target, fnmatchcase):
        found = [name for name in names if means(name, target)]
        if found:
            return found
    return []
