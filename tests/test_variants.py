"""Variants of LoRA against PEFT in float64, on every architecture: logits, gradients, one training step; adapters."""

import functools

import peft
import pytest
import tiny
import torch
from tiny_adapters import assert_same_logits, logits, with_method
from torch.nn import functional as F

from lora.adapters.adapter import adapter_of
from lora.adapters.folder import read_adapter, save_adapter
from lora.adapters.merge import load_adapter, merge, swap, unmerge
from lora.adapters.peft import from_peft, to_peft
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.models.modules import checksum, find_target, trainable

VARIANTS = {"frozen_a": {"frozen_a": True}}
# what PEFT calls them, beside the frozen A, which in PEFT is a setting of an optimizer
SETTINGS = {"frozen_a": {}}
PARTS = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
CASES = [(architecture, variant) for architecture in tiny.ARCHITECTURES for variant in VARIANTS]


def config_of(architecture, variant):
    whole = ("*.Wqkv",) if architecture == "modernbert" else ("q", "v")  # PEFT has no LoRA on slices of a layer
    return LoraConfig(targets=(*whole, "o", "f"), rank=4, alpha=7, **VARIANTS[variant])


def in_peft(model, config, variant):
    """The model with PEFT's LoRA, in place, and everything outside the body trained."""
    targets = [name for target in config.targets for name in find_target(model, target)]
    settings = peft.LoraConfig(r=4, lora_alpha=7, target_modules=targets, **SETTINGS[variant])
    peft.tuners.lora.LoraModel(model, {"default": settings}, "default")
    return model


def take_step(model, architecture, parameters):
    """One AdamW step. Returns: The gradients."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batch = tiny.inputs(architecture)
    F.cross_entropy(model(**batch).logits, torch.arange(len(batch["input_ids"])) % 2).backward()
    gradients = [parameter.grad.clone() for parameter in parameters]
    optimizer.step()
    return gradients


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_variant_equals_peft_in_logits_gradients_and_a_step(architecture, variant):
    config, close = config_of(architecture, variant), functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    ours, theirs = tiny.model(architecture), in_peft(tiny.model(architecture), config, variant).double()
    apply(ours, config, seed=1)
    ours.double()
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


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_variants_adapter_is_saved_merged_swapped_and_taken_to_peft(architecture, variant, tmp_path):
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
    tiny.model(architecture).base_model.save_pretrained(tmp_path / "base")
    to_peft(tmp_path / "ours", tmp_path / "peft", base=tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "peft").eval()
    assert_same_logits(theirs, loaded, architecture)
    both = from_peft(tmp_path / "peft"), read_adapter(tmp_path / "ours")
    assert len({checksum(adapter.weights.items()) for adapter in both}) == 1
