"""Export to PEFT, import from PEFT and loralib: their models are the truth, and round trips are exact."""

import dataclasses
import json
import pickle
import shutil
import socket

import loralib
import peft
import pytest
import tiny
import torch
from pickles import Bomb
from safetensors.torch import load_file, save_file
from tiny_adapters import LORA, METHODS, assert_same_logits, logits, shake, with_method

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.folder import read_adapter, write_adapter
from lora.adapters.loralib import from_loralib
from lora.adapters.merge import load_adapter, swap, unmerge
from lora.adapters.peft import CONFIG, WEIGHTS, from_peft, to_peft
from lora.config.compose import compose_run
from lora.errors import UserError
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.methods.lowrank import LoraLinear
from lora.models.architectures import module_of
from lora.models.modules import checksum, find_target, trainable

HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "electra": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "mpnet": ["classifier"],
    "xlm-roberta": ["classifier"],
    "camembert": ["classifier"],
    "modernbert": ["head", "classifier"],
    "albert": ["albert.pooler", "classifier"],
    "deberta": ["pooler", "classifier"],
    "bart": ["classification_head"],
}
HEADED = [(case, True) for case in LORA] + [("bert", False), ("modernbert", False)]


def same(one: Adapter, other: Adapter) -> bool:
    tensors = [checksum((adapter.weights | adapter.head).items()) for adapter in (one, other)]
    scales = [{name: adapter.scale(name) for name in adapter.pairs()} for adapter in (one, other)]
    return tensors[0] == tensors[1] and scales[0] == scales[1] and set(one.head) == set(other.head)


@pytest.fixture
def offline(monkeypatch):
    """Make every attempt to open a connection fail."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def in_peft(folder, architecture, outputs=2):
    base = tiny.model(architecture, outputs)
    base.base_model.load_state_dict(tiny.model(architecture).base_model.state_dict())
    return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize(("case", "headed"), HEADED)
def test_peft_computes_the_same_logits_and_the_round_trip_is_exact(case, headed, tmp_path, bases):
    architecture, config = LORA[case]
    model = with_method(architecture, config, outputs=3 if headed else 2)
    adapter = adapter_of(model)
    if not headed:
        adapter = Adapter(adapter.method, adapter.weights, {}, adapter.base, adapter.origin)
        load_adapter(model := tiny.model(architecture), adapter)
    to_peft(adapter, tmp_path / "peft", base=bases / architecture)
    theirs = in_peft(tmp_path / "peft", architecture, outputs=3 if headed else 2)
    assert_same_logits(theirs, model, architecture)
    if not headed:
        assert (logits(theirs, architecture) - logits(tiny.model(architecture), architecture)).abs().max() > 1e-3
    theirs.save_pretrained(tmp_path / "again")
    back = from_peft(tmp_path / "again")
    assert back.base is None and (back.method.dropout, back.method.scaling) == (config.dropout, config.scaling)
    if architecture == "modernbert":  # its fused layers come back as wholes
        load_adapter(again := tiny.model(architecture), back)
        assert_same_logits(again, model, architecture)
    else:
        assert same(back, adapter)


@pytest.mark.parametrize(("case", "headed"), HEADED)
def test_what_peft_saves_gives_the_same_logits_here_and_goes_back_unchanged(case, headed, tmp_path, bases):
    architecture, config = LORA[case]
    base = tiny.model(architecture)
    found = [module_of(name) for target in config.targets for name in find_target(base, target)]
    modules = [name.split(".", 1)[-1] for name in dict.fromkeys(found)]
    settings = {"modules_to_save": HEADS[architecture], "task_type": "SEQ_CLS"} if headed else {}
    theirs = peft_saved(base, tmp_path / "theirs", r=3, lora_alpha=5, target_modules=modules, **settings)
    adapter = from_peft(tmp_path / "theirs")
    assert bool(adapter.head) == headed
    ours = tiny.model(architecture)
    load_adapter(ours, adapter)
    assert sum(isinstance(module, LoraLinear) for module in ours.modules()) == len(modules)
    assert_same_logits(ours, theirs, architecture)
    to_peft(adapter, tmp_path / "back", base=bases / architecture)
    original, back = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert checksum(back.items()) == checksum(original.items())


def peft_saved(base, folder, **settings):
    """A model of PEFT's after training, and its folder."""
    theirs = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    shake(theirs, [name for name, _ in trainable(theirs)], 0.05, 3)
    theirs.save_pretrained(folder)
    return theirs


