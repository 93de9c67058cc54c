"""Every method on every architecture, against the untouched base, loralib and closed forms."""

import math
import re

import loralib
import pytest
import tiny
import torch
import transformers
from tiny_adapters import logits, train_steps

from lora.adapters.merge import merge, remove
from lora.errors import UserError
from lora.methods import apply
from lora.methods.bottleneck import Bottleneck
from lora.methods.configs import (
    SHORT_TARGETS,
    AdapterDropConfig,
    BitFitConfig,
    HoulsbyConfig,
    LoraConfig,
    PfeifferConfig,
)
from lora.methods.lowrank import LoraLinear, LoraSlice, init_a
from lora.models.architectures import module_of
from lora.models.modules import checksum, count_parameters, find_target, is_head, trainable
from lora.rng import generator

TARGET_SETS = [("q",), ("q", "v"), tuple("qkvoif")]


@pytest.mark.parametrize(("architecture", "method"), tiny.pairs(*tiny.METHODS))
def test_frozen_tensors_stay_bit_identical_and_the_rest_trains(architecture, method):
    model = tiny.model(architecture)
    names = apply(model, tiny.METHODS[method], seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, architecture, steps=5)
    after = model.state_dict()
    frozen = [name for name in before if name not in names]
    assert checksum((n, before[n]) for n in frozen) == checksum((n, after[n]) for n in frozen)
    still = [name for name in names if torch.equal(before[name], after[name])]
    # BERT's and ELECTRA's inputs never have the second token type or a position beyond the length. Those rows belong to
    # tensors whose other rows move. The same holds for the other architectures.
    assert not still
    assert any(is_head(model, name) for name in names)
    assert (method == "full") == (not frozen or all("position_ids" in name for name in frozen))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("targets", TARGET_SETS, ids="".join)
def test_lora_starts_at_the_base_exactly_on_every_target_set(architecture, targets):
    base, model = tiny.model(architecture), tiny.model(architecture)
    apply(model, LoraConfig(targets=targets, rank=4), seed=3)
    assert torch.equal(logits(model, architecture), logits(base, architecture))
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLinear | LoraSlice)]
    assert sorted(adapted) == sorted(name for target in targets for name in find_target(base, target))


def test_lora_equals_loralib():
    source = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(10, 6).double()
    theirs = loralib.Linear(10, 6, r=3, lora_alpha=5).double()
    theirs.load_state_dict(linear.state_dict(), strict=False)
    ours = LoraLinear(linear, rank=3, scale=5 / 3, dropout=0.0)
    for mine, other in ((ours.lora_a, theirs.lora_A), (ours.lora_b, theirs.lora_B)):
        mine.data.normal_(generator=source)
        other.data.copy_(mine.data)
    x = torch.randn(4, 10, generator=source, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ({"alpha": 16, "rank": 8}, 8, 2.0),
        ({"alpha": 16, "rank": 64}, 64, 0.25),
        ({"alpha": 16, "rank": 64, "alpha_at_rank": 8}, 64, 2.0),
        ({"alpha": 16, "rank": 1, "alpha_at_rank": 8}, 1, 2.0),
        ({"alpha": 16, "rank": 64, "scaling": "rslora"}, 64, 2.0),
        ({"alpha": 16, "rank": 8, "ranks": {"v": 2}}, 2, 8.0),
    ],
)
def test_how_alpha_follows_the_rank(settings, rank, scale):
    assert LoraConfig(**settings).scale_at(rank) == pytest.approx(scale)


LIMITS = [
    (LoraConfig, {"rank": 1, "alpha": 0.1, "alpha_at_rank": 1, "dropout": 0.0, "ranks": {"q": 1}}, {}),
    (LoraConfig, {"init_a": "gaussian", "init_std": 0.1}, {"init_std": 0.0}),
    (LoraConfig, {"init_a": "gaussian", "init_std": 0.1}, {"init_std": None}),
    (LoraConfig, {}, {"targets": ("q", "q")}),
    (LoraConfig, {"init_a": "orthogonal", "rank": 2, "ranks": {"q": 4}}, {"rank": 3}),
    (LoraConfig, {"init_a": "pissa"}, {"dropout": 0.1}),
    (LoraConfig, {}, {"rank": 0, "alpha": 0.0, "alpha_at_rank": 0, "dropout": 1.0, "ranks": {"q": 0}}),
    (LoraConfig, {}, {"targets": (), "init_std": 0.1, "dropout": -0.1, "alpha": math.inf, "ranks": {"o": 4}}),
    (HoulsbyConfig, {"bottleneck": 1, "init_std": 1e-9}, {}),
    (HoulsbyConfig, {}, {"bottleneck": 0, "init_std": 0.0}),
    (PfeifferConfig, {}, {"init_std": math.inf}),
    (AdapterDropConfig, {"drop_layers": 0}, {}),
    (AdapterDropConfig, {}, {"drop_layers": -1, "bottleneck": 0}),
]


