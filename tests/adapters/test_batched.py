"""One batch of several adapters: each example gets the logits of its adapter alone, on every architecture."""

import random

import pytest
import tiny
import torch
from tiny_adapters import FIVE, five, logits, with_method

from lora.adapters.adapter import Adapter, adapter_of
from lora.adapters.batched import AdapterSet
from lora.adapters.merge import remove, swap, unmerge
from lora.errors import UserError
from lora.methods.configs import HoulsbyConfig, LoraConfig
from lora.models.modules import checksum

ROWS = 12


def alone(architecture, names, dtype=torch.float64):
    """The logits of each example, from a separate model per adapter."""
    own = {
        task: logits(with_method(architecture, config, seed, outputs).to(dtype), architecture, ROWS)
        for seed, (task, (config, outputs)) in enumerate(FIVE.items())
    }
    return [own[name][row] for row, name in enumerate(names)]


def assert_rows(mixed, expected):
    for found, row in zip(mixed, expected, strict=True):
        torch.testing.assert_close(found, row, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_row_has_the_logits_of_its_adapter_alone(architecture):
    names = random.Random(3).choices(list(FIVE), k=ROWS)
    assert set(names) == set(FIVE) and names != sorted(names)
    served = AdapterSet(tiny.model(architecture).double(), five(architecture))
    mixed = served(names, **tiny.inputs(architecture, ROWS))
    assert [len(row) for row in mixed] == [FIVE[name][1] for name in names]
    assert_rows(mixed, alone(architecture, names))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own projections"])
@pytest.mark.parametrize("kinds", [["p2c", "c2p"], ["c2p"], ["p2c"]], ids="+".join)
def test_deberta_projects_relative_positions_with_each_rows_adapter(shared, kinds):
    """Every adapter also covers the projections that only positions use, if the model has them."""
    settings = {"share_att_key": shared, "pos_att_type": kinds}
    base = tiny.model("deberta-v2", **settings).double()
    found = [n for n, _ in base.named_modules() if n.endswith(("query_proj", "key_proj"))]
    assert len(found) == (4 if shared else 4 + 2 * len(kinds))
    config = LoraConfig(targets=tuple(found), rank=3)
    models = {name: with_method("deberta-v2", config, seed, **settings) for seed, name in enumerate("abc")}
    adapters = {name: adapter_of(model) for name, model in models.items()}
    names = list("abcacbbacabc")
    mixed = AdapterSet(base, adapters)(names, **tiny.inputs("deberta-v2", ROWS))
    own = {name: logits(model.double(), "deberta-v2", ROWS) for name, model in models.items()}
    assert_rows(mixed, [own[name][row] for row, name in enumerate(names)])


def test_an_adapter_without_a_head_and_one_without_a_module_of_another():
    adapters = five("roberta")
    adapters = {"headless": Adapter(adapters["cola"].method, adapters["cola"].weights, {}), "stsb": adapters["stsb"]}
    model, expected = tiny.model("roberta").double(), {}
    for name, adapter in adapters.items():
        swap(model, adapter)
        expected[name] = logits(model, "roberta")
    names = ["stsb", "headless"] * 2 + ["stsb"]
    mixed = AdapterSet(model, adapters)(names, **tiny.inputs("roberta"))
    assert_rows(mixed, [expected[name][row] for row, name in enumerate(names)])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_autocast_gives_each_row_what_its_adapter_alone_has_there(architecture):
    names = random.Random(3).choices(list(FIVE), k=ROWS)
    served = AdapterSet(tiny.model(architecture), five(architecture))
    exact = alone(architecture, names)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, expected = served(names, **tiny.inputs(architecture, ROWS)), alone(architecture, names, torch.float32)
    assert {row.dtype for row in mixed} == {row.dtype for row in expected} == {torch.bfloat16}
    error = max((found - row).abs().max() for found, row in zip(mixed, exact, strict=True))
    theirs = max((found - row).abs().max() for found, row in zip(expected, exact, strict=True))
    assert 0 < error < 3 * theirs  # both round intermediate results to bfloat16


def test_serving_is_without_dropout_and_takes_an_earlier_adapter_off():
    model, adapters = tiny.model("bert"), five("bert")
    expected = AdapterSet(tiny.model("bert"), adapters)(list(FIVE), **tiny.inputs("bert"))
    swap(model, adapters["mnli"])
    served = AdapterSet(model, adapters)
    served.train()
    for found, row in zip(served(list(FIVE), **tiny.inputs("bert")), expected, strict=True):
        assert torch.equal(found, row)


def test_what_cannot_be_served_is_refused_and_leaves_the_model():
    adapters, model = five("bert"), tiny.model("bert")
    swap(model, adapters["rte"])
    before = checksum(model.state_dict().items())
    other = tiny.model("bert", seed=9)
    swap(other, adapters["rte"], allow_other_base=True)
    weights = {n: t[:, :-1] if n.endswith("lora_a") else t for n, t in adapters["rte"].weights.items()}
    for more, message in (
        (
            {"houlsby": adapter_of(with_method("bert", HoulsbyConfig()))},
            "are for LoRA alone, and the adapter is of method houlsby",
        ),
        ({"other": adapter_of(other)}, "adapter other: the model's weights are not those that the adapter"),
        ({"narrow": Adapter(adapters["rte"].method, weights, {})}, "are for 32 x 31 weights"),
    ):
        with pytest.raises(UserError, match=message):
            AdapterSet(model, adapters | more)
    with pytest.raises(UserError, match="at least one"):
        AdapterSet(model, {})
    albert = tiny.model("albert")
    with pytest.raises(UserError, match=r"are for bert, .*, and this is a AlbertFor.*; swap serves"):
        AdapterSet(albert, {"one": adapter_of(with_method("albert", LoraConfig(targets=("*.query",))))})
    assert checksum(model.state_dict().items()) == before
    assert checksum(albert.state_dict().items()) == checksum(tiny.model("albert").state_dict().items())
    unmerge(model)


def test_names_that_nobody_loaded_and_a_wrong_number_of_them_are_refused():
    served = AdapterSet(tiny.model("bert"), five("bert"))
    with pytest.raises(UserError, match="no adapter qnli, sst2 is loaded; the adapters are mnli, rte, stsb, cola, m"):
        served(["rte", "sst2", "qnli", "rte", "rte"], **tiny.inputs("bert"))
    with pytest.raises(UserError, match="a batch of 5 examples needs 5 adapter names, one for each, got 4"):
        served(["rte"] * 4, **tiny.inputs("bert"))


def test_the_head_comes_back_in_the_models_present_dtype():
    model = tiny.model("bert")
    swap(model, five("bert")["mnli"])
    remove(model.double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert checksum(model.state_dict().items()) == checksum(tiny.model("bert").double().state_dict().items())
