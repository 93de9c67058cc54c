"""Targets by name: short names first, then full names, names as listed in messages, and globs, on any classifier."""

import re

import pytest
import tiny
import torch
import transformers
from tiny_adapters import with_method
from torch import nn

from lora.adapters.adapter import Adapter, adapter_of
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLinear
from lora.models.modules import find_target


def adapted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]


@pytest.mark.parametrize(
    ("architecture", "targets", "same"),
    [
        ("mpnet", ("*.attn.q", "*.attn.v"), ("q", "v")),
        ("bert", ("*.query", "*.layer.*.output.dense"), ("q", "o", "f")),
        ("bert", ("bert.encoder.layer.*.output.dense",), ("f",)),  # as listed in messages: not the attention's
        ("roberta", ("roberta.encoder.layer.*.attention.self.k?y",), ("k",)),
        ("distilbert", ("*.[qv]_lin",), ("q", "v")),
        ("modernbert", ("*.Wo",), ("o", "f")),
        ("modernbert", ("model.layers.*.mlp.Wi",), ("i",)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_patterns_adapt_what_short_names_do_with_the_same_start(architecture, targets, same):
    """An initial value depends on the name of its module, whatever target selects it."""
    one, other = tiny.model(architecture), tiny.model(architecture)
    apply(one, LoraConfig(targets=targets, rank=3), seed=4)
    apply(other, LoraConfig(targets=same, rank=3), seed=4)
    assert adapted(one) == adapted(other) != []
    for ours, theirs in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("architecture", tiny.OTHERS)
def test_any_classifier_is_adapted_by_each_name_that_a_message_lists(architecture):
    model = tiny.model(architecture)
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    with pytest.raises(UserError, match="the linear layers are ") as caught:
        find_target(model, "no such layer")
    listed = str(caught.value).partition("the linear layers are ")[2].split(", ")
    named = [find_target(model, name) for name in listed]
    assert sorted(n for names in named for n in names) == sorted(linear)  # each layer once: no name stands for two


def test_a_glob_leaves_the_head_alone_and_a_full_name_does_not():
    model = tiny.model("roberta")
    assert all("encoder" in name for name in find_target(model, "*dense"))
    assert find_target(model, "classifier.dense") == ["classifier.dense"]
    for target in ("classifier.*", "*.out_proj"):
        with pytest.raises(UserError, match=re.escape(f"target {target!r} is not in RobertaFor")):
            find_target(model, target)


def test_a_module_that_is_no_linear_layer_is_refused():
    """GPT-2's layers are transformers' Conv1D, whose weight is transposed. A container is no linear layer either."""
    sizes = {"vocab_size": 30, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes))
    before = list(model.state_dict())
    for target in ("*.c_attn", "transformer.h.0.attn.c_attn", "transformer.h.*.attn", "no such"):
        with pytest.raises(UserError, match=r"is not in GPT2ForSeq.*torch\.nn\.Linear.*the linear layers are score$"):
            apply(model, LoraConfig(targets=(target,)), seed=0)
    assert list(model.state_dict()) == before


def test_a_module_that_two_patterns_name_is_refused():
    before = list(tiny.model("bert").state_dict())
    for targets in (("*.query", "q"), ("*.query", "*.self.*")):
        model = tiny.model("bert")
        with pytest.raises(UserError, match=r"attention\.self\.query is named by two of"):
            apply(model, LoraConfig(targets=targets), seed=0)
        assert list(model.state_dict()) == before


def test_an_adapters_ranks_are_those_of_its_patterns():
    """As a glob, the FFN's pattern would also match the attention's projection. As a listed name it does not."""
    listed = ("bert.encoder.layer.*.output.dense", "*.attention.output.dense")
    method = LoraConfig(targets=listed, rank=2, ranks={listed[1]: 4}, alpha=8)
    adapter = adapter_of(with_method("bert", method))
    assert {name: len(a) for name, (a, _) in adapter.pairs().items()} == {
        f"bert.encoder.layer.{layer}.{place}": rank
        for layer in (0, 1)
        for place, rank in (("attention.output.dense", 4), ("output.dense", 2))
    }
    name = "bert.encoder.layer.0.attention.output.dense"
    assert adapter.scale(name) == 2 and adapter.scale("bert.encoder.layer.1.output.dense") == 4
    with pytest.raises(UserError, match=r"missing, unknown or of another shape: bert\.pooler\.dense\.lora_a, bert"):
        Adapter(method, {f"bert.pooler.dense.lora_{part}": torch.ones(2, 2) for part in "ab"}, {})
