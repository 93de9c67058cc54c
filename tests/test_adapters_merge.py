"""merge, unmerge and swap against the unmerged forward pass, the untouched base and a float64 product. No drift."""

import contextlib
import copy
import random

import pytest
import tiny
import torch
from tiny_adapters import FIVE, METHODS, five, logits, with_method
from torch import nn

from lora.adapters.adapter import Adapter, adapter_of
from lora.adapters.batched import AdapterSet
from lora.adapters.folder import write_adapter
from lora.adapters.load import load_adapter
from lora.adapters.merge import merge, remove, swap, unmerge
from lora.errors import UserError
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLinear
from lora.models.modules import checksum, is_head

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def body(model):
    """The parameters of the pretrained body, without those of head and LoRA."""
    return {n: p for n, p in model.named_parameters() if not is_head(model, n) and ".lora_" not in n}


def state(model):
    return checksum(model.state_dict().items()), [type(module) for module in model.modules()]


@pytest.mark.parametrize("targets", ["qkvo", "if", "qkvoif"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_merged_model_computes_the_unmerged_one_with_the_modules_and_state_of_the_base(architecture, targets):
    base = tiny.model(architecture).double()
    model = with_method(architecture, LoraConfig(targets=tuple(targets), rank=3)).double()
    before, unmerged = state(model), logits(model, architecture)
    merge(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert list(model.state_dict()) == list(base.state_dict())
    torch.testing.assert_close(logits(model, architecture), unmerged, rtol=0, atol=1e-10)
    assert (unmerged - logits(base, architecture)).abs().max() > 0.05
    merged = state(model)
    merge(model)  # a second merge changes nothing
    assert state(model) == merged
    unmerge(model)
    assert state(model) == before and torch.equal(logits(model, architecture), unmerged)
    unmerge(model)
    assert state(model) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_weight_is_the_exact_sum_rounded_once(dtype):
    model = with_method("bert", LoraConfig(rank=3, alpha=7)).to(dtype)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    merge(model)
    assert len(layers) == 4
    for name, layer in layers.items():
        exact = layer.weight.double() + 7 / 3 * layer.lora_b.double() @ layer.lora_a.double()
        merged = model.get_submodule(name).weight
        assert merged.dtype == dtype and type(model.get_submodule(name)) is nn.Linear and not merged.requires_grad
        one_rounding = torch.finfo(dtype).eps * exact.abs() / 2
        assert ((merged.double() - exact).abs() <= one_rounding + 2e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_swaps_among_five_adapters_leave_the_base_bit_identical(dtype):
    adapters, model = five("bert"), tiny.model("bert").to(dtype)
    before = checksum(body(model).items())
    alone = {}
    for task, adapter in adapters.items():
        fresh = tiny.model("bert").to(dtype)
        swap(fresh, adapter)
        alone[task] = checksum(fresh.state_dict().items())
    assert len(set(alone.values())) == 5
    order = random.Random(7).choices(list(adapters), k=1000)
    for number, task in enumerate(order):
        swap(model, adapters[task])
        if number % 100 == 0:
            assert checksum(model.state_dict().items()) == alone[task]
    assert checksum(model.state_dict().items()) == alone[order[-1]]
    unmerge(model)
    assert checksum(body(model).items()) == before
    remove(model)
    assert checksum(model.state_dict().items()) == checksum(tiny.model("bert").to(dtype).state_dict().items())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_swap_gives_the_adapters_own_logits_and_number_of_labels(architecture):
    adapters, model = five(architecture), tiny.model(architecture).double()
    for seed, (task, (config, outputs)) in [*enumerate(FIVE.items())] * 2:
        swap(model, adapters[task])
        own = logits(with_method(architecture, config, seed, outputs).double(), architecture)
        assert own.shape[1] == outputs == model.num_labels == model.config.num_labels
        torch.testing.assert_close(logits(model, architecture), own, rtol=0, atol=1e-10)
        assert model.applied.method == config
        labels = torch.zeros(5, dtype=torch.float64 if outputs == 1 else torch.long)
        loss = model(**tiny.inputs(architecture), labels=labels).loss
        assert torch.isfinite(loss)
        unmerge(model)
        torch.testing.assert_close(logits(model, architecture), own, rtol=0, atol=1e-10)
        assert set(adapter_of(model).weights) == set(adapters[task].weights)


def test_training_after_a_swap_changes_neither_the_adapter_nor_the_base():
    adapters, model = five("bert"), tiny.model("bert")
    kept = checksum((adapters["rte"].weights | adapters["rte"].head).items())
    before = checksum(body(model).items())
    swap(model, adapters["rte"])
    unmerge(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 8 + 4
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(**tiny.inputs("bert"), labels=torch.arange(5) % 2).loss.backward()
    optimizer.step()
    assert checksum(body(model).items()) == before
    assert checksum((adapters["rte"].weights | adapters["rte"].head).items()) == kept
    assert checksum(adapter_of(model).weights.items()) != checksum(adapters["rte"].weights.items())


def test_a_merged_model_that_is_cast_or_copied_comes_back_as_the_cast_or_copied_base():
    model = with_method("bert", LoraConfig())
    expected = checksum(body(model.to(torch.bfloat16)).items())
    model = with_method("bert", LoraConfig())
    merge(model)
    twin = copy.deepcopy(model)
    unmerge(model.to(torch.bfloat16))
    assert checksum(body(model).items()) == expected
    unmerge(twin)
    assert checksum(twin.state_dict().items()) == checksum(with_method("bert", LoraConfig()).state_dict().items())


def test_an_adapter_without_a_head_takes_the_models_own_whatever_was_there_between():
    adapters, model = five("bert"), tiny.model("bert")
    headless = Adapter(adapters["rte"].method, adapters["rte"].weights, {})
    swap(model, headless)
    expected = logits(model, "bert")
    swap(model, adapters["mnli"])
    swap(model, headless)
    assert torch.equal(logits(model, "bert"), expected)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_methods_that_have_no_merge_are_refused(method):
    model = with_method("bert", METHODS[method])
    before = state(model)
    for action in (merge, unmerge):
        with pytest.raises(UserError, match=f"has method {method}; merging is for LoRA alone"):
            action(model)
    with pytest.raises(UserError, match=f"a model without another method, and this .* has method {method}"):
        swap(model, five("bert")["rte"])
    with pytest.raises(UserError, match=f"method {method} cannot be merged"):
        swap(tiny.model("bert"), adapter_of(model))
    with pytest.raises(UserError, match="only LoRA can be taken off"):
        remove(model)
    assert state(model) == before


def test_a_model_without_a_method_is_refused():
    with pytest.raises(UserError, match="nothing to merge: this BertForSequenceClassification has no method"):
        merge(tiny.model("bert"))


def broken(adapter: Adapter, fault: str) -> Adapter:
    weights, head = dict(adapter.weights), dict(adapter.head)
    last = [name for name in weights if name.endswith("lora_b")][-1]
    if fault == "overflow":
        weights[last] = torch.full_like(weights[last], 3e38)
    elif fault == "inputs":
        name = last.replace("lora_b", "lora_a")
        weights[name] = weights[name][:, :-1]
    elif fault == "module":
        weights = {name.replace("layer.1.", "layer.7."): tensor for name, tensor in weights.items()}
    elif fault == "head":
        head["classifier.weight"] = head["classifier.weight"][:, :-1]
    elif fault == "bias":
        head["classifier.bias"] = head["classifier.bias"][:-1]
    elif fault == "half a head":
        del head["classifier.bias"]
    elif fault == "other head":
        head["score.weight"] = head.pop("classifier.weight")
    return Adapter(adapter.method, weights, head)


FAULTS = {
    "overflow": "merged weight of .* not finite in torch.float32",
    "inputs": r"are for 32 x 31 weights, and the model's is 32 x 32",
    "module": r"layer\.7\..* not a linear layer of the encoder's body but absent",
    "head": r"classifier\.weight is \(3, 31\)",
    "bias": r"differ in the number of labels: \[1, 2\]",
    "half a head": "they belong together",
    "other head": r"head has score\.weight",
}


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_swap_leaves_the_model_as_it_was(fault, merged):
    adapters = five("bert")
    model = with_method("bert", LoraConfig(targets=("q", "v"), rank=4))
    if merged:
        swap(model, adapters["rte"])
    before, applied = state(model), model.applied
    with pytest.raises(UserError, match=FAULTS[fault]):
        swap(model, broken(adapters["mnli" if fault != "bias" else "rte"], fault))
    assert state(model) == before and model.applied == applied
    swap(model, adapters["mnli"])
    fresh = tiny.model("bert")
    swap(fresh, adapters["mnli"])
    assert checksum(model.state_dict().items()) == checksum(fresh.state_dict().items())


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_an_overflow_in_half_precision_is_found_and_undone(merged):
    adapter = five("bert")["rte"]
    large = Adapter(adapter.method, {name: 1000 * tensor for name, tensor in adapter.weights.items()}, adapter.head)
    model = tiny.model("bert").half()
    if merged:
        swap(model, five("bert")["mnli"])
    before = state(model)
    with pytest.raises(UserError, match=r"not finite in torch\.float16"):
        swap(model, large)
    assert state(model) == before
    swap(tiny.model("bert"), large)


def test_large_weights_that_are_finite_are_merged_in_half_precision():
    """Their sum exceeds float16's 65,504: each is 4 * 4 * 4 * 2 = 128 or so, and a layer has 1,024 of them."""
    adapter = five("bert")["mnli"]
    fours = {name: torch.full_like(tensor, 4.0) for name, tensor in adapter.weights.items()}
    model = tiny.model("bert").half()
    swap(model, Adapter(adapter.method, fours, adapter.head))
    merged = model.bert.encoder.layer[0].attention.self.query.weight
    assert (merged.float() - 128).abs().max() < 2


def test_removal_gives_the_base_back_and_forgets_the_adapter():
    adapters, model = five("bert"), tiny.model("bert")
    before = checksum(model.state_dict().items())
    for task in ("mnli", "rte"):
        swap(model, adapters[task])
        assert checksum(model.state_dict().items()) != before
        remove(model)
        assert checksum(model.state_dict().items()) == before
        assert model.applied is None and model.kept_head == {} and model.kept_layers == {}


def test_a_failed_merge_leaves_the_model_as_it_was():
    model = with_method("bert", LoraConfig())
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.1.attention.self.value.lora_b").fill_(3e38)
    before = state(model)
    with pytest.raises(UserError, match="not finite"):
        merge(model)
    assert state(model) == before


def test_a_swap_from_a_folder_and_from_one_that_is_not_there(tmp_path):
    adapters, model = five("bert"), tiny.model("bert")
    write_adapter(adapters["stsb"], tmp_path / "stsb")
    swap(model, tmp_path / "stsb")
    before = state(model)
    with pytest.raises(UserError, match="nowhere"):
        swap(model, tmp_path / "nowhere")
    assert state(model) == before
    fresh = tiny.model("bert")
    swap(fresh, adapters["stsb"])
    assert state(fresh) == before


def test_an_adapter_of_another_base_is_refused_in_every_dtype_and_taken_when_asked():
    adapter = five("bert")["rte"]
    for dtype in DTYPES:
        swap(tiny.model("bert").to(dtype), adapter)  # its own base, also in half precision
        other = tiny.model("bert", seed=5).to(dtype)
        before = state(other)
        with pytest.raises(UserError, match="not those that the adapter was trained on"):
            swap(other, adapter)
        assert state(other) == before
        swap(other, adapter, allow_other_base=True)
        assert state(other) != before


def test_a_base_that_is_written_to_after_a_swap_is_noticed():
    adapters, model = five("bert"), tiny.model("bert")
    swap(model, adapters["rte"])
    swap(model, adapters["mnli"])
    with torch.no_grad():
        model.get_parameter("bert.embeddings.word_embeddings.weight")[0, 0] += 1
    with pytest.raises(UserError, match="not those that the adapter was trained on"):
        swap(model, adapters["rte"])


def test_a_base_that_is_written_to_through_data_is_noticed():
    """The tensor keeps its version and address: only its values reveal the write."""
    adapters, model = five("bert"), tiny.model("bert")
    swap(model, adapters["rte"])
    for weight in (
        model.get_parameter("bert.embeddings.word_embeddings.weight"),
        model.kept_layers["bert.encoder.layer.1.attention.self.value"].weight,
        model.get_parameter("bert.encoder.layer.1.output.LayerNorm.bias"),
    ):
        kept, version, before = weight.detach().clone(), weight._version, state(model)
        swap(model, adapters["rte"])
        weight.data[-1] += 1
        assert weight._version == version
        changed = state(model)
        for action in (lambda: swap(model, adapters["mnli"]), lambda: AdapterSet(model, adapters)):
            with pytest.raises(UserError, match="not those that the adapter was trained on"):
                action()
            assert state(model) == changed
        weight.data.copy_(kept)
        swap(model, adapters["rte"])
        assert state(model) == before


def test_a_changed_architecture_is_refused_by_swaps_too():
    relu, adapters = tiny.model("bert", hidden_act="relu"), five("bert")
    relu.load_state_dict(tiny.model("bert").state_dict())
    before = state(relu)
    for action in (lambda: swap(relu, adapters["rte"]), lambda: AdapterSet(relu, adapters)):
        with pytest.raises(UserError, match="hidden_act is 'relu', was 'gelu'; allow_changed_architecture=True"):
            action()
        assert state(relu) == before
    swap(relu, adapters["rte"], allow_changed_architecture=True)
    AdapterSet(relu, adapters, allow_changed_architecture=True)


SITUATIONS = {
    "inference": lambda: torch.inference_mode(),
    "no grad": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference and autocast": lambda: stacked(torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)),
}


@contextlib.contextmanager
def stacked(*contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


CASES = [(name, False, False) for name in SITUATIONS] + [("inference", True, False), ("inference", False, True)]


@pytest.mark.parametrize(("situation", "built_within", "training"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cycles_in_any_mode_leave_the_base_and_the_model_as_any_other(dtype, situation, built_within, training):
    adapters, build = five("bert"), lambda: tiny.model("bert").to(dtype).train(training)
    before = checksum(build().state_dict().items())
    model = None if built_within else build()
    with SITUATIONS[situation]():
        model = build() if built_within else model
        for number, task in enumerate(random.Random(3).choices(list(adapters), k=12)):
            swap(model, adapters[task])
            if number % 3 == 0:
                unmerge(model)
            if number % 5 == 0:
                served = AdapterSet(model, adapters)
                if dtype != torch.float16 or "autocast" not in situation:  # torch has no forward pass for this pair
                    served(list(FIVE), **tiny.inputs("bert"))
                assert served.release() is model
                assert checksum(model.state_dict().items()) == before
        swap(model, adapters["mnli"])
        saved = adapter_of(model)
    fresh = tiny.model("bert").to(dtype)
    swap(fresh, adapters["mnli"])
    assert checksum(model.state_dict().items()) == checksum(fresh.state_dict().items())
    assert not any(tensor.is_inference() for tensor in (saved.weights | saved.head).values())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert {module.training for module in model.modules()} == {training}
    unmerge(model)
    model(**tiny.inputs("bert"), labels=torch.arange(5) % 3).loss.backward()  # training works outside the context
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(moved) == 8 + 4
    remove(model)
    assert checksum(model.state_dict().items()) == before


def test_an_adapter_that_was_read_in_inference_mode_is_one_of_usual_tensors(tmp_path):
    write_adapter(five("bert")["rte"], tmp_path / "a")
    with torch.inference_mode():
        model = tiny.model("bert")
        adapter = load_adapter(model, tmp_path / "a")
    assert not any(tensor.is_inference() for tensor in (adapter.weights | adapter.head).values())
    loss = model(**tiny.inputs("bert"), labels=torch.arange(5) % 2).loss
    loss.backward()
    assert model.get_parameter("bert.encoder.layer.0.attention.self.query.lora_a").grad is not None


def test_the_mode_of_the_caller_is_as_it_was():
    model, adapter = tiny.model("bert"), five("bert")["rte"]
    swap(model, adapter)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        swap(model, adapter)
        assert torch.is_inference_mode_enabled()
        with pytest.raises(UserError):
            swap(model, "nowhere")
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        swap(model, adapter)
        assert not torch.is_grad_enabled()


def test_a_layer_that_was_replaced_while_merged_is_noticed():
    model = with_method("bert", LoraConfig())
    merge(model)
    model.bert.encoder.layer[0].attention.self.query = nn.Identity()
    with pytest.raises(UserError, match="it was replaced since"):
        unmerge(model)