def test_a_head_that_is_saved_in_part_leaves_the_rest_to_the_model(tmp_path):
    """PEFT's default for classification saves the classifier and not BERT's pooler."""
    theirs = peft_saved(tiny.model("bert"), tmp_path / "theirs", r=2, target_modules=["query"], task_type="SEQ_CLS")
    adapter = from_peft(tmp_path / "theirs")
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}
    ours = tiny.model("bert")
    swap(ours, adapter)
    unmerge(ours)
    assert_same_logits(ours, theirs, "bert")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_other_methods_have_no_peft_folder(method, tmp_path):
    with pytest.raises(UserError, match=f"method {method} is of no format that peft loads"):
        to_peft(adapter_of(with_method("bert", METHODS[method])), tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("architecture", "outputs"), [("bert", 1), ("bert", 2), ("bert", 3), ("roberta", 40)])
def test_peft_loads_base_labels_and_adapter_from_the_folder(
    architecture, outputs, tmp_path, bases, offline, monkeypatch
):
    """With 40 labels, RoBERTa's head has more rows in its output layer than in its dense layer."""
    model = with_method(architecture, LoraConfig(rank=3, alpha=7), outputs=outputs)
    labels = tuple(f"class {number}" for number in range(outputs)) if outputs > 1 else ()
    shutil.copytree(bases / architecture, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second replaces the first
        to_peft(adapter_of(model, origin=Origin(labels=labels)), tmp_path / "peft", base="base")
    monkeypatch.chdir(bases)
    shutil.rmtree(tmp_path / "base")  # of which nothing is needed then
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "peft").eval()
    assert theirs.config.id2label == dict(enumerate(labels or ("LABEL_0",)))
    assert_same_logits(theirs, model, architecture)


def test_a_folder_of_another_base_is_refused(tmp_path, bases):
    other = tiny.model("bert")
    next(other.base_model.parameters()).data.add_(1e-3)
    other.base_model.save_pretrained(tmp_path / "other")
    adapter = adapter_of(with_method("bert", LoraConfig(rank=3, dora=True)))
    with pytest.raises(UserError, match="the model's weights are not those that the adapter was trained on"):
        to_peft(adapter, tmp_path / "peft", base=tmp_path / "other")
    with pytest.raises(UserError, match=f"cannot load the base in {tmp_path}: "):
        to_peft(adapter, tmp_path / "peft", base=tmp_path)
    finetuned = tiny.model("bert", outputs=3)
    finetuned.base_model.load_state_dict(tiny.model("bert").base_model.state_dict())
    finetuned.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"head: classifier\.\w+, classifier\.\w+ have other shapes"):
        to_peft(adapter, tmp_path / "peft", base=tmp_path / "three")
    assert not (tmp_path / "peft").exists()
    three = adapter_of(with_method("bert", LoraConfig(rank=3), outputs=3))
    to_peft(three, tmp_path / "peft", base=tmp_path / "three")
    peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "peft")


def place_of(adapter, out, **given):
    to_peft(adapter, out, **given)
    config = json.loads((out / CONFIG).read_text())
    return config["base_model_name_or_path"], config["revision"]


def test_a_base_of_the_hub_is_named_by_its_id_and_commit(tmp_path, offline):
    adapter = adapter_of(with_method("roberta", LoraConfig(rank=3)))
    entry = compose_run(["profile=paper", "protocol=printed", "model=roberta_base", "task=cola"]).model

    def of(name, revision=None, encoder=None):
        base = dataclasses.replace(adapter.base, name=name, revision=revision)
        return dataclasses.replace(adapter, base=base, origin=Origin(encoder=encoder))

    released = (entry.hub_id, entry.revision)
    assert entry.hub_id == "FacebookAI/roberta-base" and len(entry.revision) == 40
    assert place_of(of("roberta_base", encoder=entry), tmp_path / "a") == released
    assert place_of(of("roberta_base", "0" * 40, entry), tmp_path / "a") == (entry.hub_id, "0" * 40)
    assert place_of(of("anything"), tmp_path / "a", base="owner/model") == ("owner/model", None)
    assert place_of(of("roberta_base", "0" * 40, entry), tmp_path / "a", base=entry.hub_id)[1] == "0" * 40


