"""LoRA on slices of ModernBERT's Wqkv: against thirds by hand, merges by hand, and PEFT on the whole matrix."""

import peft
import pytest
import tiny
import torch
from tiny_adapters import assert_same_logits, logits, with_method
from torch import nn
from torch.nn import functional as F

from lora.adapters.adapter import Adapter, adapter_of
from lora.adapters.merge import load_adapter, remove, swap, unmerge
from lora.adapters.peft import from_peft, to_peft
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraSlice, LoraSlices
from lora.models.modules import checksum, weight_of

FUSED = [f"model.layers.{layer}.attn.Wqkv" for layer in (0, 1)]
ROWS = {"q": slice(0, 32), "k": slice(32, 64), "v": slice(64, 96)}
QV, KV = LoraConfig(rank=3, alpha=7), LoraConfig(targets=("k", "v"), rank=2, ranks={"v": 4}, alpha=3, alpha_at_rank=2)
WHOLE = LoraConfig(targets=("*.Wqkv",), rank=5)
SEVERAL = {"qv": QV, "kv": KV, "whole": WHOLE, "o": LoraConfig(targets=("o", "i", "f"), rank=4)}


@pytest.mark.parametrize("config", [QV, KV], ids=["qv", "kv"])
def test_each_third_of_the_outputs_has_its_own_update(config):
    model, plain = with_method("modernbert", config).double(), tiny.model("modernbert").double()
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in FUSED:
        layer, expected = model.get_submodule(name), x @ plain.get_submodule(name).weight.T
        for target in config.targets:
            part = layer.get_submodule(target)
            scale = config.scale_at(config.rank_of(target))
            expected[..., ROWS[target]] += scale * (x @ part.lora_a.T @ part.lora_b.T)
        assert torch.allclose(layer(x), expected, atol=1e-12)
        assert [name for name, _ in layer.named_children()] == list(config.targets)
        for target, rows in ROWS.items():
            assert torch.equal(weight_of(model, f"{name}.{target}"), plain.get_submodule(name).weight[rows])


@pytest.mark.parametrize("bias", [False, True])
def test_dropout_is_on_the_input_of_a_alone_and_only_in_training(bias):
    """With the mask drawn again from the same state, the update is that of the masked and rescaled input."""
    linear = nn.Linear(32, 96, bias=bias).double()
    layer, part = LoraSlices(linear, 0.5), LoraSlice(linear.weight, ROWS["v"], 3, 1.5)
    layer.add_module("v", part)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in (part.lora_a, part.lora_b):
            factor.copy_(torch.randn(factor.shape, generator=source, dtype=factor.dtype))
    x = torch.randn(4, 32, generator=source, dtype=torch.float64)

    def expected(of_a):
        h = linear(x)
        h[:, part.rows] += 1.5 * (of_a @ part.lora_a.T @ part.lora_b.T)
        return h

    assert torch.allclose(layer.eval()(x), expected(x), atol=1e-12)
    torch.manual_seed(1)
    trained = layer.train()(x)
    torch.manual_seed(1)
    mask = F.dropout(torch.ones_like(x), 0.5)
    assert 0 < (mask == 0).sum() < mask.numel() and torch.allclose(trained, expected(x * mask), atol=1e-12)


@pytest.mark.parametrize("targets", [("v", "k", "q"), ("k", "v", "q"), ("q", "k", "v")], ids="".join)
def test_the_order_of_targets_and_of_a_file_s_tensors_changes_nothing(targets, bases, tmp_path):
    """A run_id is independent of the order. The order of parameters, in which a norm sums gradients, must be too."""
    usual, model = with_method("modernbert", LoraConfig(targets=tuple("qkv"), rank=2)), tiny.model("modernbert")
    apply(model, LoraConfig(targets=targets, rank=2), seed=1)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in usual.named_parameters()]
    adapter = adapter_of(usual)
    shuffled = Adapter(adapter.method, dict(sorted(adapter.weights.items(), reverse=True)), adapter.head, adapter.base)
    to_peft(shuffled, tmp_path / "peft", base=bases / "modernbert")
    swap(model := tiny.model("modernbert"), shuffled)
    unmerge(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in usual.named_parameters()]
    assert torch.equal(logits(model, "modernbert"), logits(usual, "modernbert"))


def test_slices_and_the_whole_matrix_take_turns_and_the_base_comes_back():
    adapters = {name: adapter_of(with_method("modernbert", SEVERAL[name], seed)) for seed, name in enumerate(SEVERAL)}
    model = tiny.model("modernbert").double()
    before = checksum(model.state_dict().items())
    for name in ("qv", "whole", "kv", "o", "whole", "qv", "qv"):
        swap(model, adapters[name])
        expected = logits(with_method("modernbert", SEVERAL[name], list(SEVERAL).index(name)).double(), "modernbert")
        torch.testing.assert_close(logits(model, "modernbert"), expected, rtol=0, atol=1e-10)
        unmerge(model)
        assert torch.equal(logits(model, "modernbert"), expected)
    remove(model)
    assert checksum(model.state_dict().items()) == before


def test_the_whole_matrix_and_a_slice_of_it_exclude_each_other():
    model, targets = tiny.model("modernbert"), ("k", "*.Wqkv")
    before = list(model.state_dict())
    for several in (targets, targets[::-1]):
        with pytest.raises(UserError, match=r"layers\.0\.attn\.Wqkv would have LoRA as a whole and on a slice of it"):
            apply(model, LoraConfig(targets=several), seed=0)
        assert list(model.state_dict()) == before
    whole, part = (adapter_of(with_method("modernbert", LoraConfig(targets=(t,), rank=2))) for t in ("*.Wqkv", "k"))
    both = Adapter(LoraConfig(targets=targets, rank=2), whole.weights | part.weights, {})
    with pytest.raises(UserError, match="as a whole and on a slice of it"):
        swap(model, both)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("config", [QV, KV, LoraConfig(targets=tuple("qkvo"), rank=3, alpha=0.7)], ids=["q", "k", "o"])
def test_peft_has_the_slices_as_blocks_with_the_same_logits_and_gradients(config, scaling, bases, tmp_path):
    if scaling == "rslora":
        config = LoraConfig(targets=config.targets, rank=3, alpha=7, scaling="rslora")
    ours = with_method("modernbert", config)
    to_peft(adapter_of(ours), tmp_path / "peft", base=bases / "modernbert")
    theirs = peft.PeftModel.from_pretrained(tiny.model("modernbert"), tmp_path / "peft", is_trainable=True).eval()
    load_adapter(again := tiny.model("modernbert"), from_peft(tmp_path / "peft"))
    for other in (theirs, again):
        assert_same_logits(other, ours, "modernbert")
    labels = torch.arange(5) % 2
    for model in (ours.double(), theirs.double()):
        F.cross_entropy(model(**tiny.inputs("modernbert")).logits, labels).backward()
    for name in FUSED:
        twin, start = theirs.base_model.model.get_submodule(name), 0
        for target, part in ours.get_submodule(name).named_children():
            columns = slice(start, start + part.rank)
            a, b = twin.lora_A["default"].weight.grad[columns], twin.lora_B["default"].weight.grad
            torch.testing.assert_close(part.lora_a.grad, a, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(part.lora_b.grad, b[ROWS[target], columns], rtol=1e-9, atol=1e-12)
            start += part.rank
        assert start == sum(config.rank_of(t) for t in config.targets if t in ROWS)
