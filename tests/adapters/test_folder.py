"""Adapters as folders: loading restores what was saved. Broken, foreign or hostile files are refused, by name."""

import hashlib
import json
import os
import re
import shutil

import pytest
import tiny
import torch
from processor import NARROWEST
from safetensors.torch import load_file, save_file
from tiny_adapters import CASES, METHODS, bytes_of, five, logits, state, with_method
from trained import ensure_record

from lora.adapters import folder as folders
from lora.adapters.adapter import Adapter, Origin, Score, adapter_of
from lora.adapters.folder import read_adapter, save_adapter, write_adapter
from lora.adapters.merge import load_adapter, swap
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import stored_bytes
from lora.methods.configs import BitFitConfig, HoulsbyConfig, LoraConfig
from lora.models.load import load_encoder
from lora.models.modules import checksum
from lora.records.record import ADAPTER, DESCRIPTION, adapter_path, record_path

ORIGIN = Origin("rte", ("entailment", "not_entailment"), Score("accuracy", "validation", 3, 0.75), "run-01234567", 128)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_adapter_computes_what_the_saved_one_did(case, tmp_path):
    architecture, config = CASES[case]
    model = with_method(architecture, config)
    saved = save_adapter(model, tmp_path / "a", ORIGIN)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [DESCRIPTION, ADAPTER]
    assert stored_bytes(model) == bytes_of(saved)
    fresh = tiny.model(architecture)
    loaded = load_adapter(fresh, tmp_path / "a")
    assert torch.equal(logits(fresh, architecture), logits(model, architecture))
    assert state(fresh) == state(model) and fresh.applied.method == model.applied.method
    assert sorted(fresh.applied.trained) == sorted(model.applied.trained)
    assert (loaded.method, loaded.base, loaded.origin) == (saved.method, saved.base, saved.origin)
    assert loaded.origin == ORIGIN and loaded.method == config
    again = with_method(architecture, config, seed=2)  # a model that already has the method
    load_adapter(again, tmp_path / "a")
    assert state(again) == state(model)


def test_the_description_says_it_all(tmp_path):
    config = LoraConfig(targets=("q", "v", "o"), rank=4, ranks={"o": 2}, alpha=16)
    save_adapter(with_method("roberta", config), tmp_path / "a", ORIGIN)
    content = json.loads((tmp_path / "a" / DESCRIPTION).read_text())
    assert content["format"] == 1
    assert content["method"]["name"] == "lora" and content["method"]["alpha"] == 16
    assert content["method"]["targets"] == ["q", "v", "o"] and content["method"]["ranks"] == {"o": 2}
    assert content["origin"]["task"] == "rte" and content["origin"]["labels"] == ["entailment", "not_entailment"]
    assert content["origin"]["score"] == {"metric": "accuracy", "split": "validation", "epoch": 3, "value": 0.75}
    pretrained = ((n, p) for n, p in tiny.model("roberta").named_parameters() if n.startswith("roberta."))
    assert content["base"]["hashes"]["float32"] == checksum(pretrained)
    assert content["contents"]["head"] == [n for n, _ in tiny.model("roberta").named_parameters() if "classifier" in n]
    assert set(content["contents"]["shapes"]) == set(load_file(tmp_path / "a" / ADAPTER))


def test_another_architecture_or_method_is_refused(tmp_path):
    save_adapter(with_method("bert", LoraConfig()), tmp_path / "a")
    save_adapter(with_method("bert", HoulsbyConfig(bottleneck=6)), tmp_path / "h")
    deeper, narrow = tiny.model("electra"), tiny.model("bert", intermediate_size=40)
    for folder, model, message in (
        ("a", deeper, "the model's weights are not those that the adapter was trained on"),
        ("h", narrow, "the model's weights are not those that the adapter was trained on"),
        ("a", with_method("bert", BitFitConfig()), r"has BitFitConfig\(.*, and the adapter is of LoraConfig"),
        ("h", with_method("bert", HoulsbyConfig(bottleneck=5)), "bottleneck=5.* and the adapter is of .*bottleneck=6"),
    ):
        before = state(model)
        with pytest.raises(UserError, match=message):
            load_adapter(model, tmp_path / folder)
        assert state(model) == before
    before = state(deeper)
    with pytest.raises(UserError, match="is not a linear layer of the encoder's body"):
        load_adapter(deeper, tmp_path / "a", allow_other_base=True)
    assert state(deeper) == before


