"""Adapters handed to PEFT and taken from it and from loralib: their models are the truth; round trips are exact."""

import collections
import itertools
import json
import os
import pickle

import loralib
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import METHODS, logits, with_method
from torch import nn

import lora
from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.files import read_adapter, save_adapter, write_adapter
from lora.adapters.loralib_file import from_loralib
from lora.adapters.merge import swap, unmerge
from lora.adapters.peft_folder import CONFIG, WEIGHTS, from_peft, to_peft
from lora.adapters.place import place
from lora.errors import UserError
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLinear
from lora.surgery import checksum, find_target

TARGET_SETS = [subset for size in range(1, 5) for subset in itertools.combinations("qkvo", size)]
HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "electra": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
}
# Every target set on one architecture, two of them on the others.
CASES = [("bert", targets) for targets in TARGET_SETS]
CASES += [("bert", ("i", "f"))]
CASES += [
    (other, targets)
    for other in HEADS
    for targets in (("q", "v"), tuple("qkvo"), tuple("qkvoif"))
    if other != "bert" or "i" in targets
]
VARIANTS = {
    "ranks": LoraConfig(targets=("q", "v", "o"), rank=3, ranks={"o": 5}, alpha=6),
    "ranks, alpha in ratio": LoraConfig(targets=("q", "v"), rank=2, ranks={"v": 4}, alpha=3, alpha_at_rank=2),
    "rslora": LoraConfig(targets=("q", "v"), rank=4, ranks={"q": 2}, alpha=3, scaling="rslora"),
    "dropout": LoraConfig(targets=("k",), rank=4, alpha=7.5, dropout=0.1),
}


def small(architecture, config, seed=1, outputs=2):
    """As `with_method`, with LoRA of the size that training gives it."""
    model = with_method(architecture, config, seed, outputs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.mul_(0.3)
    return model


def same(one: Adapter, other: Adapter) -> bool:
    tensors = [checksum((adapter.weights | adapter.head).items()) for adapter in (one, other)]
    scales = [{name: adapter.scale(name) for name in adapter.pairs()} for adapter in (one, other)]
    return tensors[0] == tensors[1] and scales[0] == scales[1] and set(one.head) == set(other.head)


def in_peft(folder, architecture, outputs=2):
    base = tiny.model(architecture, outputs)
    base.base_model.load_state_dict(tiny.model(architecture).base_model.state_dict())
    return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("headed", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize(("architecture", "targets"), CASES, ids="".join)
def test_peft_computes_the_same_logits_and_the_round_trip_is_exact(architecture, targets, headed, tmp_path):
    model = small(architecture, LoraConfig(targets=targets, rank=3, alpha=7), outputs=3 if headed else 2)
    adapter = adapter_of(model, origin=Origin(task="mnli", run_id="r-01234567"))
    if not headed:
        adapter = Adapter(adapter.method, adapter.weights, {}, adapter.base, adapter.origin)
        place(model := tiny.model(architecture), adapter)
    to_peft(adapter, tmp_path / "peft")
    theirs = in_peft(tmp_path / "peft", architecture, outputs=3 if headed else 2)
    found = logits(theirs, architecture)
    torch.testing.assert_close(found, logits(model, architecture), rtol=0, atol=1e-6)
    assert (found - logits(tiny.model(architecture), architecture)).abs().max() > 1e-3 if not headed else True
    back = from_peft(tmp_path / "peft")
    assert same(back, adapter)
    assert (back.method, back.base, back.origin) == (adapter.method, adapter.base, adapter.origin)


@pytest.mark.parametrize("headed", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize(("architecture", "targets"), CASES, ids="".join)
def test_what_peft_saves_gives_the_same_logits_here_and_goes_back_unchanged(architecture, targets, headed, tmp_path):
    base = tiny.model(architecture)
    modules = [name.split(".", 1)[-1] for target in targets for name in find_target(base, target)]
    settings = {"modules_to_save": HEADS[architecture], "task_type": "SEQ_CLS"} if headed else {}
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=modules, **settings)).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = from_peft(tmp_path / "theirs")
    assert bool(adapter.head) == headed
    ours = tiny.model(architecture)
    place(ours, adapter)
    assert sum(isinstance(module, LoraLinear) for module in ours.modules()) == 2 * len(targets)
    torch.testing.assert_close(logits(ours, architecture), logits(theirs, architecture), rtol=0, atol=1e-6)
    to_peft(adapter, tmp_path / "back")
    original, back = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert checksum(back.items()) == checksum(original.items())


def shake(model, seed=3):
    source = torch.Generator().manual_seed(seed)
    moved = [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]
    assert moved
    with torch.no_grad():
        for parameter in moved:
            parameter += 0.05 * torch.randn(parameter.shape, generator=source)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_and_scales_of_every_kind_cross_over_both_ways(variant, tmp_path):
    config = VARIANTS[variant]
    model = small("roberta", config)
    adapter = adapter_of(model)
    to_peft(adapter, tmp_path / "peft")
    theirs = in_peft(tmp_path / "peft", "roberta")
    torch.testing.assert_close(logits(theirs, "roberta"), logits(model, "roberta"), rtol=0, atol=1e-6)
    theirs.save_pretrained(tmp_path / "again")  # PEFT's own words for it, and nothing beside them
    (tmp_path / "again" / "lora.json").unlink(missing_ok=True)
    back = from_peft(tmp_path / "again")
    assert same(back, adapter) and back.method.dropout == config.dropout and back.base is None
    assert from_peft(tmp_path / "peft").method == config


def test_a_head_that_is_saved_in_part_leaves_the_rest_to_the_model(tmp_path):
    """PEFT's default for classification: the classifier, and not BERT's pooler."""
    settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(tiny.model("bert"), settings).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = from_peft(tmp_path / "theirs")
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}
    ours = tiny.model("bert")
    swap(ours, adapter)
    unmerge(ours)
    torch.testing.assert_close(logits(ours, "bert"), logits(theirs, "bert"), rtol=0, atol=1e-6)
    assert save_adapter(ours, tmp_path / "ours").base is not None
    assert same(Adapter(adapter.method, adapter.weights, {}), Adapter(adapter.method, adapter_of(ours).weights, {}))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_other_methods_have_no_peft_folder(method, tmp_path):
    with pytest.raises(UserError, match=f"is for LoRA, and the adapter is of method {method}"):
        to_peft(adapter_of(with_method("bert", METHODS[method])), tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


def edit(folder, **changes):
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | changes))


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def to_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def link_out(folder):
    (folder / WEIGHTS).rename(folder.parent / "weights")
    (folder / WEIGHTS).symlink_to("../weights")


