"""Batches and swaps of adapters on classifiers outside the table: each is right, or refused when the set is built."""

import copy

import pytest
import tiny
import torch
import transformers
from tiny_adapters import five, logits, with_method
from torch import nn

from lora.adapters.adapter import adapter_of
from lora.adapters.batched import AdapterSet
from lora.adapters.merge import merge, remove, swap
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.models.architectures import numbered
from lora.models.modules import checksum, is_head

# Layers that get no matrix per row: token-first ones, those of all rows' positions, and those of one vector per row.
NOT_BY_ROWS = {
    "albert": {"albert.pooler"},
    "deberta": {f"deberta.encoder.layer.*.attention.self.{name}" for name in ("pos_proj", "pos_q_proj")},
    "xlnet": {f"transformer.layer.*.ff.layer_{number}" for number in (1, 2)},
    "longformer": {
        f"longformer.encoder.layer.*.attention.self.{name}{end}"
        for name in ("query", "key", "value")
        for end in ("", "_global")
    },
}


def layers(architecture, by_rows=True) -> list[str]:
    """The linear layers of the body, with `*` for numbers: those that get rows x tokens x width, or the others."""
    model = tiny.model(architecture)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = dict.fromkeys(numbered(name) for name in names if not is_head(model, name))
    return [name for name in found if (name in NOT_BY_ROWS.get(architecture, ())) != by_rows]


def two(architecture, targets):
    """Models with adapters of other ranks, targets and numbers of labels, by name."""
    one, other = LoraConfig(targets=tuple(targets), rank=3, alpha=9), LoraConfig(targets=tuple(targets[::2]), rank=2)
    return {"a": with_method(architecture, one, 1, outputs=3), "b": with_method(architecture, other, 2)}


@pytest.mark.parametrize("architecture", sorted({*tiny.OTHERS} - {"xlnet"}))
def test_each_row_has_the_logits_of_its_adapter_alone(architecture):
    """Every layer that can be served has LoRA. With three rows of three tokens, only logits show swapped dimensions."""
    models = {name: model.double() for name, model in two(architecture, layers(architecture)).items()}
    adapters = {name: adapter_of(model) for name, model in models.items()}
    served = AdapterSet(tiny.model(architecture).double(), adapters)
    for rows, length in ((3, 3), (3, 5), (5, 3)):
        ids, names = tiny.inputs(architecture, rows, length)["input_ids"], list("abaab")[:rows]
        for row, found in enumerate(served(names, input_ids=ids)):
            with torch.no_grad():
                expected = models[names[row]](input_ids=ids[row : row + 1]).logits[0]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", NOT_BY_ROWS)
def test_each_layer_without_one_matrix_per_row_is_refused(architecture):
    assert set(layers(architecture, by_rows=False)) == NOT_BY_ROWS[architecture]
    model = tiny.model(architecture)
    for layer in layers(architecture, by_rows=False):
        adapter = adapter_of(with_method(architecture, LoraConfig(targets=(layer,), rank=2)))
        with pytest.raises(UserError, match=r"the inputs of .* must be rows x tokens x width; a batch of 7 rows"):
            AdapterSet(model, {"one": adapter})


def test_a_refusal_says_what_the_layer_gets_and_leaves_the_model():
    model = tiny.model("xlnet")
    adapters = {name: adapter_of(each) for name, each in two("xlnet", layers("xlnet", by_rows=False)).items()}
    swap(model, adapters["a"])
    model.transformer.train()
    before, expected = checksum(model.state_dict().items()), [module.training for module in model.modules()]
    with pytest.raises(UserError) as caught:
        AdapterSet(model, adapters)
    assert str(caught.value) == (
        "this XLNetForSequenceClassification cannot mix adapters in a batch: the inputs of "
        "transformer.layer.0.ff.layer_1 must be rows x tokens x width; a batch of 7 rows and 5 tokens gives it 5 x 7 x "
        "32 (swap serves one adapter at a time)"
    )
    assert checksum(model.state_dict().items()) == before
    assert [module.training for module in model.modules()] == expected
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.applied.method == adapters["a"].method


def test_a_layer_that_the_encoder_does_not_call_is_refused():
    """ESM's regression of contacts is in the body, and no classification calls it."""
    settings = transformers.EsmConfig(vocab_size=30, pad_token_id=0, mask_token_id=4, **tiny.COMMON)
    model = transformers.AutoModelForSequenceClassification.from_config(settings).eval()
    adapter = adapter_with(copy.deepcopy(model), "*.regression", rank=1)
    with pytest.raises(UserError, match=r"the inputs of esm\.contact_head\.regression must be .* gives it none \("):
        AdapterSet(model, {"contacts": adapter})


def adapter_with(model, target, rank=2):
    apply(model, LoraConfig(targets=(target,), rank=rank), seed=0)
    return adapter_of(model)


def test_an_encoder_that_fails_on_plain_tokens_is_refused_with_its_own_reason():
    """X-MOD needs a language."""
    settings = transformers.XmodConfig(vocab_size=30, languages=["en_XX"], **tiny.COMMON)
    model = transformers.AutoModelForSequenceClassification.from_config(settings).eval()
    adapter = adapter_with(copy.deepcopy(model), "*.query")
    with pytest.raises(UserError, match=r"a batch of 7 rows and 5 tokens fails: ValueError: Input language unknown\."):
        AdapterSet(model, {"one": adapter})
    model.set_default_language("en_XX")
    assert len(AdapterSet(model, {"one": adapter})(["one"], input_ids=torch.tensor([[0, 7, 8, 2]]))) == 1


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "modernbert"])
def test_the_check_is_one_forward_pass_and_draws_nothing(architecture):
    model, calls = tiny.model(architecture).train(), []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
    before = torch.get_rng_state()
    AdapterSet(model, five(architecture))
    assert calls == [False] and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", tiny.OTHERS)
def test_swaps_give_each_adapters_logits_and_then_the_base_exactly(architecture):
    # Frozen from the start: torch multiplies non-contiguous inputs in another way if the weight requires a gradient.
    model, adapters, expected = tiny.model(architecture).double().requires_grad_(False), {}, {}
    before, plain = checksum(model.state_dict().items()), logits(model, architecture)
    every = layers(architecture) + layers(architecture, by_rows=False)
    for name, each in two(architecture, [name for name in every if name != "albert.pooler"]).items():
        adapters[name], expected[name] = adapter_of(each.double()), logits(each, architecture)
        merge(each)
        torch.testing.assert_close(logits(each, architecture), expected[name], rtol=0, atol=1e-10)
    for name in "abba":
        swap(model, adapters[name])
        torch.testing.assert_close(logits(model, architecture), expected[name], rtol=0, atol=1e-10)
    remove(model)
    assert checksum(model.state_dict().items()) == before
    assert torch.equal(logits(model, architecture), plain)
