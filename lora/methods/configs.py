"""The arguments of each method, and names in tables. It does not import torch, since planning and tables read it."""

import math
import re
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lora.checks import Problems

METHOD_TITLES = {  # in table order
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "adapterdrop": "AdapterDrop",
    "houlsby": "Houlsby adapters",
    "pfeiffer": "Pfeiffer adapters",
    "lora": "LoRA",
    "peft": "PEFT",
}
VARIANT_TITLES = {  # word of a slug -> the name of its paper's method
    "plus": "LoRA+",
    "dora": "DoRA",
    "fa": "LoRA-FA",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "vera": "VeRA",
    "miss": "MiSS",
    "ia3": "(IA)^3",
}
TARGET_TITLES = {"q": "Wq", "k": "Wk", "v": "Wv", "o": "Wo", "i": "Wi", "f": "Wf"}  # i, f: the FFN
SHORT_TARGETS = tuple(TARGET_TITLES)
INITS_IN_SLUG = ("orthogonal", "pissa", "olora")  # starts that are methods of their own papers


def method_words(slug: str) -> tuple[str, list[str]]:
    """The title and the details of a slug: (`DoRA`, [`qv`, `r8`]) of lora-qv-r8-dora."""
    method, *words = slug.split("-")
    title = " + ".join(VARIANT_TITLES[word] for word in words if word in VARIANT_TITLES) or METHOD_TITLES[method]
    return title, [word for word in words if word not in VARIANT_TITLES]


def targets_word(targets: tuple[str, ...]) -> str:
    """Targets in a slug: short names in their usual order, or the number of targets."""
    short = "".join(target for target in SHORT_TARGETS if target in targets)
    return short if len(short) == len(targets) else f"{len(targets)}modules"


