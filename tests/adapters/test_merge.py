"""merge, unmerge and swap against the unmerged forward pass, the untouched base and a float64 product. No drift."""

import contextlib
import copy
import dataclasses
import random

import pytest
import tiny
import torch
from tiny_adapters import LORA, METHODS, five, logits, state, with_method
from torch import nn

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.batched import AdapterSet
from lora.adapters.folder import write_adapter
from lora.adapters.merge import load_adapter, merge, remove, swap, unmerge
from lora.adapters.peft import to_peft
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLayer
from lora.models.modules import checksum, is_head

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def body(model):
    """The parameters of the pretrained body, without those of head and LoRA."""
    return {n: p for n, p in model.named_parameters() if not is_head(model, n) and ".lora_" not in n}


@pytest.mark.parametrize("case", LORA)
def test_a_merged_model_computes_the_unmerged_one_with_the_modules_and_state_of_the_base(case):
    architecture, config = LORA[case]
    base = tiny.model(architecture).double()
    model = with_method(architecture, config).double()
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


SLICES = LoraConfig(targets=("k", "v"), rank=2, ranks={"v": 4}, alpha=3, alpha_at_rank=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("architecture", "config", "scale"), [("bert", LoraConfig(rank=3, alpha=7), 7 / 3), ("modernbert", SLICES, 3 / 2)]
)
def test_a_merged_weight_is_the_exact_sum_rounded_once(architecture, config, scale, dtype):
    """Rows of a fused matrix outside the adapted slices keep their bits."""
    model = with_method(architecture, config).to(dtype)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    merge(model)
    assert len(layers) == (4 if architecture == "bert" else 2)
    for name, layer in layers.items():
        exact, is_adapted = layer.weight.double(), torch.zeros(len(layer.weight), dtype=torch.bool)
        for part in layer.parts(name).values():
            exact[part.rows] += scale * part.lora_b.double() @ part.lora_a.double()
            is_adapted[part.rows] = True
        merged = model.get_submodule(name).weight
        assert merged.dtype == dtype and type(model.get_submodule(name)) is nn.Linear and not merged.requires_grad
        one_rounding = torch.finfo(dtype).eps * exact.abs() / 2
        assert ((merged.double() - exact).abs() <= one_rounding + 2e-6).all()
        assert torch.equal(merged[~is_adapted], layer.weight[~is_adapted])


@pytest.mark.parametrize("dtype", DTYPES)
def test_hundreds_of_swaps_among_five_adapters_leave_the_base_bit_identical(dtype):
    adapters, model = five("bert"), tiny.model("bert").to(dtype)
    before = checksum(body(model).items())
    alone = {}
    for task, adapter in adapters.items():
        fresh = tiny.model("bert").to(dtype)
        swap(fresh, adapter)
        alone[task] = checksum(fresh.state_dict().items())
    assert len(set(alone.values())) == 5
    order = random.Random(7).choices(list(adapters), k=300)
    for number, task in enumerate(order):
        swap(model, adapters[task])
        if number % 100 == 0:
            assert checksum(model.state_dict().items()) == alone[task]
    assert checksum(model.state_dict().items()) == alone[order[-1]]
    unmerge(model)
    assert checksum(body(model).items()) == before
    remove(model)
    assert checksum(model.state_dict().items()) == checksum(tiny.model("bert").to(dtype).state_dict().items())


@pytest.mark.parametrize("case", LORA)
def test_swaps_give_each_adapters_own_logits_and_number_of_labels(case):
    architecture, config = LORA[case]
    # Frozen from the start: torch multiplies non-contiguous inputs in another way if the weight requires a gradient.
    model = tiny.model(architecture).double().requires_grad_(False)
    before, plain = checksum(model.state_dict().items()), logits(model, architecture)
    configs = {1: LoraConfig(targets=config.targets[::2], rank=2), 3: config}  # by their numbers of labels
    for outputs in (3, 1, 1, 3):
        own = with_method(architecture, configs[outputs], outputs, outputs).double()
        swap(model, adapter_of(own))
        assert outputs == model.num_labels == model.config.num_labels
        assert model.applied.method == configs[outputs]
        labels = torch.zeros(5, dtype=torch.float64 if outputs == 1 else torch.long)
        assert torch.isfinite(model(**tiny.inputs(architecture), labels=labels).loss)
        for _ in range(2):  # merged, then not
            torch.testing.assert_close(logits(model, architecture), logits(own, architecture), rtol=0, atol=1e-10)
            unmerge(model)
        assert set(adapter_of(model).weights) == set(adapter_of(own).weights)
    remove(model)
    assert checksum(model.state_dict().items()) == before
    assert torch.equal(logits(model, architecture), plain)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_methods_that_have_no_merge_are_refused(method):
    model = with_method("bert", METHODS[method])
    before = state(model)
    for action in (merge, unmerge):
        with pytest.raises(UserError, match=f"has method {method}; merging is for LoRA and PEFT"):
            action(model)
    with pytest.raises(UserError, match=f"has {type(METHODS[method]).__name__}.*, and the adapter is of LoraConfig"):
        swap(model, five("bert")["rte"])
    with pytest.raises(UserError, match=f"are for LoRA alone, and the adapter is of method {method}"):
        swap(tiny.model("bert"), adapter_of(model))
    assert state(model) == before