@pytest.mark.parametrize(("kind", "good", "bad"), LIMITS)
def test_settings_at_their_limits_are_taken_and_beyond_refused_each_by_name(kind, good, bad):
    kind(**good)
    for key, value in bad.items():
        with pytest.raises(UserError, match=f"{key} must be"):
            kind(**{**good, key: value})


def test_init_of_a():
    model = tiny.model("bert")
    apply(model, LoraConfig(targets=("q",), rank=32, init_a="gaussian", init_std=0.5), seed=0)
    drawn = {name: m.lora_a for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    assert len(drawn) == 2
    for name, a in drawn.items():
        expected = torch.empty(32, 32).normal_(0, 0.5, generator=generator(0, "lora_a", name))
        assert torch.equal(a.detach(), expected), "neither the global generator nor other modules have a part in it"


@pytest.mark.parametrize("rank", [2, 16])
def test_a_is_bounded_by_its_inputs_whatever_the_rank(rank):
    """Against torch's kaiming_uniform_(a=sqrt(5)), which loralib calls, from an equal generator, and loralib's A."""
    model = tiny.model("bert")
    targets = ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense")
    apply(model, LoraConfig(targets=targets, rank=rank), seed=4)
    for name, width in zip(targets, (32, 48), strict=True):
        drawn, expected = model.get_submodule(name).lora_a, torch.empty(rank, width)
        torch.nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=generator(4, "lora_a", name))
        torch.testing.assert_close(drawn.detach(), expected, rtol=1e-6, atol=0)

    ours = torch.empty(rank, 768)
    init_a(ours, LoraConfig(rank=rank), 0, "a module")
    torch.manual_seed(0)
    theirs = loralib.Linear(768, 4, r=rank).lora_A.detach()
    for draws in (ours, theirs):
        assert 0.99 * 768**-0.5 < draws.abs().max().item() <= 768**-0.5
        assert draws.std().item() == pytest.approx((3 * 768) ** -0.5, rel=0.06)


@pytest.mark.parametrize(("architecture", "method"), tiny.pairs(*tiny.BOTTLENECKS))
def test_adapters_start_near_the_base(architecture, method):
    """Near the base as initialised, and exactly at it with the up-projection zeroed."""
    base, model = tiny.model(architecture), tiny.model(architecture)
    apply(model, tiny.METHODS[method], seed=2)
    with torch.no_grad():
        batch = tiny.inputs(architecture)
        there, here = (m.base_model(**batch).last_hidden_state for m in (base, model))
        assert 0 < ((here - there).norm() / there.norm()).item() < 0.1
        for name, parameter in model.named_parameters():
            if ".adapter.up." in name:
                parameter.zero_()
    assert torch.equal(logits(model, architecture), logits(base, architecture))


@pytest.mark.parametrize(("architecture", "p"), [("bert", 0.3), ("modernbert", 0.0)])
def test_a_houlsby_adapter_keeps_the_dropout_before_it(architecture, p):
    """ModernBERT has an Identity where its dropout is 0, and the adapter's skip lets everything through."""
    model = tiny.model(architecture)
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p
    apply(model, tiny.METHODS["houlsby"], seed=0)
    adapted = [module for module in model.modules() if hasattr(module, "adapter")]
    assert adapted and {module.p for module in adapted if isinstance(module, torch.nn.Dropout)} == {p} - {0}
    x = torch.ones(400, 32)
    with torch.no_grad():
        for parameter in adapted[0].adapter.parameters():
            parameter.zero_()
        assert (adapted[0].train()(x) == 0).float().mean().item() == pytest.approx(p, abs=0.02)


@pytest.mark.parametrize("method", tiny.BOTTLENECKS)
def test_the_seed_draws_the_adapters_and_is_all_that_does(method):
    def drawn(seed):
        model = tiny.model("bert")
        torch.manual_seed(7 + seed)
        apply(model, tiny.METHODS[method], seed=seed)
        return checksum((n, p) for n, p in model.named_parameters() if ".adapter." in n)

    first = drawn(0)
    torch.manual_seed(3)
    assert drawn(0) == first != drawn(1)


def test_adapter_init_is_truncated():
    model = tiny.model("bert")
    apply(model, HoulsbyConfig(bottleneck=32, init_std=0.01), seed=0)
    draws = torch.cat([p.flatten() for n, p in model.named_parameters() if ".adapter." in n and n.endswith("weight")])
    assert draws.abs().max().item() <= 0.02
    assert draws.std().item() == pytest.approx(0.0088, rel=0.03)  # of a normal cut at two standard deviations


