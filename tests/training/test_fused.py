"""The compiled kernels against plain torch, the fused encoder against transformers' own, and the rules of masks."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import plain
import pytest
import tiny
import torch
from processor import needs_bf16
from scipy import stats
from torch.nn import functional as F
from trained import run

from lora.config.auto import FUSED_ARCHITECTURES
from lora.cost.subjects import saved_bytes
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig, PeftConfig
from lora.models.modules import trainable
from lora.training.fused import encoder, functions, kernels
from lora.training.fused.encoder import fuse
from lora.training.fused.functions import Masks
from lora.training.fused.optimizer import FusedAdamW


@pytest.mark.parametrize("config", [LoraConfig(rank=3, dora=True), PeftConfig(options={"r": 4})], ids=["dora", "vera"])
def test_a_method_without_kernels_is_refused(config):
    apply(model := tiny.model("bert"), config)
    with pytest.raises(UserError, match="does not cover DoRA and PEFT's methods: use"):
        fuse(model, "fp32", 0)


CONFIGS = {
    **{name: config for name, config in tiny.METHODS.items() if name != "lora"},
    "lora-qv": LoraConfig(rank=3),
    "lora-qkvo": LoraConfig(targets=("q", "k", "v", "o"), rank=3, dropout=0.3),
    "lora-qkvoif": LoraConfig(targets=tuple("qkvoif"), rank=3, dropout=0.3),
    "lora-pissa": LoraConfig(targets=("q", "v", "f"), rank=3, init_a="pissa", frozen_a=True),
    "lora-ffn": LoraConfig(targets=("{body}.encoder.layer.1.intermediate.dense",), rank=3),
}
LINEAR = ("frozen_linear", "lora_linear")
HOMES = dict.fromkeys(("dropout", "gelu", "add_norm", "attention"), functions) | dict.fromkeys(LINEAR, encoder)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def masks(rows=4, seed=3, step=1):
    source = Masks(seed)
    source.begin(step, np.arange(rows))
    return source


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(name, arguments, learned):
    """Outputs, and gradients of the arguments `learned`, of the kernels' function and of the plain one in float64."""
    results = []
    for module, dtype in ((HOMES[name], None), (plain, torch.float64)):
        given = [a.to(dtype) if dtype and torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
        if dtype:
            given = [
                encoder.Frozen(a.weight.to(dtype), a.bias.to(dtype)) if isinstance(a, encoder.Frozen) else a
                for a in given
            ]
        for i in learned:
            given[i] = given[i].detach().clone().requires_grad_()
        out = getattr(module, name)(*given)
        out.backward(draw(*out.shape, seed=99).to(out.dtype))
        results.append([out.detach(), *(given[i].grad for i in learned)])
    return zip(*results, strict=True)


def assert_close(pairs, dtype):
    for ours, truth in pairs:
        scale = truth.abs().max().item()
        assert (ours.double() - truth).abs().max().item() <= TOLERANCE[dtype] * max(scale, 1e-3)


DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
PACKED = pytest.mark.parametrize(  # weights are packed for the CPU's own products
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=["fp32", "bf16"]
)
DROPPED = pytest.mark.parametrize("p", [0.0, 0.3])


def site(p, name="site", rows=4):
    return masks(rows).site(name, p, rows) if p else None


@DTYPES
def test_dropout_equals_the_plain_one(dtype):
    x = draw(4, 7, 24, dtype=dtype)
    assert_close(both("dropout", [x, site(0.3)], [0]), dtype)


@DTYPES
def test_gelu_equals_the_plain_one(dtype):
    x = torch.cat([draw(3000), torch.linspace(-12, 12, 2001)]).to(dtype)
    assert_close(both("gelu", [x], [0]), dtype)


def test_gelu_in_float32_is_exact_to_a_millionth():
    """Its polynomials are fits. The truth is scipy's normal distribution, also beyond the edge of the fits."""
    x = torch.linspace(-20, 20, 400_001)
    out, slope = torch.empty_like(x), torch.empty_like(x)
    kernels.gelu(x.numpy(), out.numpy())
    kernels.gelu_backward(x.numpy(), torch.ones_like(x).numpy(), slope.numpy())
    wide = x.double().numpy()
    assert np.abs(out.numpy() - wide * stats.norm.cdf(wide)).max() < 2e-6
    assert np.abs(slope.numpy() - (stats.norm.cdf(wide) + wide * stats.norm.pdf(wide))).max() < 1e-6


def test_exp_is_exact_to_two_units_in_the_last_place():
    from numba import njit

    @njit
    def over(x, out):
        for i in range(x.size):
            out[i] = kernels.exp(x[i])

    x = np.linspace(-86.9, 88, 200_001).astype(np.float32)
    out = np.empty_like(x)
    over(x, out)
    truth = np.exp(x.astype(np.float64))
    assert (np.abs(out - truth) / truth).max() < 3e-7
    over(np.array([-np.inf, -1e30, -88], np.float32), out)
    assert (out[:3] == 0).all()


@DTYPES
@DROPPED
def test_add_norm_equals_the_plain_one(dtype, p):
    x, residual = draw(4, 7, 24, dtype=dtype), draw(4, 7, 24, seed=1, dtype=dtype)
    weight, bias = 1 + 0.3 * draw(24, seed=2), draw(24, seed=3)
    assert_close(both("add_norm", [x, residual, weight, bias, 1e-12, site(p)], [0, 1, 2, 3]), dtype)


@DTYPES
@DROPPED
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("queries", [1, 9])
def test_attention_equals_the_plain_one(dtype, p, queries, biased):
    q = draw(4, queries, 24, dtype=dtype)
    k, v = (draw(4, 9, 24, seed=seed, dtype=dtype) for seed in (1, 2))
    visible = torch.arange(9) < torch.tensor([[9], [4], [1], [8]])
    visible[3, 2] = False  # any key may be hidden, not only the last
    bias = [draw(3, queries, 9, seed=3) if biased else None]
    assert_close(both("attention", [q, k, v, visible, 3, site(p), *bias], [0, 1, 2, 6][: 3 + biased]), dtype)


@PACKED
@DROPPED
def test_lora_linear_equals_the_plain_one(dtype, p):
    x = draw(4, 7, 24, dtype=dtype)
    frozen = encoder.Frozen(draw(16, 24, seed=1, dtype=dtype), draw(16, seed=2, dtype=dtype))
    arguments = [x, frozen, draw(3, 24, seed=3), draw(16, 3, seed=4), 0.7, site(p)]
    assert_close(both("lora_linear", arguments, [0, 2, 3]), dtype)


@PACKED
@DROPPED
@pytest.mark.parametrize("width", [24, 37, 384])
def test_what_lora_reads_from_a_norm_is_recomputed_bit_for_bit(dtype, p, width):
    x, residual = draw(4, 7, width, dtype=dtype), draw(4, 7, width, seed=1, dtype=dtype)
    out = functions.add_norm(x, residual, 1 + 0.3 * draw(width, seed=2), draw(width, seed=3), 1e-12, None)
    assert torch.equal(functions.recomputed(out.source, site(p)), functions.dropout(out, site(p)))
    frozen = encoder.Frozen(draw(16, width, seed=1, dtype=dtype), draw(16, seed=2, dtype=dtype))
    results = []
    for source in (out.source, None):
        learned = [t.clone().requires_grad_() for t in (out, draw(3, width, seed=3), draw(16, 3, seed=4))]
        learned[0].source = source
        low = encoder.lora_linear(learned[0], frozen, *learned[1:], 0.7, site(p))
        low.backward(draw(*low.shape, seed=9).to(dtype))
        results.append([low.detach(), *(each.grad for each in learned)])
    assert all(map(torch.equal, *results))


@PACKED
def test_frozen_linear_equals_the_plain_one(dtype):
    frozen = encoder.Frozen(draw(16, 24, seed=1, dtype=dtype), draw(16, seed=2, dtype=dtype))
    assert_close(both("frozen_linear", [draw(4, 7, 24, dtype=dtype), frozen], [0]), dtype)


def test_bfloat16_is_rounded_to_the_nearest_even_as_torch_does():
    x = torch.cat([draw(10_000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -0.0, 3e38])]).view(1, -1)
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    keep_all = functions.arguments(None, 1)
    kernels.dropout(x.numpy(), *keep_all, functions.array(out))
    assert torch.equal(out, x.bfloat16())