STRANGE = {
    "dora": (lambda f: edit(f, use_dora=True), "cannot be taken over: use_dora=True"),
    "bias": (lambda f: edit(f, bias="all"), "cannot be taken over: bias='all'"),
    "unknown": (lambda f: edit(f, new_trick=3), "cannot be taken over: new_trick=3"),
    "pissa": (lambda f: edit(f, init_lora_weights="pissa"), "'pissa', which changes the base"),
    "other type": (lambda f: edit(f, peft_type="IA3"), "peft_type must be LORA, got 'IA3'"),
    "rank": (lambda f: edit(f, r=4), "says rank 4 for .*, and its lora_A has rank 3"),
    "text": (lambda f: edit(f, r="3"), "of a kind that it must not be: r='3'"),
    "alpha": (lambda f: edit(f, lora_alpha=None), "lora_alpha=None"),
    "regular expression": (lambda f: edit(f, alpha_pattern={"(a+)+$": 3}), "no regular expressions"),
    "own scales": (lambda f: edit(f, alpha_pattern={"layer.1.attention.self.query": 3}), "scales of their own"),
    "beside": (lambda f: edit(f, lora_alpha=9), r"lora\.json says a factor of 2.*, and adapter_config\.json 3"),
    "pickle": (to_pickle, r"has adapter_model\.bin, a pickle, which is not read"),
    "link": (link_out, "an adapter's files lie in its folder"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"has no file adapter_config\.json"),
    "cut short": (lambda f: os.truncate(f / WEIGHTS, 900), "is not a whole safetensors file"),
    "other tensor": (lambda f: retensor(f, lambda t: t.update(x=torch.ones(1))), "has x, which is neither LoRA's"),
    "not saved": (lambda f: edit(f, modules_to_save=None), "nor of modules_to_save"),
    "half": (lambda f: retensor(f, lambda t: t.pop(sorted(t)[0])), "lora_b of .*, but not its other|has lora_"),
    "nan": (lambda f: retensor(f, lambda t: t[sorted(t)[0]].fill_(torch.nan)), "not finite"),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_what_cannot_be_taken_over_is_refused(fault, tmp_path):
    to_peft(adapter_of(small("bert", LoraConfig(rank=3, alpha=6))), tmp_path / "peft")
    change, message = STRANGE[fault]
    change(tmp_path / "peft")
    with pytest.raises(UserError, match=message):
        from_peft(tmp_path / "peft")


def loralib_model(architecture="roberta", rank=4, alpha=16, targets="qv"):
    """The tiny model with loralib's own layers, as the released code has them."""
    model = tiny.model(architecture)
    for target in targets:
        for name in find_target(model, target):
            linear = model.get_submodule(name)
            layer = loralib.Linear(linear.in_features, linear.out_features, r=rank, lora_alpha=alpha)
            layer.weight, layer.bias = linear.weight, linear.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "classifier" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    return model


def released_file(model, path):
    """As the released checkpoints are: LoRA's tensors and the head's, pickled."""
    tensors = loralib.lora_state_dict(model) | {n: t for n, t in model.state_dict().items() if "classifier" in n}
    torch.save(tensors, path)
    return path


def test_the_released_form_gives_loralibs_logits(tmp_path):
    model = loralib_model()
    file = released_file(model, tmp_path / "lora.bin")
    assert "roberta.encoder.layer.0.attention.self.query.lora_A" in torch.load(file)
    adapter = from_loralib(file, alpha=16)
    assert "classifier.dense.weight" in adapter.head and adapter.method.alpha == 16 and adapter.method.rank == 4
    ours = tiny.model("roberta")
    place(ours, adapter)
    expected = logits(model, "roberta")
    torch.testing.assert_close(logits(ours, "roberta"), expected, rtol=0, atol=1e-6)
    wrong = tiny.model("roberta")
    place(wrong, from_loralib(file, alpha=8))
    assert (logits(wrong, "roberta") - expected).abs().max() > 1e-3
    write_adapter(adapter, tmp_path / "ours")
    to_peft(tmp_path / "ours", tmp_path / "peft")
    assert same(from_peft(tmp_path / "peft"), adapter) and same(read_adapter(tmp_path / "ours"), adapter)
    torch.testing.assert_close(logits(in_peft(tmp_path / "peft", "roberta"), "roberta"), expected, rtol=0, atol=1e-6)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_what_loralib_files_may_not_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = released_file(loralib_model(), tmp_path / "lora.bin")
    with pytest.raises(UserError, match="does not say its alpha"):
        from_loralib(file)
    with pytest.raises(UserError, match="alpha must be > 0"):
        from_loralib(file, alpha=-1)
    tensors = torch.load(file)
    first = next(iter(tensors))

    def saved(content):
        torch.save(content, tmp_path / "other.bin")
        return tmp_path / "other.bin"

    body = {"roberta.encoder.layer.0.attention.self.query.weight": torch.ones(2, 2)}
    for content, message in (
        (tensors | body, "tensors of the encoder itself: roberta.encoder.layer.0"),
        ({n: t for n, t in tensors.items() if "lora" not in n}, "no tensor whose name ends in lora_A or lora_B"),
        ({n: t for n, t in tensors.items() if n != first}, "but not its other factor"),
        (tensors | {first: torch.full_like(tensors[first], torch.inf)}, "not finite"),
        (tensors | {first: torch.ones(())}, "a matrix of a rank above 0"),
        ([tensors], "is not a state dict"),
        (tensors | {"step": 3}, "is not a state dict"),
    ):
        path = saved(content)
        with pytest.raises(UserError, match=message):
            from_loralib(path, alpha=16)
    for written in (
        pickle.dumps(Bomb(), protocol=2),
        pickle.dumps({"roberta.x.lora_A": Bomb()}, protocol=2),
        pickle.dumps(collections.OrderedDict(x=nn.Linear), protocol=2),
        b"",
        b"text",
        file.read_bytes()[:500],
    ):
        (tmp_path / "other.bin").write_bytes(written)
        with pytest.raises(UserError, match="cannot be read as a file of tensors"):
            from_loralib(tmp_path / "other.bin", alpha=16)
    torch.save({"roberta.x.lora_A": Bomb()}, tmp_path / "other.bin")
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        from_loralib(tmp_path / "other.bin", alpha=16)
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        from_loralib(tmp_path / "nowhere.bin", alpha=16)
    assert not (tmp_path / "executed").exists()


def test_every_architecture_crosses_over():
    assert {architecture for architecture, _ in CASES} == set(tiny.ARCHITECTURES)


def test_the_public_names():
    assert lora.to_peft is to_peft and lora.from_peft is from_peft and lora.from_loralib is from_loralib
