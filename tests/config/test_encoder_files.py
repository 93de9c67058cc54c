"""An encoder's files: its tokenizer is part of a run's identity, and what it cannot read is refused at once."""

import json

import pytest
import tiny
from commands import lora
from stopping import stop
from trained import ensure_record
from trained import run as train

from lora.config.compose import compose_run
from lora.errors import UserError
from lora.records.record import adapter_path, record_path


@pytest.fixture
def own_model(tmp_path):
    return tiny.folder(tmp_path / "encoder", "bert")


@pytest.fixture
def run(tiny_overrides, own_model):
    """A function from overrides to the RunConfig of a tiny run with an encoder of its own."""
    return lambda *overrides: compose_run([*tiny_overrides, f"model.path={own_model}", "train.epochs=1", *overrides])


def swap_words(folder):
    """Give two words each other's number: the same weights, another vocabulary."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = tiny.WORDS[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))


def test_another_vocabulary_is_not_taken_for_the_recorded_one(run, own_model, tmp_path):
    config = run("method=lora", "runtime.save_adapter=true")
    record = ensure_record(config, mistakes_fail=False)
    assert record.provenance["tokenizer"].startswith("sha256:")
    input_file, output = tmp_path / "rows.tsv", tmp_path / "predicted.tsv"
    input_file.write_text("sentence\n" + "\n".join(tiny.sentences(5, seed=1)))
    adapter = adapter_path(config.runtime.outputs, config.run_id).parent
    given = ["predict", "--adapter", adapter, "--model", own_model, "--input", input_file, "--output", output]
    assert lora(*given).returncode == 0
    output.unlink()

    swap_words(own_model)
    again = run("method=lora", "runtime.save_adapter=true")
    assert again.run_id == config.run_id, "the weights are the same"
    with pytest.raises(UserError, match=rf"the tokenizer files of {config.model.name} are not those that"):
        ensure_record(again, mistakes_fail=False)
    assert "was trained with other tokenizer files" in lora(*given).stderr and not output.exists()

    path = record_path(config.runtime.results, config.run_id)
    content = json.loads(path.read_text())
    del content["provenance"]["tokenizer"]  # a record of an earlier version
    path.write_text(json.dumps(content))
    assert ensure_record(again, mistakes_fail=False).epochs == record.epochs


def test_another_vocabulary_does_not_resume_a_checkpoint(run, own_model, listening, capfd):
    config = run("train.epochs=2")
    stop(config, 3)
    swap_words(own_model)
    record, *_ = train(config)
    assert record.provenance["resumed"] == 0 and "made from other inputs" in capfd.readouterr().err


def test_rows_that_are_cut_are_announced_and_counted_in_the_record(run, glue_dir, capfd):
    """Sentences of the tiny tokenizer have one token per word, and two more around them."""
    config = run("data.max_length=6")
    record = ensure_record(config, mistakes_fail=False)
    cut, rows = {}, 0
    for split, name in (("train", "train"), ("validation", "dev")):
        lines = (glue_dir / "CoLA" / f"{name}.tsv").read_text().splitlines()
        cut[split] = sum(len(line.split("\t")[3].split()) + 2 > 6 for line in lines)
        rows += len(lines)
    assert record.provenance["data"]["truncated"] == cut and sum(cut.values()) > 0
    share = sum(cut.values()) / rows
    assert f"cola: {share:.0%} of the rows are longer than data.max_length=6 tokens" in capfd.readouterr().err
    whole = ensure_record(run("data.max_length=32", "seed=2"), mistakes_fail=False)
    assert not any(whole.provenance["data"]["truncated"].values())
    assert "are longer" not in capfd.readouterr().err


def test_more_tokens_than_the_encoder_reads_are_refused(run):
    with pytest.raises(UserError, match=r"data\.max_length is 65, but encoder-\w+ reads at most 64 tokens"):
        ensure_record(run("data.max_length=65"), mistakes_fail=False)


def test_without_a_vocabulary_nothing_is_trained(run, own_model):
    """transformers reads every word as [UNK] then."""
    config = run()
    (own_model / "tokenizer.json").unlink()
    (own_model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match="has no vocabulary, only "):
        ensure_record(config, mistakes_fail=False)
    (own_model / "tokenizer_config.json").unlink()
    for action in (run, lambda: ensure_record(config, mistakes_fail=False)):  # before weights are read
        with pytest.raises(UserError, match=r"has no tokenizer \(found: config.json, model.safetensors\), none of tok"):
            action()
    with pytest.raises(UserError, match=r"/none has no config.json .*; a model on the hub becomes one by"):
        run(f"model.path={own_model}/none")


def test_a_tokenizer_without_padding_or_with_too_many_words_is_one_message(run, own_model):
    settings = own_model / "tokenizer_config.json"
    content = settings.read_text()
    stated = json.loads(content)
    settings.write_text(json.dumps(stated | {"pad_token": None}))
    with pytest.raises(UserError, match="has no padding token: name one as pad_token in tokenizer_config"):
        ensure_record(run(), mistakes_fail=False)
    settings.write_text(content)
    words = json.loads((own_model / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {f"new{number}": 5000 + number for number in range(500)}
    (own_model / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="one of the two belongs to another model"):
        ensure_record(run(), mistakes_fail=False)