def test_a_base_that_cannot_be_named_is_refused_and_nothing_is_written(tmp_path):
    adapter = adapter_of(with_method("bert", LoraConfig(rank=3)))
    named = dataclasses.replace(adapter, base=dataclasses.replace(adapter.base, name="mine"))
    for changed, message in (
        (adapter, r"does not say where its base is: name the folder or the hub id"),
        (dataclasses.replace(adapter, base=None), r"where its base is: name the folder"),
        (named, r"where its base \(mine\) is: name the folder"),
    ):
        with pytest.raises(UserError, match=message):
            to_peft(changed, tmp_path / "peft")
        assert list(tmp_path.iterdir()) == []


def test_a_regular_expression_for_targets_is_left_to_peft(tmp_path):
    settings = {"r": 2, "target_modules": r".*layer\.1\..*(query|dense)", "modules_to_save": ["classifier"]}
    theirs = peft_saved(tiny.model("bert"), tmp_path / "theirs", **settings)
    assert isinstance(json.loads((tmp_path / "theirs" / CONFIG).read_text())["target_modules"], str)
    ours, adapter = tiny.model("bert"), from_peft(tmp_path / "theirs")
    assert len(adapter.pairs()) == 4
    load_adapter(ours, adapter)
    assert_same_logits(ours, theirs, "bert")


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
    "dora": (lambda f: edit(f, use_dora=True), r"with dora only, lora_m of .* another shape: .*\.lora_m"),
    "unknown": (lambda f: edit(f, new_trick=3), "not supported: new_trick=3"),
    "pissa": (lambda f: edit(f, init_lora_weights="pissa"), "'pissa', which changes the base"),
    "rank": (lambda f: edit(f, r=4), "says rank 4 for .*, and its lora_A has rank 3"),
    "alpha 0": (lambda f: edit(f, lora_alpha=0), r"adapter_config\.json: alpha must be > 0 and finite, got 0"),
    "regular expression": (lambda f: edit(f, alpha_pattern={"(a+)+$": 3}), "no regular expressions"),
    "own scales": (lambda f: edit(f, alpha_pattern={"layer.1.attention.self.query": 3}), "separate scales"),
    "pickle": (to_pickle, r"has adapter_model\.bin, a pickle, which is not read"),
    "link": (link_out, "an adapter's files must be in its folder"),
    "other tensor": (lambda f: retensor(f, lambda t: t.update(x=torch.ones(1))), "has x, which is neither LoRA's"),
    "not saved": (lambda f: edit(f, modules_to_save=None), "nor of modules_to_save"),
    "half": (lambda f: retensor(f, lambda t: t.pop(sorted(t)[0])), r"missing, .*: .*\.lora_"),
}


def test_what_cannot_be_taken_over_is_refused(tmp_path, bases):
    to_peft(adapter_of(with_method("bert", LoraConfig(rank=3, alpha=6))), tmp_path / "peft", base=bases / "bert")
    for fault, (change, message) in STRANGE.items():
        change(shutil.copytree(tmp_path / "peft", tmp_path / fault / "peft", symlinks=True))
        with pytest.raises(UserError, match=message):
            from_peft(tmp_path / fault / "peft")


# Settings of initialization and origin, and settings that are off: none changes an adapter's output.
HARMLESS = [
    *({"init_lora_weights": init} for init in (True, False, None, "gaussian", "orthogonal", "eva")),
    *({"a_setting_of_tomorrow": off} for off in (None, False, "none", {}, [])),
    {"inference_mode": False, "peft_version": "0.99", "auto_mapping": {"a": "b"}, "revision": "abc"},
    {"exclude_modules": ["x"], "layers_to_transform": [0, 1], "layers_pattern": "layer", "megatron_core": "m"},
    {"qalora_group_size": 16, "eva_config": {"rho": 2}, "ensure_weight_tying": True, "task_type": "FEATURE_EXTRACTION"},
]