LAST, SEVENTH = (f"bert.encoder.layer.{layer}.attention.self.value.lora_" for layer in (1, 7))
FAULTS = {  # changes of an adapter's weights and head
    "overflow": (lambda w, h: w.update({f"{LAST}b": torch.full((32, 4), 3e38)}), "merged weight of .* not finite in"),
    "inputs": (
        lambda w, h: w.update({f"{LAST}a": torch.ones(4, 31)}),
        r"are for 32 x 31 weights, and the model's is 32 x 32",
    ),
    "module": (
        lambda w, h: w.update({f"{SEVENTH}{part}": w.pop(f"{LAST}{part}") for part in "ab"}),
        r"layer\.7\..* not a linear layer of the encoder's body",
    ),
    "head": (lambda w, h: h.update({"classifier.weight": torch.ones(3, 31)}), r"classifier\.weight is \(3, 31\)"),
    "bias": (lambda w, h: h.update({"classifier.bias": torch.ones(1)}), r"one number of labels, got \[1, 3\]"),
    "half a head": (lambda w, h: h.pop("classifier.bias"), "must have one number of labels"),
    "other head": (lambda w, h: h.update(score=h.pop("classifier.weight")), "head has score"),
}


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_swap_leaves_the_model_as_it_was(fault, merged):
    adapters, (change, message) = five("bert"), FAULTS[fault]
    model = with_method("bert", LoraConfig(targets=("q", "v"), rank=4))
    if merged:
        swap(model, adapters["rte"])
    before, applied = state(model), model.applied
    weights, head = dict(adapters["mnli"].weights), dict(adapters["mnli"].head)
    change(weights, head)
    with pytest.raises(UserError, match=message):
        swap(model, Adapter(adapters["mnli"].method, weights, head))
    assert state(model) == before and model.applied == applied
    swap(model, adapters["mnli"])
    fresh = tiny.model("bert")
    swap(fresh, adapters["mnli"])
    assert checksum(model.state_dict().items()) == checksum(fresh.state_dict().items())


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


@pytest.mark.parametrize(
    ("dtype", "low", "factor", "error"),
    [
        *((torch.float32, 1e7, 0.2, None), (torch.bfloat16, 1e3, 0.2, None), (torch.float64, 1e7, 0.2, 1e-7)),
        *((torch.float32, -1e3, 0.2, 1e-3), (torch.bfloat16, -1.0, 0.2, 0.05)),
        (torch.float16, 0.0, 4e4, None),  # beyond its largest number
    ],
)
def test_a_model_answers_in_the_units_of_scores_or_refuses_them(dtype, low, factor, error, tmp_path):
    """Their range is from `low` to `low` + 5 `factor`, and the head that answers from 0 to 5 is the truth."""
    plain = adapter_of(with_method("bert", LoraConfig(rank=3), outputs=1))
    scored = dataclasses.replace(plain, origin=Origin("mine", shift=low, factor=factor))
    load_adapter(exact := tiny.model("bert").double(), plain)
    refused = pytest.raises(UserError, match=f"{dtype} has too few numbers in the range of mine's scores")
    for put in (load_adapter, swap):
        model = tiny.model("bert").to(dtype)
        with refused if error is None else contextlib.nullcontext():
            put(model, scored)
            expected = low + factor * logits(exact, "bert")
            torch.testing.assert_close(logits(model, "bert").double(), expected, rtol=0, atol=error)
    if low == 1e7:
        with pytest.raises(UserError, match="float32 has too few numbers"):
            to_peft(scored, tmp_path / "peft")


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


def quantized():
    return torch.ao.quantization.quantize_dynamic(tiny.model("bert"), {nn.Linear}, dtype=torch.qint8)


def stored_in_bytes():
    """As bitsandbytes has it: a linear layer whose weight is no floating-point matrix."""
    model = tiny.model("bert")
    layer = model.bert.encoder.layer[0].attention.self.query
    layer.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    return model


