"""Loading a pretrained encoder: strict, offline, and with a head drawn from the seed."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
import transformers
from transformers import AutoTokenizer

from lora.adapters.predict import local_encoder
from lora.config.encoder_files import longest_input
from lora.config.run import ModelConfig
from lora.data.batching import collate, encode
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.models.load import load_encoder
from lora.models.modules import is_head


def local(path, **changes) -> ModelConfig:
    return dataclasses.replace(local_encoder(path), **changes)


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(params=tiny.ARCHITECTURES)
def folder(request, tmp_path):
    return tiny.folder(tmp_path / "model", request.param)


def test_the_body_is_the_files_and_the_head_is_new(folder):
    one, two, other = (load_encoder(local(folder), TASKS["mnli"], seed) for seed in (1, 1, 2))
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    prefix = f"{one.model.base_model_prefix}."
    heads = 0
    for name, parameter in one.model.named_parameters():
        again, third = two.model.get_parameter(name), other.model.get_parameter(name)
        assert torch.equal(parameter, again)
        if name.startswith(prefix):
            assert torch.equal(parameter, stored[name.removeprefix(prefix)])
        else:
            heads += 1
            assert parameter.dtype == torch.float32
            if name.endswith("bias"):
                assert not parameter.any()
            elif name == "head.norm.weight":  # ModernBERT's
                assert (parameter == 1).all()
            else:
                assert not torch.equal(parameter, third)
                assert 0 < parameter.std().item() < 0.03  # N(0, initializer_range = 0.02)
    assert heads >= 2
    assert one.model.config.num_labels == 3
    assert one.weights == two.weights and one.weights.startswith("sha256:")
    text = ("the film was very good", "not bad")
    assert one.tokenizer(*text)["input_ids"] == AutoTokenizer.from_pretrained(folder)(*text)["input_ids"]


def test_a_missing_pooler_is_drawn_from_the_seed(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    rewrite(folder, lambda tensors: [tensors.pop(f"pooler.dense.{part}") for part in ("weight", "bias")])
    one, two = (load_encoder(local(folder), TASKS["rte"], seed).model.bert.pooler.dense for seed in (1, 1))
    assert torch.equal(one.weight, two.weight) and not one.bias.any()
    assert one.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_tensors_of_a_pretraining_head_are_named_to_be_left_out(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    rewrite(folder, lambda tensors: tensors.update({"lm_head.bias": torch.zeros(3)}))
    assert load_encoder(local(folder), TASKS["rte"], 1)
    for patterns, message in (((), r"not expected: lm_head\.bias"), (("(",), "must hold regular expressions")):
        with pytest.raises(UserError, match=message):
            load_encoder(local(folder, unused_weights=patterns), TASKS["rte"], 1)


PLACE = "encoder.layer.1.output.dense.weight"
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"no model\.safetensors .*pytorch_model\.bin.*: pickles are not read",
    ),
    "cut short": (lambda f: os.truncate(f / "model.safetensors", 500), "cannot load weights of local"),
    "one less": (lambda f: rewrite(f, lambda t: t.pop(PLACE)), f"missing.*{PLACE}"),
    "one more": (lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(2))), "not expected: x"),
    "another shape": (lambda f: rewrite(f, lambda t: t.update({PLACE: torch.zeros(7)})), f"another shape.*{PLACE}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_folder_that_is_no_whole_encoder_is_refused(model_dir, tmp_path, kind):
    damage, message = DAMAGE[kind]
    damage(folder := shutil.copytree(model_dir, tmp_path / "m"))
    with pytest.raises(UserError, match=message):
        load_encoder(local(folder), TASKS["rte"], 1)


def test_a_folders_code_is_never_run(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {
        "AutoConfig": "modeling_evil.Evil",
        "AutoModelForSequenceClassification": "modeling_evil.Evil",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    load_encoder(local(folder), TASKS["rte"], 1)
    assert not (tmp_path / "ran").exists()


def test_dropouts_are_replaced_where_given(folder):
    """The head keeps its own where only the body's is given. DeBERTa's config class declares no setting for it."""

    def dropouts(**given):
        model = load_encoder(local(folder), TASKS["rte"], 1, **given).model
        found = {True: set(), False: set()}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout):
                found[is_head(model, name)].add(module.p)
        return found

    plain, body, both = dropouts(), dropouts(dropout=0.0), dropouts(dropout=0.0, head_dropout=0.3)
    assert body[False] == both[False] == {0.0} and body[True] == plain[True] and 0.3 in both[True]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_longest_input_is_read_and_a_longer_one_has_no_positions(architecture):
    model = tiny.model(architecture)
    longest = longest_input(model.config.to_dict())
    assert longest == (62 if architecture in tiny.ROBERTAS else 64)
    model(**tiny.inputs(architecture, length=longest))
    if architecture not in ("deberta-v2", "modernbert"):  # their positions are relative
        with pytest.raises((IndexError, RuntimeError)):
            model(**tiny.inputs(architecture, length=longest + 1))


def test_positions_of_roberta_follow_its_padding():
    assert longest_input(tiny.config("roberta", pad_token_id=0).to_dict()) == 63
    assert longest_input(tiny.config("mpnet", pad_token_id=0).to_dict()) == 62  # its positions start at 2


def test_modernberts_head_is_the_checkpoints_where_it_has_one(tmp_path):
    """The checkpoint is a masked language model: its `head` is kept, its `decoder` is unused."""
    settings = tiny.config("modernbert")
    settings.tie_word_embeddings = False
    pretrained = transformers.ModernBertForMaskedLM(settings)
    with torch.no_grad():
        pretrained.head.norm.weight.uniform_(0.5, 2)
    pretrained.save_pretrained(tmp_path)
    tiny.tokenizer("modernbert").save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {"decoder.weight", "decoder.bias", "head.dense.weight", "head.norm.weight"} <= set(stored)
    model = load_encoder(local(tmp_path), TASKS["mnli"], 1).model
    for name, parameter in model.named_parameters():
        assert is_head(model, name) == name.startswith(("head.", "classifier."))
        if not name.startswith("classifier."):
            assert torch.equal(parameter, stored[name])


def test_a_model_of_one_token_type_reads_pairs_with_berts_tokenizer(tmp_path):
    """Such as klue/roberta-base, a RoBERTa whose tokenizer gives the second text type 1."""
    folder = tiny.folder(tmp_path / "model", "roberta")
    tiny.tokenizer("bert").save_pretrained(folder)
    encoder = load_encoder(local(folder), TASKS["rte"], 1)
    pair = {"sentence1": ["the film was very good"], "sentence2": ["not bad"], "label": [0]}
    encoded = encode(pair, TASKS["rte"], encoder.tokenizer, 32)
    batch = collate(encoded, np.array([0]), encoder.tokenizer.pad_token_id)
    logits = encoder.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    assert torch.equal(encoder.model(**batch).logits, logits)
    assert 1 in AutoTokenizer.from_pretrained(folder)("the film", "not bad")["token_type_ids"]


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "deberta-v2"])
def test_sdpa_is_taken_where_transformers_has_it(architecture, tmp_path):
    folder = tiny.folder(tmp_path / "model", architecture)
    model = load_encoder(local(folder, attention="sdpa"), TASKS["rte"], 1).model
    assert (model.config._attn_implementation == "sdpa") == type(model)._supports_sdpa


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "distilbert"])
def test_gradient_checkpointing_is_refused_where_transformers_has_none(architecture, tmp_path):
    folder = tiny.folder(tmp_path / "model", architecture)
    config = local(folder, gradient_checkpointing=True)
    if architecture == "mpnet":
        with pytest.raises(UserError, match="gradient_checkpointing must be false: MPNetForSequenceClassification has"):
            load_encoder(config, TASKS["rte"], 1)
    else:
        assert load_encoder(config, TASKS["rte"], 1).model.is_gradient_checkpointing
