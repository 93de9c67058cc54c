"""LoRA and its variants against PEFT in float64, on all architectures: logits, gradients, a training step; adapters."""

import functools

import peft
import pytest
import tiny
import torch
from peft.optimizers import create_lorafa_optimizer
from tiny_adapters import assert_same_logits, bytes_of, logits, with_method
from torch.nn import functional as F

from lora.adapters.adapter import adapter_of
from lora.adapters.batched import AdapterSet
from lora.adapters.folder import read_adapter, save_adapter
from lora.adapters.merge import load_adapter, merge, swap, unmerge
from lora.adapters.peft import from_peft, to_peft
from lora.errors import UserError
from lora.methods import apply, stored_bytes
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLinear
from lora.models.modules import checksum, find_target, trainable
from lora.training.step import make_optimizer

VARIANTS = {"plain": {}, "frozen_a": {"frozen_a": True}, "dora": {"dora": True}, "rslora": {"scaling": "rslora"}}
INITS = ("orthogonal", "pissa", "olora")
VARIANTS |= {init: {"init_a": init} for init in INITS} | {"pissa, dora": {"init_a": "pissa", "dora": True}}
# what PEFT calls them, beside the frozen A, which in PEFT is a setting of an optimizer
SETTINGS = {"plain": {}, "frozen_a": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
SETTINGS |= {init: {"init_lora_weights": init} for init in INITS}
SETTINGS |= {"pissa, dora": {"init_lora_weights": "pissa", "use_dora": True}}
PARTS = {
    "lora_a": "lora_A.default.weight",
    "lora_b": "lora_B.default.weight",
    "lora_m": "lora_magnitude_vector.default.weight",
}
CASES = [(architecture, variant) for architecture in tiny.ARCHITECTURES for variant in VARIANTS]


def dropout_of(variant):
    return {"dropout": 0.0 if {"pissa", "olora"} & set(VARIANTS[variant].values()) else 0.2}


def config_of(architecture, variant):
    whole = ("*.Wqkv",) if architecture == "modernbert" else ("q", "v")  # PEFT has no LoRA on slices of a layer
    return LoraConfig(targets=(*whole, "o", "f"), rank=4, alpha=7, **VARIANTS[variant], **dropout_of(variant))


def in_peft(model, config, variant):
    """The model with PEFT's LoRA, in place, and everything outside the body trained."""
    targets = [name for target in config.targets for name in find_target(model, target)]
    settings = peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=targets, lora_dropout=config.dropout, **SETTINGS[variant]
    )
    peft.tuners.lora.LoraModel(model, {"default": settings}, "default")
    return model.eval()


def take_step(model, architecture, parameters):
    """One AdamW step with dropout. Returns: The gradients."""
    model.train()
    torch.manual_seed(4)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batch = tiny.inputs(architecture)
    F.cross_entropy(model(**batch).logits, torch.arange(len(batch["input_ids"])) % 2).backward()
    gradients = [parameter.grad.clone() for parameter in parameters]
    optimizer.step()
    model.eval()
    return gradients


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_variant_equals_peft_in_logits_gradients_and_a_step(architecture, variant):
    """Where PEFT subtracts from W0, it does so in float32: here its W0 - s B0 A0 gets the digits that float64 has."""
    config, close = config_of(architecture, variant), functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    ours, theirs = tiny.model(architecture), in_peft(tiny.model(architecture), config, variant)
    apply(ours, config, seed=1)
    assert stored_bytes(ours) == bytes_of(adapter_of(ours))
    for model in (ours, theirs):
        close(logits(model, architecture), logits(tiny.model(architecture), architecture), atol=1e-5)
    ours.double(), theirs.double()
    for module, layer in ours.named_modules():
        if isinstance(layer, LoraLinear) and layer.start_a is not None:
            twin, reduced = theirs.get_submodule(module), layer.weight + layer.scale * layer.start_b @ layer.start_a
            close(twin.base_layer.weight, reduced, atol=1e-5)
            twin.base_layer.weight.data.copy_(reduced)
            products = (layer.lora_b @ layer.lora_a, twin.lora_B["default"].weight @ twin.lora_A["default"].weight)
            close(*products, atol=1e-5)
    twins, source = {}, torch.Generator().manual_seed(2)
    for name, parameter in ours.named_parameters():
        module, _, part = name.rpartition(".")
        if part in PARTS:
            twins[name] = theirs.get_parameter(f"{module}.{PARTS[part]}")
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=source)
            twins[name].data.copy_(parameter.data)
        elif parameter.requires_grad:
            twins[name] = theirs.get_parameter(name)
    assert len(twins) > 12
    close(logits(ours, architecture), logits(theirs, architecture))
    trained = [name for name, _ in trainable(ours)]
    assert any(name.endswith("lora_a") for name in trained) == (not config.frozen_a)
    mine, other = [ours.get_parameter(name) for name in trained], [twins[name].requires_grad_() for name in trained]
    close(take_step(ours, architecture, mine), take_step(theirs, architecture, other))
    close(mine, other)
    close(logits(ours, architecture), logits(theirs, architecture))