ACTIVATIONS = {
    "relu": lambda x: torch.clamp(x, min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "swish": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activations_by_their_formulas(activation):
    config = PfeifferConfig(bottleneck=7, activation=activation)
    adapter = Bottleneck(12, config, torch.device("cpu"), torch.float64)
    x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = ACTIVATIONS[activation](x @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(adapter(x), inner @ adapter.up.weight.T + adapter.up.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_layer_norms_train_where_asked(architecture):
    frozen, trained = tiny.model(architecture), tiny.model(architecture)
    apply(frozen, HoulsbyConfig(bottleneck=4), seed=0)
    apply(trained, HoulsbyConfig(bottleneck=4, layer_norms="trained"), seed=0)
    extra = count_parameters(trained)["trainable_method"] - count_parameters(frozen)["trainable_method"]
    # two layers, two LayerNorms, weight and bias; ModernBERT: no biases, and no LayerNorm before the first attention
    assert extra == (3 * 32 if architecture == "modernbert" else 2 * 2 * 2 * 32)


def test_adapterdrop_leaves_the_first_layers_alone():
    model = tiny.model("bert")
    names = apply(model, AdapterDropConfig(bottleneck=4, drop_layers=1), seed=0)
    assert {name.split(".")[3] for name in names if ".adapter." in name} == {"1"}
    with pytest.raises(UserError, match="below the encoder's depth \\(2 layers\\), got 2"):
        apply(tiny.model("bert"), AdapterDropConfig(bottleneck=4, drop_layers=2), seed=0)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])  # MPNet's scores have a bias by relative position
def test_bitfit_trains_every_bias_and_the_head(architecture):
    model = tiny.model(architecture)
    names = set(apply(model, BitFitConfig(), seed=0))
    assert names == {n for n, _ in model.named_parameters() if "bias" in n or is_head(model, n)}
    assert {n for n, _ in trainable(model)} == names


def test_fused_projections_of_an_unknown_layout_are_refused_with_their_linear_layers():
    model = transformers.DebertaForSequenceClassification(transformers.DebertaConfig(**tiny.COMMON, type_vocab_size=0))
    with pytest.raises(UserError, match=r"'q' is not in Deberta.*encoder\.layer\.\*\.attention\.self\.in_proj"):
        apply(model, LoraConfig(targets=("q",)), seed=0)
    for config in (HoulsbyConfig(), PfeifferConfig()):
        with pytest.raises(UserError, match=r"no known place in DebertaFor.*; they have one in BERT, .*ModernBERT"):
            apply(model, config, seed=0)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_six_short_names_are_all_linear_layers_of_the_encoder_s_layers(architecture):
    """Each exactly once. Only the head and ELECTRA's projection of the embeddings remain."""
    model = tiny.model(architecture)
    inside = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and re.search(r"layers?\.\d", n)]
    places = {target: find_target(model, target) for target in SHORT_TARGETS}
    assert all(len(names) == 2 for names in places.values())
    modules = [module_of(name) for names in places.values() for name in names]
    assert sorted(set(modules)) == sorted(inside) and len(inside) == 2 * (4 if architecture == "modernbert" else 6)
    shapes = {t: [tuple(model.get_submodule(n).weight.shape) for n in places[t]] for t in "if"}
    gated = 2 if architecture == "modernbert" else 1
    assert shapes == {"i": [(48 * gated, 32)] * 2, "f": [(32, 48)] * 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [("full", "lora"), ("bitfit", "houlsby"), ("lora", "bitfit"), ("lora", "lora"), ("houlsby", "lora")],
)
def test_a_second_method_is_refused_where_the_first_added_modules(first, second):
    """Its saved adapter would lack the first one's weights. Full fine-tuning and BitFit leave none behind."""
    model = tiny.model("bert")
    apply(model, tiny.METHODS[first], seed=0)
    before = checksum(model.named_parameters())
    if first in ("full", "bitfit"):
        trained = apply(model, tiny.METHODS[second], seed=0)
        assert model.applied.method is tiny.METHODS[second] and set(trained) == {name for name, _ in trainable(model)}
    else:
        with pytest.raises(UserError, match=rf"has method {first} already: apply another to a model loaded anew"):
            apply(model, tiny.METHODS[second], seed=0)
        assert checksum(model.named_parameters()) == before and model.applied.method is tiny.METHODS[first]


def test_a_model_with_lora_merged_takes_no_second_one_until_it_is_taken_off():
    model = tiny.model("bert")
    apply(model, tiny.METHODS["lora"], seed=0)
    merge(model)
    with pytest.raises(UserError, match="has method lora already"):
        apply(model, tiny.METHODS["lora"], seed=0)
    remove(model)
    apply(model, tiny.METHODS["lora"], seed=0)


def test_a_rank_above_the_dimension_changes_nothing():
    model = tiny.model("bert")
    with pytest.raises(UserError, match=r"rank 33 is above the smaller dimension.*1..32"):
        apply(model, LoraConfig(rank=33), seed=0)
    assert checksum(model.state_dict().items()) == checksum(tiny.model("bert").state_dict().items())