NO_CLASSIFIERS = {
    "compiled": (lambda: torch.compile(tiny.model("bert")), r"got a OptimizedModule: .*\._orig_mod of torch\.compile"),
    "wrapped": (lambda: nn.DataParallel(tiny.model("bert")), r"got a DataParallel: .*\.module"),
    "bare": (lambda: tiny.model("bert").bert, "this BertModel has no classification head"),
    "quantized": (quantized, "is quantized or sharded"),
    "8 bits": (stored_in_bytes, r"bert\.encoder\.layer\.0\.attention\.self\.query of .* is quantized or sharded"),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about its own quantization
@pytest.mark.parametrize("kind", NO_CLASSIFIERS)
def test_what_is_no_plain_classifier_is_refused_everywhere_and_stays_frozen(kind):
    build, message = NO_CLASSIFIERS[kind]
    model, adapter = build(), five("bert")["rte"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for action in (
        lambda: apply(model, LoraConfig()),
        lambda: load_adapter(model, adapter),
        lambda: swap(model, adapter),
        lambda: AdapterSet(model, {"rte": adapter}),
        *(lambda change=change: change(model) for change in (merge, unmerge, adapter_of)),
    ):
        with pytest.raises(UserError, match=message):
            action()
    assert not any(parameter.requires_grad for parameter in model.parameters())


IN_HALVES = METHODS | {"dora": LoraConfig(rank=4, dora=True)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("architecture", "method"),
    [*(("bert", name) for name in IN_HALVES), ("modernbert", "lora"), ("deberta-v2", "full")],
)
def test_what_trains_on_a_model_in_half_precision_is_in_float32(architecture, method, dtype, tmp_path):
    """In half precision, 64% of the entries never moved in 200 steps of this size."""
    model, exact = tiny.model(architecture).to(dtype), tiny.model(architecture)
    for each in (model, exact):
        trained = apply(each, IN_HALVES[method])
    torch.testing.assert_close(logits(model, architecture).float(), logits(exact, architecture), rtol=0, atol=0.05)
    assert logits(model, architecture).dtype == (torch.float32 if method == "full" else dtype)
    trained = {name: p for name, p in model.named_parameters() if name in trained}
    with torch.no_grad():
        for p in trained.values():
            p.fill_(1.0)
            p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=0)  # half of bfloat16's step at 1 is 4e-3
    optimizer.step()
    assert all(p.dtype == torch.float32 and (p < 1).all() for p in trained.values())
    model(**tiny.inputs(architecture), labels=torch.arange(5) % 2).loss.backward()
    write_adapter(adapter_of(model), tmp_path / "a")
    fresh = tiny.model(architecture).to(dtype)
    load_adapter(fresh, tmp_path / "a")
    assert torch.equal(logits(fresh, architecture), logits(model, architecture))
    if method == "lora":
        merge(model)
        unmerge(model)
        assert torch.equal(logits(fresh, architecture), logits(model, architecture))


def test_float32_factors_compute_the_float64_product_on_a_model_in_half_precision():
    """Its error is one rounding of the output, as PEFT's."""
    model = with_method("bert", LoraConfig(rank=3, alpha=7))
    layer = model.bert.encoder.layer[0].attention.self.query
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    for part in ("weight", "bias"):
        setattr(layer, part, nn.Parameter(getattr(layer, part).bfloat16()))
    found, exact = layer(x), copy.deepcopy(layer).double()(x.double())
    plain = x.double() @ layer.weight.double().T + layer.bias.double()
    eps = torch.finfo(torch.bfloat16).eps
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= eps * (exact.abs() + plain.abs())).all()  # of W x, and of the sum


def test_a_state_dict_is_not_loaded_into_a_merged_model():
    """`unmerge` would bring the earlier weights back."""
    model, other = with_method("bert", LoraConfig()), tiny.model("bert", seed=4)
    merge(model)
    before = checksum(model.state_dict().items())
    for target in (model, copy.deepcopy(model), nn.ModuleList([model])):
        with pytest.raises(UserError, match="this adapter is merged: call unmerge before"):
            target.load_state_dict(other.state_dict(), strict=False)
    assert checksum(model.state_dict().items()) == before
    remove(model)
    model.load_state_dict(other.state_dict())
    assert checksum(model.state_dict().items()) == checksum(other.state_dict().items())


SITUATIONS = {
    "inference": [torch.inference_mode],
    "no grad": [torch.no_grad],
    "inference and autocast": [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_cycles_in_any_mode_leave_the_base_and_the_model_as_any_other(situation):
    adapters = five("bert")
    before = checksum(tiny.model("bert").state_dict().items())
    model = tiny.model("bert")
    with contextlib.ExitStack() as stack:
        for enter in SITUATIONS[situation]:
            stack.enter_context(enter())
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        for number, task in enumerate(random.Random(3).choices(list(adapters), k=12)):
            swap(model, adapters[task])
            if number % 3 == 0:
                unmerge(model)
        load_adapter(model, adapters["mnli"])
        saved = adapter_of(model)
        with pytest.raises(UserError):
            swap(model, "nowhere")
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert not any(tensor.is_inference() for tensor in (saved.weights | saved.head).values())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(**tiny.inputs("bert"), labels=torch.arange(5) % 3).loss.backward()  # training works outside the context
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(moved) == 8 + 4
    remove(model)
    assert checksum(model.state_dict().items()) == before