# Masks.


def kept(source, name="a", p=0.1, rows=4, tokens=64, width=128):
    return plain.keep(source.site(name, p, rows), plain.hidden_places(tokens, width)).numpy()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.003])
def test_masks_keep_the_right_share_everywhere(p):
    """By example, by position and by feature, the counts fit a binomial distribution."""
    share = kept(masks(64), p=p, rows=64)
    assert stats.binomtest(int(share.sum()), share.size, 1 - p).pvalue > 1e-3
    for axis in itertools.combinations(range(3), 2):
        counts = share.sum(axis)
        trials = share.size // counts.size
        z = (counts - trials * (1 - p)) / math.sqrt(trials * p * (1 - p))
        assert stats.chi2.sf((z**2).sum(), counts.size) > 1e-3


def test_masks_of_different_places_are_independent():
    def drawn(name="a", **settings):
        return kept(masks(512, **settings), name, p=0.5, rows=512, tokens=8)

    mask = drawn()
    pairs = {
        "step": (mask, drawn(step=2)),
        "seed": (mask, drawn(seed=4)),
        "site": (mask, drawn("b")),
        "example": (mask[::2], mask[1::2]),
        "neighbour": (mask[:, :, :-1], mask[:, :, 1:]),
        "next token": (mask[:, :-1], mask[:, 1:]),
    }
    for place, (one, two) in pairs.items():
        assert stats.binomtest(int((one == two).sum()), one.size, 0.5).pvalue > 1e-3, place


