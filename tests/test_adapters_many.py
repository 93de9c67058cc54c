"""One batch of several adapters: each example gets the logits of its adapter alone, on every architecture."""

import dataclasses
import random

import pytest
import tiny
import torch
from tiny_adapters import FIVE, five, logits, with_method

from lora.adapters.adapter import Adapter, adapter_of
from lora.adapters.batched import AdapterSet, ManyLora
from lora.adapters.folder import write_adapter
from lora.adapters.merge import swap, unmerge
from lora.errors import UserError
from lora.methods.configs import HoulsbyConfig, LoraConfig
from lora.models.modules import checksum

ROWS = 12


def alone(architecture, names, dtype=torch.float64, **extra):
    """The logits of each example, from a separate model per adapter. None for an example without adapter."""
    found = [None] * ROWS
    for seed, (task, (config, outputs)) in enumerate(FIVE.items()):
        model = with_method(architecture, config, seed, outputs, **extra).to(dtype)
        with torch.no_grad():
            own = model(**tiny.inputs(architecture, ROWS)).logits
        for row in range(ROWS):
            if names[row] == task:
                found[row] = own[row]
    return found


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_row_has_the_logits_of_its_adapter_alone(architecture):
    names = random.Random(3).choices(list(FIVE), k=ROWS)
    assert set(names) == set(FIVE) and names != sorted(names)
    served = AdapterSet(tiny.model(architecture).double(), five(architecture))
    mixed = served(names, **tiny.inputs(architecture, ROWS))
    assert len(mixed) == ROWS
    for row, expected in enumerate(alone(architecture, names)):
        assert mixed[row].shape == expected.shape == (FIVE[names[row]][1],)
        torch.testing.assert_close(mixed[row], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own projections"])
@pytest.mark.parametrize("kinds", [["p2c", "c2p"], ["c2p"], ["p2c"]], ids="+".join)
def test_deberta_projects_relative_positions_with_each_rows_adapter(shared, kinds, monkeypatch):
    """Every adapter also covers the projections that only positions use, if the model has them."""
    own = {"share_att_key": shared, "pos_att_type": kinds}
    original = tiny.config
    monkeypatch.setattr(tiny, "config", lambda architecture, **extra: changed(original(architecture, **extra), own))
    reference = tiny.model("deberta-v2")
    found = [n for n, _ in reference.named_modules() if n.endswith(("query_proj", "key_proj"))]
    assert len(found) == (4 if shared else 4 + 2 * len(kinds))
    models = {}
    for seed, name in enumerate("abc"):
        models[name] = with_method("deberta-v2", LoraConfig(targets=tuple(found), rank=3), seed).double()
    adapters = {name: adapter_of(model.float()) for name, model in models.items()}
    names = list("abcacbbacabc")
    mixed = AdapterSet(tiny.model("deberta-v2").double(), adapters)(names, **tiny.inputs("deberta-v2", ROWS))
    for row, name in enumerate(names):
        with torch.no_grad():
            expected = models[name].double()(**tiny.inputs("deberta-v2", ROWS)).logits[row]
        torch.testing.assert_close(mixed[row], expected, rtol=0, atol=1e-10)


def changed(settings, values):
    for key, value in values.items():
        setattr(settings, key, value)
    return settings


def test_one_row_and_one_adapter_from_its_folder(tmp_path):
    adapters = five("deberta-v2")
    write_adapter(adapters["stsb"], tmp_path / "stsb")
    served = AdapterSet(tiny.model("deberta-v2").double(), {"stsb": tmp_path / "stsb"})
    row = {key: value[:1] for key, value in tiny.inputs("deberta-v2").items()}
    swap(alone := tiny.model("deberta-v2").double(), adapters["stsb"])
    with torch.no_grad():
        torch.testing.assert_close(served(["stsb"], **row)[0], alone(**row).logits[0], rtol=0, atol=1e-10)
    assert served([], **{key: value[:0] for key, value in row.items()}) == []


def test_an_adapter_without_a_head_and_one_without_a_module_of_another():
    adapters = five("roberta")
    adapters = {"headless": Adapter(adapters["cola"].method, adapters["cola"].weights, {}), "stsb": adapters["stsb"]}
    model = tiny.model("roberta").double()
    expected = {}
    for name, adapter in adapters.items():
        swap(model, adapter)
        expected[name] = logits(model, "roberta")
    served = AdapterSet(model, adapters)
    mixed = served(["stsb", "headless"] * 2 + ["stsb"], **tiny.inputs("roberta"))
    for row, found in enumerate(mixed):
        torch.testing.assert_close(found, expected[("stsb", "headless")[row % 2]][row], rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_the_model_comes_back_as_it_was_pretrained(architecture):
    model, adapters = tiny.model(architecture), five(architecture)
    before, plain = checksum(model.state_dict().items()), logits(model, architecture)
    swap(model, adapters["mnli"])
    served = AdapterSet(model, adapters)
    assert sum(isinstance(module, ManyLora) for module in model.modules()) == 2 * 5
    served(list(FIVE), **tiny.inputs(architecture))
    back = served.release()
    assert back is model and checksum(back.state_dict().items()) == before
    assert torch.equal(logits(back, architecture), plain)


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


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_serving_is_without_dropout_and_the_model_comes_back_in_its_own_mode(training):
    model, adapters = tiny.model("bert"), five("bert")
    expected = AdapterSet(tiny.model("bert"), adapters)(list(FIVE), **tiny.inputs("bert"))
    model.train(training)
    model.bert.embeddings.train(not training)  # one module in another mode than the rest
    before = modes(model)
    assert len(set(before)) == 2
    served = AdapterSet(model, adapters)
    holder = torch.nn.ModuleList([served])
    for train in (lambda: served.train(), lambda: holder.train(), lambda: model.train(), lambda: model.bert.train()):
        assert train() is not None
        for found, row in zip(served(list(FIVE), **tiny.inputs("bert")), expected, strict=True):
            assert torch.equal(found, row)
        assert not served.training and not any(modes(model))
    assert modes(served.release()) == before


def test_a_released_set_says_so():
    served = AdapterSet(tiny.model("bert"), five("bert"))
    served.release()
    for action in (lambda: served(list(FIVE), **tiny.inputs("bert")), served.release):
        with pytest.raises(UserError, match="has released its model"):
            action()


def test_a_set_that_is_cast_gives_the_cast_model_back():
    served = AdapterSet(tiny.model("bert"), five("bert"))
    back = served.to(torch.bfloat16).release()
    assert checksum(back.state_dict().items()) == checksum(tiny.model("bert").to(torch.bfloat16).state_dict().items())


def test_what_overflows_in_half_precision_is_refused():
    adapters, model = five("bert"), tiny.model("bert").half()
    before = checksum(model.state_dict().items())
    factors = {name: 3e5 * tensor for name, tensor in adapters["rte"].weights.items()}
    scaled = {name: 500 * tensor if name.endswith("_b") else tensor for name, tensor in adapters["rte"].weights.items()}
    head = {name: 1e6 * tensor for name, tensor in adapters["rte"].head.items()}
    for large in (
        Adapter(adapters["rte"].method, factors, {}),
        Adapter(dataclasses.replace(adapters["rte"].method, alpha=4000), scaled, {}),
        Adapter(adapters["rte"].method, adapters["rte"].weights, head),
    ):
        with pytest.raises(UserError, match=r"adapter large: .* not finite in torch\.float16"):
            AdapterSet(model, adapters | {"large": large})
        assert checksum(model.state_dict().items()) == before


def test_what_cannot_be_served_is_refused_and_leaves_the_model():
    adapters, model = five("bert"), tiny.model("bert")
    swap(model, adapters["rte"])
    before = checksum(model.state_dict().items())
    with pytest.raises(UserError, match="at least one"):
        AdapterSet(model, {})
    with pytest.raises(UserError, match="method houlsby cannot be merged"):
        AdapterSet(model, adapters | {"houlsby": adapter_of(with_method("bert", HoulsbyConfig()))})
    with pytest.raises(UserError, match="adapter other: the model's weights are not those that the adapter"):
        AdapterSet(model, adapters | {"other": other_base()})
    weights = {n: t[:, :-1] if n.endswith("lora_a") else t for n, t in adapters["rte"].weights.items()}
    narrow = Adapter(adapters["rte"].method, weights, {})
    with pytest.raises(UserError, match="are for 32 x 31 weights"):
        AdapterSet(model, adapters | {"narrow": narrow})
    assert checksum(model.state_dict().items()) == before
    unmerge(model)


def other_base():
    model = tiny.model("bert", seed=9)
    swap(model, five("bert")["rte"], allow_other_base=True)
    return adapter_of(model)


def test_names_that_nobody_loaded_and_a_wrong_number_of_them_are_refused():
    served = AdapterSet(tiny.model("bert"), five("bert"))
    with pytest.raises(
        UserError, match="no adapter qnli, sst2 is loaded; the adapters are mnli, rte, stsb, cola, mrpc"
    ):
        served(["rte", "sst2", "qnli", "rte", "rte"], **tiny.inputs("bert"))
    with pytest.raises(UserError, match="a batch of 5 examples needs 5 adapter names, one for each, got 4"):
        served(["rte"] * 4, **tiny.inputs("bert"))