def test_peft_s_lora_fa_multiplies_the_gradient_that_is_taken_here():
    """By (r / alpha)^2 (A A^T)^-1, so that B differs after one step."""
    ours, theirs = tiny.model("bert").double(), tiny.model("bert").double()
    apply(ours, LoraConfig(rank=4, alpha=7, frozen_a=True), seed=1)
    settings = peft.LoraConfig(r=4, lora_alpha=7, target_modules=["query", "value"])
    tuner = peft.tuners.lora.LoraModel(theirs, {"default": settings}, "default")
    pairs = {name: module for name, module in ours.named_modules() if isinstance(module, LoraLinear)}
    for name, layer in pairs.items():
        theirs.get_submodule(name).lora_A["default"].weight.data.copy_(layer.lora_a)
    optimizer = create_lorafa_optimizer(tuner, r=4, lora_alpha=7, lr=1e-2)
    for model in (ours, theirs):
        model(**tiny.inputs("bert"), labels=torch.arange(5) % 2).loss.backward()
    optimizer.step()
    torch.optim.AdamW([layer.lora_b for layer in pairs.values()], lr=1e-2).step()
    for name, layer in pairs.items():
        factor = (4 / 7) ** 2 * torch.linalg.inv(layer.lora_a @ layer.lora_a.T)
        average = optimizer.state[f"model.{name}.lora"]["exp_avg_B"] / 0.1
        torch.testing.assert_close(average, layer.lora_b.grad @ factor, rtol=1e-5, atol=1e-8)
        assert not torch.allclose(theirs.get_submodule(name).lora_B["default"].weight, layer.lora_b, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "modernbert"])
def test_a_variants_adapter_is_saved_merged_swapped_and_taken_to_peft(architecture, variant, tmp_path, bases):
    config = config_of(architecture, variant)
    model = with_method(architecture, config)
    adapter = save_adapter(model, tmp_path / "ours")
    loaded = tiny.model(architecture)
    load_adapter(loaded, tmp_path / "ours")
    assert_same_logits(loaded, model, architecture)
    assert len([name for name, _ in trainable(loaded)]) == len([name for name, _ in trainable(model)])
    unmerged = logits(model, architecture)
    for merged, action in ((model, merge), (tiny.model(architecture), lambda model: swap(model, adapter))):
        before = checksum(merged.base_model.state_dict().items())
        action(merged)
        torch.testing.assert_close(logits(merged, architecture), unmerged, rtol=0, atol=1e-4)
        assert checksum(adapter_of(merged).weights.items()) == checksum(adapter.weights.items())
        unmerge(merged)
        if action is merge:
            assert checksum(merged.base_model.state_dict().items()) == before
    to_peft(tmp_path / "ours", tmp_path / "peft", base=bases / architecture)
    theirs = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "peft").eval()
    assert_same_logits(theirs, loaded, architecture)
    both = from_peft(tmp_path / "peft"), read_adapter(tmp_path / "ours")
    assert len({checksum(adapter.weights.items()) for adapter in both}) == 1


def test_dora_on_slices_merges_and_goes_to_peft_where_every_slice_has_it(tmp_path, bases):
    """Each slice has the norms of its own rows, as if it were a layer."""
    for targets in (("q", "v"), ("v", "q", "k")):
        model = with_method("modernbert", LoraConfig(targets=targets, rank=3, alpha=6, dora=True)).double()
        adapter, unmerged = adapter_of(model), logits(model, "modernbert")
        merge(model)
        torch.testing.assert_close(logits(model, "modernbert"), unmerged, rtol=0, atol=1e-10)
        if len(targets) == 2:
            with pytest.raises(UserError, match=r"Wqkv, and DoRA on all of it or on none.*: train all slices"):
                to_peft(adapter, tmp_path / "peft", base=bases / "modernbert")
    to_peft(adapter, tmp_path / "peft", base=bases / "modernbert")
    theirs = peft.PeftModel.from_pretrained(tiny.model("modernbert"), tmp_path / "peft").eval()
    assert_same_logits(theirs, model, "modernbert")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dora_in_half_precision_starts_at_the_base(dtype):
    base, model = tiny.model("bert").to(dtype), tiny.model("bert").to(dtype)
    apply(model, LoraConfig(rank=4, dora=True), seed=0)
    torch.testing.assert_close(logits(model, "bert"), logits(base, "bert"), rtol=0, atol=0.03)


def test_dora_takes_the_stock_kernels_and_no_batch_of_several_adapters(tiny_config):
    config = tiny_config("method=lora", "method.dora=true", "train.kernels=auto")
    assert config.train.kernels == "stock" and tiny_config("method=lora", "train.kernels=auto").train.kernels == "fused"
    with pytest.raises(UserError, match=r"^train\.kernels must be stock or auto with .* method\.dora, got 'fused'$"):
        tiny_config("method=lora", "method.dora=true", "train.kernels=fused")
    model = with_method("bert", LoraConfig(rank=3, dora=True))
    with pytest.raises(UserError, match="adapter one: DoRA also rescales the pretrained weights"):
        AdapterSet(tiny.model("bert"), {"one": adapter_of(model)})
    optimizer = make_optimizer(model, config.train)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = [name for name, parameter in trainable(model) if id(parameter) in decayed]
    assert names and not any(name.endswith("lora_m") for name in names)


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("at", [None, 2])
def test_an_adapter_that_starts_in_the_base_is_a_lora_of_twice_the_rank(scaling, at):
    """Of slices too, merged and moved to another dtype, at every scale."""
    settings = {"rank": 2, "ranks": {"f": 3}, "alpha": 5, "alpha_at_rank": at, "scaling": scaling}
    model = with_method("modernbert", LoraConfig(targets=("q", "v", "f"), init_a="olora", **settings)).double()
    unmerged = logits(model, "modernbert")
    merge(model)
    adapter = adapter_of(model)
    assert sorted({len(a) for a, _ in adapter.pairs().values()}) == [4, 6]
    load_adapter(loaded := tiny.model("modernbert").double(), adapter)
    unmerge(model.float().double())
    for other in (loaded, model):
        torch.testing.assert_close(logits(other, "modernbert"), unmerged, rtol=0, atol=1e-5)