# The optimizer.


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e9])
def test_adamw_equals_torchs(clip_norm, sparse):
    """Twenty steps with a schedule, and an embedding whose rows occur, repeat, pause or never occur."""

    def train(fused):
        table = torch.nn.Embedding(30, 6, sparse=fused and sparse)
        linear = torch.nn.Linear(6, 5)
        with torch.no_grad():
            for number, p in enumerate((table.weight, linear.weight, linear.bias)):
                p.copy_(draw(*p.shape, seed=number))
        parameters = [table.weight, linear.weight, linear.bias]
        groups = [
            {"params": parameters[:2], "weight_decay": 0.1},
            {"params": parameters[2:], "weight_decay": 0.0, "lr": 0.05},
        ]
        if fused:
            optimizer = FusedAdamW(groups, 0.02, (0.9, 0.98), 1e-6, clip_norm)
        else:
            optimizer = torch.optim.AdamW(groups, 0.02, (0.9, 0.98), 1e-6)
        for step in range(20):
            ids = torch.randint(0, 25, (4, 7), generator=torch.Generator().manual_seed(step))
            linear(table(ids)).square().sum().backward()
            if clip_norm is not None and not fused:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            for group in optimizer.param_groups:
                group["lr"] *= 0.95
            optimizer.step()
            optimizer.zero_grad()
        return parameters

    for ours, truth in zip(train(True), train(False), strict=True):
        assert torch.allclose(ours, truth, rtol=1e-5, atol=1e-6)


# The encoder.


def pair(architecture, method, precision="fp32", **settings):
    """The same model twice: transformers' own modules, and fused."""
    stock = tiny.model(architecture, **settings)
    config = CONFIGS[method]
    if isinstance(config, LoraConfig):
        targets = tuple(t.format(body=stock.base_model_prefix) for t in config.targets)
        config = dataclasses.replace(config, targets=targets)
    apply(stock, config, 1)
    for name, p in stock.named_parameters():
        if "lora_b" in name:
            p.data.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    fused = copy.deepcopy(stock)
    return stock, fused, fuse(fused, precision, seed=5)


def gradients(model, architecture):
    model.zero_grad()
    logits = model(**tiny.inputs(architecture)).logits
    F.cross_entropy(logits, torch.arange(len(logits)) % 2).backward()
    return logits.detach(), {name: p.grad for name, p in trainable(model)}


def assert_same_step(found, truth):
    """Compare logits and gradients."""
    (logits, grads), (true_logits, true_grads) = found, truth
    assert torch.allclose(logits, true_logits, atol=1e-5)
    for name, true_grad in true_grads.items():
        assert torch.allclose(grads[name], true_grad, rtol=1e-4, atol=1e-5), name


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("bert", method) for method in CONFIGS]
    + [(other, method) for other in FUSED_ARCHITECTURES if other != "bert" for method in ("full", "lora-qkvoif")],
)
def test_the_fused_encoder_equals_transformers_own(architecture, method):
    stock, fused, _ = pair(architecture, method, **NO_DROPOUT)
    assert [n for n, _ in trainable(stock)] == [n for n, _ in trainable(fused)]
    assert list(stock.state_dict()) == list(fused.state_dict())
    assert_same_step(gradients(fused, architecture), gradients(stock, architecture))