@pytest.mark.parametrize("method", ["full", "houlsby"])
def test_an_adapter_with_other_tensors_than_its_method_trains_is_refused(method):
    adapter = adapter_of(with_method("bert", METHODS[method]))
    name, model = min(adapter.weights), tiny.model("bert")
    less = {key: tensor for key, tensor in adapter.weights.items() if key != name}
    before = state(model)
    for weights in (less, adapter.weights | {f"{name}2": torch.zeros(1)}, adapter.weights | {name: torch.zeros(31)}):
        with pytest.raises(UserError, match=f"missing, unknown or of another shape: {name}"):
            load_adapter(model, Adapter(adapter.method, weights, adapter.head))
        assert state(model) == before


def edit(folder, **changes):
    path = folder / DESCRIPTION
    content = json.loads(path.read_text())
    for keys, value in changes.items():
        place = content
        *above, last = keys.split("__")
        for key in above:
            place = place[key]
        place[last] = value
    path.write_text(json.dumps(content))


def spoil(folder):
    """Make a value NaN, and let the description have the hash of that file."""
    tensors = load_file(folder / ADAPTER)
    tensors[min(tensors)].fill_(torch.nan)
    save_file(tensors, folder / ADAPTER)
    edit(folder, contents__sha256=hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest())


def flip_a_bit(folder):
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-2] ^= 1
    (folder / ADAPTER).write_bytes(content)


OTHER = r"is not the file that adapter\.json was written for"
BROKEN = {
    "version": (lambda f: edit(f, format=2), r"is in format 2; this version reads format 1"),
    "deep JSON": (lambda f: (f / DESCRIPTION).write_text("[" * 10**6), "is not readable JSON"),
    "method": (lambda f: edit(f, method__name="dora"), "method.name must be one of full, bitfit"),
    "alpha": (lambda f: edit(f, method__alpha="16"), "alpha must be of type float, got '16'"),
    "alpha 0": (lambda f: edit(f, method__alpha=0), "alpha must be > 0 and finite, got 0"),
    "alpha NaN": (lambda f: edit(f, method__alpha=float("nan")), "NaN is not a finite number"),
    "rank": (lambda f: edit(f, method__rank=5), r"at the ranks that it states; .* another shape: bert"),
    "target": (lambda f: edit(f, method__targets=["q"]), r"missing, unknown or .*value\.lora_a"),
    "extra key": (lambda f: edit(f, origin__pickle="x"), "origin.pickle is not a setting"),
    "no description": (lambda f: (f / DESCRIPTION).unlink(), r"has no file adapter\.json"),
    "no weights": (lambda f: (f / ADAPTER).unlink(), r"has no file adapter\.safetensors"),
    "empty": (lambda f: os.truncate(f / ADAPTER, 0), "is not a whole safetensors file"),
    "another bit": (flip_a_bit, OTHER),
    "head": (lambda f: edit(f, contents__head=["more"]), OTHER),
    "nan": (spoil, "values that are not finite"),
    "unknown dtype": (lambda f: unknown_dtype(f), "is not a whole safetensors file for torch: 'F4'"),
    "parent": (lambda f: edit(f, contents__file="../b/adapter.safetensors"), OTHER),
    "link": (lambda f: relink(f, ADAPTER), "an adapter's files must be in its folder"),
    "named pipe": (lambda f: ((f / DESCRIPTION).unlink(), os.mkfifo(f / DESCRIPTION)), r"has no file adapter\.json"),
}


def unknown_dtype(folder):
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (folder / ADAPTER).write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))


def relink(folder, name):
    shutil.copy(folder / name, folder.parent / name)
    (folder / name).unlink()
    (folder / name).symlink_to(f"../{name}")