def test_what_changes_nothing_is_taken(tmp_path, bases):
    adapter = adapter_of(with_method("bert", LoraConfig(rank=3, alpha=6)))
    to_peft(adapter, tmp_path / "peft", base=bases / "bert")
    written = (tmp_path / "peft" / CONFIG).read_text()
    for settings in HARMLESS:
        (tmp_path / "peft" / CONFIG).write_text(written)
        edit(tmp_path / "peft", **settings)
        assert same(from_peft(tmp_path / "peft"), adapter), settings


def loralib_model(architecture="roberta", rank=4, alpha=16, targets="qv"):
    """The tiny model with loralib's own layers, as in the released code."""
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
    """Write a file like the released checkpoints: LoRA's tensors and the head's, pickled."""
    tensors = loralib.lora_state_dict(model) | {n: t for n, t in model.state_dict().items() if "classifier" in n}
    torch.save(tensors, path)
    return path


def test_the_released_form_gives_loralibs_logits(tmp_path, bases):
    model = loralib_model()
    file = released_file(model, tmp_path / "lora.bin")
    assert "roberta.encoder.layer.0.attention.self.query.lora_A" in torch.load(file)
    adapter = from_loralib(file, alpha=16)
    assert "classifier.dense.weight" in adapter.head and adapter.method.alpha == 16 and adapter.method.rank == 4
    ours = tiny.model("roberta")
    load_adapter(ours, adapter)
    assert_same_logits(ours, model, "roberta")
    wrong = tiny.model("roberta")
    load_adapter(wrong, from_loralib(file, alpha=8))
    assert (logits(wrong, "roberta") - logits(model, "roberta")).abs().max() > 1e-3
    write_adapter(adapter, tmp_path / "ours")
    to_peft(tmp_path / "ours", tmp_path / "peft", base=bases / "roberta")
    assert same(from_peft(tmp_path / "peft"), adapter) and same(read_adapter(tmp_path / "ours"), adapter)
    assert_same_logits(in_peft(tmp_path / "peft", "roberta"), model, "roberta")


def test_what_loralib_files_may_not_be(tmp_path):
    file = released_file(loralib_model(), tmp_path / "lora.bin")
    tensors = torch.load(file)
    first = next(iter(tensors))
    other = tmp_path / "other.bin"
    for content, message in (
        ({n: t for n, t in tensors.items() if "lora" not in n}, "no tensor whose name ends in lora_A or lora_B"),
        ({n: t for n, t in tensors.items() if n != first}, r"missing, .*: .*\.lora_b"),
        (tensors | {first: torch.full_like(tensors[first], torch.inf)}, "not finite"),
        (tensors | {first: torch.ones(())}, "a matrix with a rank above 0"),
        ([tensors], "is not a state dict"),
        (tensors | {"step": 3}, "is not a state dict"),
    ):
        torch.save(content, other)
        with pytest.raises(UserError, match=message):
            from_loralib(other, alpha=16)
    bomb = {"roberta.x.lora_A": Bomb(tmp_path / "executed")}
    for write in (
        lambda: torch.save(bomb, other),
        lambda: other.write_bytes(pickle.dumps(bomb, protocol=2)),
        lambda: other.write_bytes(file.read_bytes()[:500]),
        lambda: other.write_bytes(b""),
        other.unlink,
    ):
        write()
        with pytest.raises(UserError, match="cannot be read as a file of tensors"):
            from_loralib(other, alpha=16)
    assert not (tmp_path / "executed").exists()


def test_peft_loads_a_base_in_half_precision_in_float32_as_its_scores_need(tmp_path):
    tiny.model("bert", 1).bfloat16().base_model.save_pretrained(tmp_path / "base")
    model = tiny.model("bert", 1).bfloat16().float()  # the rounded weights
    apply(model, LoraConfig(rank=3), seed=1)
    adapter = adapter_of(model, origin=Origin("mine", shift=1000.0, factor=2.0))
    to_peft(adapter, tmp_path / "peft", base=tmp_path / "base")
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs, "bert"), 1000 + 2 * logits(model, "bert"), rtol=0, atol=1e-3)