def targets_in_slug(targets: tuple[str, ...]) -> tuple[str, ...]:
    """`targets` if a slug shows all of them."""
    return ("targets",) if {*targets} <= {*SHORT_TARGETS} else ()


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning: all parameters train. No arguments."""

    name: Literal["full"] = "full"
    in_slug: ClassVar[tuple[str, ...]] = ()
    slug: ClassVar[str] = "full"


@dataclass(frozen=True)
class BitFitConfig:
    """BitFit: of the encoder, all biases train, including those of LayerNorms, and no other parameter.

    Source: Zaken et al. 2021; as in the released LoRA code, every parameter whose name contains `bias`.
    """

    name: Literal["bitfit"] = "bitfit"
    in_slug: ClassVar[tuple[str, ...]] = ()
    slug: ClassVar[str] = "bitfit"


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: h = W0 x + scale * B A x on the targets.

    Source: Hu et al. 2021, section 4.1; loralib `layers.py` for the init of A.

    Args:
        targets: Short names, full names of modules, or patterns (`lora.models.architectures.named_by`). Short names are
            `q, k, v, o` for the attention's projections and `i, f` for the FFN's first and second linear layer, d to 4d
            and back. In a gated FFN, `i` is the matrix of both the input and the gate.
        rank: r of targets that `ranks` does not name, >= 1.
        ranks: r of targets with a different rank, by target. None is the same as {}.
        alpha: Numerator of the scale, > 0.
        alpha_at_rank: Rank at which `alpha` applies. Other ranks use a proportional alpha, so that alpha / r is fixed.
            None uses `alpha` at every rank.
        dropout: Dropout on the input of A only. The released scripts never set it (0).
        init_a: `kaiming_uniform` is U(-1/sqrt(d_in), 1/sqrt(d_in)), as in the released code; `gaussian` is
            N(0, init_std^2), as in the paper. With both, B starts at zero. `orthogonal` gives A and B orthogonal halves
            of a random basis, so that B A is zero. `pissa` (Meng et al. 2024) and `olora` (Buyukakyuz 2024) start at
            factors A0, B0 of W0, and h = W0 x + scale * (B A - B0 A0) x.
        init_std: Standard deviation for `gaussian`; None otherwise.
        scaling: `lora` divides alpha by r, `rslora` by sqrt(r) (Kalajdzievski 2023).
        dora: Train the norms of the rows of W0 + scale B A separately from their directions (DoRA, Liu et al. 2024,
            whose columns these are: they write h = W x with W transposed). Only with train.kernels=stock.
        frozen_a: A keeps its initial values, and B alone trains (LoRA-FA, Zhang et al. 2023).
    """

    targets: tuple[str, ...] = ("q", "v")
    rank: int = 8
    alpha: float = 8.0
    ranks: dict[str, int] | None = None
    alpha_at_rank: int | None = None
    dropout: float = 0.0
    init_a: Literal["kaiming_uniform", "gaussian", "orthogonal", "pissa", "olora"] = "kaiming_uniform"
    init_std: float | None = None
    scaling: Literal["lora", "rslora"] = "lora"
    dora: bool = False
    frozen_a: bool = False
    name: Literal["lora"] = "lora"

    def __post_init__(self):
        if self.ranks is None:  # Hydra can replace null by a mapping, but cannot add keys to an empty one
            object.__setattr__(self, "ranks", {})
        problems = Problems()
        problems.check_choices(self)
        problems.check_ranges(self, ">= 1", "rank alpha_at_rank")
        problems.check_ranges(self, "> 0 and finite", "alpha")
        problems.check_ranges(self, "in [0, 1)", "dropout")
        rule = f"a non-empty list of {', '.join(SHORT_TARGETS)}, module names or patterns, without repeats"
        problems.check(0 < len(self.targets) == len(set(self.targets)), "targets", rule, self.targets)
        given = set(self.ranks) <= set(self.targets) and all(rank >= 1 for rank in self.ranks.values())
        problems.check(given, "ranks", f">= 1 each, for targets only ({', '.join(self.targets)})", self.ranks)
        if self.init_a == "gaussian":
            problems.check((self.init_std or 0) > 0, "init_std", "> 0 with init_a=gaussian", self.init_std)
        else:
            problems.check(self.init_std is None, "init_std", "null unless init_a=gaussian", self.init_std)
        if self.starts_in_base:  # B0 A0 is a part of W0, whose input is not dropped
            problems.check(self.dropout == 0, "dropout", f"0 with init_a={self.init_a}", self.dropout)
        if self.init_a == "orthogonal":
            odd = [rank for rank in (self.rank, *self.ranks.values()) if rank % 2]
            problems.check(not odd, "rank", "even with init_a=orthogonal", odd)
        problems.done()

    def rank_of(self, target: str) -> int:
        return self.ranks.get(target, self.rank)

    def alpha_at(self, rank: int) -> float:
        return self.alpha if self.alpha_at_rank is None else self.alpha * rank / self.alpha_at_rank

    def scale_at(self, rank: int) -> float:
        """The factor of B A at a rank: alpha / r, as modified by `alpha_at_rank` and `scaling`."""
        return self.alpha_at(rank) / (rank if self.scaling == "lora" else math.sqrt(rank))

    @property
    def starts_in_base(self) -> bool:
        """Whether A and B start at factors of W0."""
        return self.init_a in ("pissa", "olora")

    def as_saved(self) -> "LoraConfig":
        """The config of the adapter that a model saves: B A - B0 A0 is one B A of twice the rank."""
        if not self.starts_in_base:
            return self
        alpha = self.alpha * self.scale_at(self.rank) / self.scale_at(2 * self.rank)
        ranks = {target: 2 * rank for target, rank in self.ranks.items()}
        return replace(self, rank=2 * self.rank, ranks=ranks, alpha=alpha, init_a="kaiming_uniform")

    @property
    def in_slug(self) -> tuple[str, ...]:
        """The arguments whose full value the slug shows."""
        init = ("init_a",) if self.init_a in INITS_IN_SLUG else ()
        return ("rank", "dora", "frozen_a", *init, *targets_in_slug(self.targets))

    @property
    def slug(self) -> str:
        variants = {"dora": self.dora, "fa": self.frozen_a, self.init_a: self.init_a in INITS_IN_SLUG}
        rank = f"r{self.rank}{'x' if self.ranks else ''}"
        return "-".join(["lora", targets_word(self.targets), rank, *(word for word, on in variants.items() if on)])