@pytest.mark.parametrize("architecture", ["roberta", "electra", "mpnet"])
def test_the_two_dropouts_of_a_head_draw_two_masks(architecture):
    _, fused, source = pair(architecture, "full", hidden_dropout_prob=0.5)
    zeros, ones = [], torch.ones(5, 32)
    dropout = fused.train().classifier.dropout
    for step in (1, 1, 2):
        source.begin(step, np.arange(5))
        zeros += [dropout(ones) == 0, dropout(ones) == 0]
    assert torch.equal(zeros[0], zeros[2]) and torch.equal(zeros[1], zeros[3]), "the same in every forward pass"
    assert not torch.equal(zeros[0], zeros[1]) and not torch.equal(zeros[0], zeros[4])


@pytest.mark.parametrize(
    ("architecture", "method"), [("mpnet", "full"), ("mpnet", "lora-qkvo"), *(("bert", method) for method in CONFIGS)]
)
def test_with_dropout_the_kernels_equal_the_plain_functions(method, architecture, monkeypatch):
    """This includes the two places outside the layers: after the embeddings and before the classifier."""
    _, fused, source = pair(architecture, method, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    fused.train()
    source.begin(1, np.arange(5))
    found = gradients(fused, architecture)
    fused.eval()
    assert not torch.allclose(found[0], gradients(fused, architecture)[0], atol=1e-3)
    for name in HOMES:
        monkeypatch.setattr(HOMES[name], name, getattr(plain, name))
    fused.train()
    source.begin(1, np.arange(5))
    assert_same_step(found, gradients(fused, architecture))


def test_masks_depend_on_neither_padding_nor_the_other_rows():
    _, fused, source = pair("bert", "lora-qkvo", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    fused.train()
    batch = tiny.inputs("bert")
    source.begin(1, np.arange(5))
    whole = fused(**batch).logits
    order = np.array([3, 1])
    source.begin(1, order)
    padded = {name: F.pad(tensor[order], (0, 6)) for name, tensor in batch.items()}
    assert torch.allclose(fused(**padded).logits, whole[order], atol=1e-5)


def test_lora_keeps_no_layers_input_where_a_norm_makes_it_again():
    """A layer keeps, per token, q, k, v, two norms before their affine maps (each of the width), and GELU's input."""
    rows, tokens, kept = 5, 64, {}
    batch = {name: F.pad(t, (0, tokens - t.shape[1]), value=1) for name, t in tiny.inputs("bert").items()}
    for layers in (2, 3):
        _, fused, source = pair("bert", "lora-qv", num_hidden_layers=layers)
        source.begin(1, np.arange(rows))
        kept[layers] = saved_bytes(fused.train(), lambda fused=fused: fused(**batch).logits)
    settings = fused.config
    a_layer = 4 * rows * tokens * (5 * settings.hidden_size + settings.intermediate_size)
    small = kept[3] - kept[2] - a_layer  # tensors of the rank's width, or of one number per token
    assert 0 < small < 4 * rows * tokens * settings.hidden_size / 2


@needs_bf16
@pytest.mark.parametrize("method", ["full", "houlsby", "lora-qkvo"])
def test_bfloat16_gradients_are_near_those_of_float32(method):
    _, exact, _ = pair("bert", method, **NO_DROPOUT)
    _, rough, _ = pair("bert", method, "bf16", **NO_DROPOUT)
    assert all(p.dtype == torch.float32 for _, p in trainable(rough))
    (truth, true_grads), (logits, grads) = gradients(exact, "bert"), gradients(rough, "bert")
    assert torch.allclose(logits, truth, atol=0.05)
    error = math.sqrt(sum((grads[n] - g).square().sum().item() for n, g in true_grads.items()))
    assert error < 0.05 * math.sqrt(sum(g.square().sum().item() for g in true_grads.values()))


# Whole runs.


def test_fused_runs_follow_stock_runs(tiny_config):
    dry = ("train.dropout=0.0", "train.head_dropout=0.0")
    for method in ("full", "lora"):
        stock, fused = (run(tiny_config(f"method={method}", f"train.kernels={k}", *dry))[0] for k in ("stock", "fused"))
        assert stock.run_id != fused.run_id
        expected = [epoch["train_loss"] for epoch in stock.epochs]
        assert [epoch["train_loss"] for epoch in fused.epochs] == pytest.approx(expected, rel=1e-4)