def test_a_broken_or_hostile_folder_is_refused_and_leaves_the_model(tmp_path):
    save_adapter(with_method("bert", LoraConfig()), tmp_path / "whole")
    model = tiny.model("bert")
    before = state(model)
    for fault, (damage, message) in BROKEN.items():
        damage(folder := shutil.copytree(tmp_path / "whole", tmp_path / fault / "a"))
        for read in (load_adapter, swap):
            with pytest.raises(UserError, match=message):
                read(model, folder)
    assert state(model) == before


def test_a_folder_between_two_writes_is_recognised(tmp_path, monkeypatch):
    adapters = five("bert")
    write_adapter(adapters["rte"], tmp_path / "a")
    write = folders.written_whole

    def interrupted(path):
        if path.name == DESCRIPTION:
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(folders, "written_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(adapters["mnli"], tmp_path / "a")
    with pytest.raises(UserError, match=OTHER):
        read_adapter(tmp_path / "a")


def test_a_folder_is_replaced_whole_and_only_if_it_holds_an_adapter(tmp_path):
    one, two = with_method("bert", LoraConfig(), seed=1), with_method("bert", LoraConfig(), seed=2)
    save_adapter(one, tmp_path / "a")
    save_adapter(two, tmp_path / "a")
    assert torch.equal(read_adapter(tmp_path / "a").head["classifier.bias"], two.get_parameter("classifier.bias"))
    (tmp_path / "a" / "notes.txt").write_text("mine")
    content = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        save_adapter(one, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == content
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        save_adapter(one, tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        save_adapter(one, tmp_path / "file" / "below")
    with torch.no_grad():
        one.get_parameter("classifier.bias")[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        save_adapter(one, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_a_run_leaves_an_adapter_that_explains_itself(method, tiny_config):
    kernels = ("train.kernels=fused", f"train.precision={NARROWEST}")
    config = tiny_config(f"method={method}", "runtime.save_adapter=true", *kernels)
    record = ensure_record(config, mistakes_fail=False)
    folder = adapter_path(config.runtime.outputs, config.run_id).parent
    adapter = read_adapter(folder)
    assert record_path(config.runtime.results, config.run_id).exists()
    best = record.selected["best"]
    assert adapter.method == config.method
    assert adapter.origin.task == "cola" and adapter.origin.labels == TASKS["cola"].labels
    assert adapter.origin.score == Score("matthews", "validation", best["epoch"], best["value"])
    assert adapter.origin.run_id == config.run_id and adapter.origin.max_length == 32
    assert str(config.model.path) not in (folder / DESCRIPTION).read_text()
    trained = sum(tensor.numel() for tensor in (adapter.weights | adapter.head).values())
    assert trained == record.params["trainable_method"] + record.params["trainable_head"]
    model = load_encoder(config.model, TASKS["cola"], seed=99).model
    load_adapter(model, adapter)
    assert checksum((adapter_of(model).weights | adapter_of(model).head).items()) == checksum(
        (adapter.weights | adapter.head).items()
    )


def test_the_readmes_six_lines_train_save_and_merge(tmp_path, monkeypatch):
    """With a tiny BERT in place of the model of the hub, and a step of plain SGD in place of the user's training."""
    page = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 8
    tiny.model("bert").save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    before, after = code.replace('"roberta-base"', "'base'").split("...")
    scope: dict = {}
    exec(compile(before, "README.md", "exec"), scope)
    trained = [parameter for parameter in scope["model"].parameters() if parameter.requires_grad]
    optimizer, inputs = torch.optim.SGD(trained, 0.1), {"input_ids": torch.tensor([[5, 6, 7]])}
    for _ in range(2):  # A has a gradient once B is not zero
        scope["model"](**inputs, labels=torch.tensor([1])).loss.backward()
        optimizer.step()
    expected = scope["model"].eval()(**inputs).logits
    exec(compile(after.partition("\n")[2], "README.md", "exec"), scope)
    torch.testing.assert_close(scope["model"](**inputs).logits, expected)
    fresh = tiny.model("bert")
    load_adapter(fresh, tmp_path / "my_adapter")
    torch.testing.assert_close(fresh.eval()(**inputs).logits, expected)