@dataclass(frozen=True)
class PeftConfig:
    """A method of Hugging Face's `peft` by its own tuner class. Its parameters are checked where the method is applied.

    Args:
        type: PEFT's name of the method in lower case, such as `vera`.
        targets: As for LoRA. A name or a pattern may also stand for LayerNorms, if the method takes them.
        options: PEFT's parameters under its own names. The others have PEFT's defaults.
        decay: Whether weight decay applies to what the method trains. It pulls vectors that multiply to zero.
        draw: What the type draws and freezes, such as VeRA's matrices: PEFT's draw, equal for all runs, or the seed's.
    """

    type: str = "vera"
    targets: tuple[str, ...] = ("q", "v")
    options: dict[str, int | float | bool | str | list | None] | None = None
    decay: bool = True
    draw: Literal["fixed", "seed"] = "fixed"
    name: Literal["peft"] = "peft"

    def __post_init__(self):
        if self.options is None:
            object.__setattr__(self, "options", {})
        problems = Problems()
        is_word = re.fullmatch("[a-z0-9_]+", self.type) is not None
        problems.check(is_word, "type", "lower-case letters, digits and _", self.type)
        problems.check(len(self.targets) > 0, "targets", "a non-empty list", self.targets)
        rank = self.options.get("r", 0)
        problems.check(type(rank) is int and rank >= 0, "options.r", "an integer >= 0", rank)
        problems.check_choices(self)
        problems.done()

    @property
    def in_slug(self) -> tuple[str, ...]:
        return ("type", *targets_in_slug(self.targets))

    @property
    def slug(self) -> str:
        rank = f"-r{self.options['r']}" if "r" in self.options else ""
        return f"peft-{self.type}-{targets_word(self.targets)}{rank}"


@dataclass(frozen=True)
class BottleneckConfig:
    """The arguments that all bottleneck adapters share: x + up(activation(down(x))), with biases in both projections.

    Args:
        bottleneck: Inner width m, >= 1.
        init_std: Standard deviation of both weights' init, > 0; biases are zero. Houlsby et al.: 1e-2, truncated at 2
            std. The released LoRA code: 0.02.
        init_truncated: Whether to truncate the normal distribution at 2 std.
        layer_norms: `frozen` (released LoRA code) or `trained` (Houlsby et al. 2019).
    """

    bottleneck: int = 64
    activation: Literal["relu", "gelu", "swish"] = "relu"
    init_std: float = 0.01
    init_truncated: bool = True
    layer_norms: Literal["frozen", "trained"] = "frozen"
    drop_layers: ClassVar[int] = 0
    in_slug: ClassVar[tuple[str, ...]] = ("bottleneck",)

    def __post_init__(self):
        problems = Problems()
        problems.check_choices(self)
        problems.check_ranges(self, ">= 1", "bottleneck")
        problems.check_ranges(self, "> 0 and finite", "init_std")
        problems.check_ranges(self, ">= 0", "drop_layers")
        problems.done()

    @property
    def slug(self) -> str:
        return f"{self.name}-m{self.bottleneck}"  # each method has a name


@dataclass(frozen=True)
class HoulsbyConfig(BottleneckConfig):
    """Houlsby adapters, two per layer: after the attention's output projection and after the second FFN layer.

    Source: Houlsby et al. 2019, section 2.1; swish as in the released LoRA code (`modeling_roberta.py`).
    """

    activation: Literal["relu", "gelu", "swish"] = "swish"
    name: Literal["houlsby"] = "houlsby"


@dataclass(frozen=True)
class PfeifferConfig(BottleneckConfig):
    """Pfeiffer adapters, one per layer: after the FFN, with the layer's LayerNorm applied twice.

    Source: Pfeiffer et al. 2021; the released LoRA code (`modeling_roberta.py`), equal to adapter-hub's `seq_bn`.
    """

    name: Literal["pfeiffer"] = "pfeiffer"


@dataclass(frozen=True)
class AdapterDropConfig(BottleneckConfig):
    """AdapterDrop: Pfeiffer adapters, except in the first `drop_layers` layers.

    Source: Rueckle et al. 2021. m=48 in 12 layers and in 4 layers gives the 0.9M and 0.3M rows of Table 2.
    """

    bottleneck: int = 48
    drop_layers: int = 8
    name: Literal["adapterdrop"] = "adapterdrop"
    in_slug: ClassVar[tuple[str, ...]] = ("bottleneck", "drop_layers")

    @property
    def slug(self) -> str:
        return f"{self.name}-m{self.bottleneck}-d{self.drop_layers}"


MethodConfig = FullConfig | BitFitConfig | LoraConfig | HoulsbyConfig | PfeifferConfig | AdapterDropConfig | PeftConfig
