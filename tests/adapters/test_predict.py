"""`python -m lora predict`: the recorded dev predictions again, the official files, and bad input."""

import csv
import dataclasses
import glob
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import tiny
import tiny_glue
import torch
from commands import lora
from glue_files import GLUE_TASKS, write_tsv
from tiny_adapters import shake
from trained import ensure_record

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.base import describe_base
from lora.adapters.folder import read_adapter, write_adapter
from lora.adapters.predict import as_table
from lora.config.compose import compose_run
from lora.data.embedded import model_folder
from lora.data.read import read
from lora.data.tables import InputTable
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.models.load import load_encoder
from lora.records.predictions import dev_predictions
from lora.records.record import adapter_path

RUNS = {
    "rte": ("task=rte", "method=lora", "method.rank=3"),
    "mnli": ("task=mnli", "method=lora", "method.targets=[q,k,o]", "method.alpha=16"),
    "stsb": ("task=stsb", "method=houlsby", "method.bottleneck=6"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three trained runs on one base: task -> (record, adapter folder), and the folder of everything."""
    folder = tmp_path_factory.mktemp("predict")
    glue, model = tiny_glue.write(folder / "glue"), tiny.folder(folder / "bert", "bert")
    trained = {}
    for task, overrides in RUNS.items():
        write_tsv(glue, TASKS[task], 11, TASKS[task].test_splits)
        config = compose_run([*tiny_glue.settings(glue, model, folder), "runtime.save_adapter=true", *overrides])
        record = ensure_record(config, mistakes_fail=False)
        trained[task] = record, adapter_path(config.runtime.outputs, config.run_id).parent
    return trained, folder


def read_tsv(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def dev_file(folder, task):
    """Write the dev rows as an input: a header with the task's column names, and the texts alone."""
    columns, split = TASKS[task].columns, TASKS[task].validation_splits[0]
    rows = read(TASKS[task], "tsv", folder / "glue", splits=(split,)).splits[split]
    path = folder / f"{task}.tsv"
    lines = [columns, *zip(*(rows[column][:] for column in columns), strict=True)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("task", RUNS)
def test_a_trained_adapter_predicts_again_what_its_record_holds(runs, task, tmp_path):
    trained, folder = runs
    record, adapter = trained[task]
    found = tmp_path / "deep" / "out.tsv"
    end = ("--output", found, "--model", folder / "bert")
    assert lora("predict", "--adapter", adapter, "--input", dev_file(folder, task), *end).returncode == 0
    header, *rows = read_tsv(found)
    labels = TASKS[task].labels
    columns = len(TASKS[task].columns)
    assert header[columns:] == ["prediction", *(f"p_{label}" for label in labels)]
    assert [header[:columns], *(row[:columns] for row in rows)] == read_tsv(dev_file(folder, task))
    rows = [row[columns - 1 :] for row in rows]
    expected = dev_predictions(record, folder / "results")["best"]
    if labels:
        assert [row[1] for row in rows] == [labels[index] for index in expected]
    else:
        assert np.array([float(row[1]) for row in rows]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_other_columns_stay_and_a_row_alone_has_the_same_prediction(runs, tmp_path):
    trained, folder = runs
    _, adapter = trained["rte"]
    rows = pd.read_csv(dev_file(folder, "rte"), sep="\t", quoting=csv.QUOTE_NONE)
    rows.insert(0, "id", [f"row, {number}" for number in range(len(rows))])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.head(1).to_json(tmp_path / "one.jsonl", orient="records", lines=True)
    end = ("--output", tmp_path / "out.csv", "--model", folder / "bert")
    assert lora("predict", "--adapter", adapter, "--input", tmp_path / "rows.csv", *end).returncode == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found) == [*rows, "prediction", "p_entailment", "p_not_entailment"] and found[[*rows]].equals(rows)
    assert lora("predict", "--adapter", adapter, "--input", tmp_path / "one.jsonl", *end).returncode == 0
    assert pd.read_csv(tmp_path / "out.csv")["prediction"].tolist() == found["prediction"].tolist()[:1]


def test_rows_that_are_cut_or_empty_are_named_and_nested_fields_are_json(runs, tmp_path):
    """Sentences of the tiny tokenizer have one token per word; pairs of them have three more."""
    trained, folder = runs
    _, adapter = trained["rte"]
    short, long = tiny.sentences(1)[0], " ".join(tiny.sentences(5))
    texts = [(short, short), ("", short), (short, long), (short, "\u200b"), (short, None), (long, short)]
    extra = [{"a": [1, "\u00e9"]}, [None], True, False, None, 1.5]
    rows = [{"sentence1": a, "sentence2": b, "more": x} for (a, b), x in zip(texts, extra, strict=True)]
    rows = [row | {"id": 2**53 + 1} for row in rows[:-1]] + rows[-1:]  # which a float cannot hold, and one is absent
    write = tmp_path / "rows.jsonl"
    write.write_text("\n".join(map(json.dumps, rows)))
    given = ["--adapter", adapter, "--input", write, "--model", folder / "bert", "--output", tmp_path / "out.csv"]
    said = lora("predict", *given).stderr
    assert "rows with an empty text: 2, 4, 5\n" in said
    assert "2 of 3 rows are longer than 32 tokens and are cut: 3, 6\n" in said
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["prediction"].isna().tolist() == [False, True, False, True, True, False]
    assert [None if pd.isna(cell) else json.loads(cell) for cell in found["more"]] == extra
    assert pd.read_csv(tmp_path / "out.csv", dtype=str)["id"].fillna("").tolist() == [str(2**53 + 1)] * 5 + [""]
    write.write_text("\n".join(json.dumps(row | {"sentence1": " "}) for row in rows))
    refused("rows.jsonl has no rows with a text", *given)


def test_a_line_end_in_a_cell_breaks_no_row(tmp_path):
    cells = {"text": ["one\rtwo", 'a "b", c', "three\r\nfour"], "id": [1, None, 2.5]}
    given = InputTable(tmp_path / "in.jsonl", cells), {"prediction": ["bad"]}, [1]
    content = as_table(*given, tmp_path / "out.csv").decode()
    expected = [["one\rtwo", "1", ""], ['a "b", c', "", "bad"], ["three\r\nfour", "2.5", ""]]
    assert [*csv.reader(io.StringIO(content, newline=""))][1:] == expected and content.count("\n") == 5
    cells["text"][2] = "three"
    with pytest.raises(UserError, match=r"in.jsonl has tabs or line ends, which out.tsv cannot hold"):
        as_table(*given, tmp_path / "out.tsv")


def test_a_glue_submission_has_the_official_names_headers_and_words(runs, tmp_path, monkeypatch):
    trained, folder = runs
    monkeypatch.setenv("MODEL_DIR", str(folder / "bert"))
    for _, adapter in trained.values():
        given = ["--adapter", adapter, "--glue-submission", tmp_path / "s", "--glue-dir", folder / "glue"]
        assert lora("predict", *given).returncode == 0
    allowed = {
        "RTE.tsv": {"entailment", "not_entailment"},
        "MNLI-m.tsv": {"entailment", "neutral", "contradiction"},
        "MNLI-mm.tsv": {"entailment", "neutral", "contradiction"},
        "STS-B.tsv": None,
    }
    assert {path.name for path in (tmp_path / "s").iterdir()} == set(allowed)
    for name, labels in allowed.items():
        header, *rows = read_tsv(tmp_path / "s" / name)
        assert header == ["index", "prediction"] and [row[0] for row in rows] == [str(i) for i in range(11)]
        if labels is None:
            assert all(0 <= float(row[1]) <= 5 for row in rows) and len({row[1] for row in rows}) > 1
        else:
            assert {row[1] for row in rows} <= labels


def test_every_glue_task_has_a_file_of_the_official_name():
    """Source: the sample submission of gluebenchmark.com."""
    official = ["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B"]
    assert [TASKS[task].title for task in GLUE_TASKS] == official


def refused(message, *arguments, folder=None):
    done = lora("predict", *arguments, *(["--model", folder / "bert"] if folder else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_what_was_asked_for_wrongly_is_refused(runs, tmp_path, monkeypatch):
    trained, folder = runs
    monkeypatch.delenv("MODEL_DIR", raising=False)
    rte, stsb = trained["rte"][1], trained["stsb"][1]
    inputs, out = dev_file(folder, "rte"), tmp_path / "o.tsv"
    before = inputs.read_bytes()
    files = ["--input", inputs, "--output", out]
    glue = ["--glue-dir", folder / "glue", "--glue-submission", tmp_path / "s"]
    other, bare, headless = folder / "other.tsv", folder / "bare", folder / "headless"
    other.write_text("premise\thypothesis\na\tb\n")
    adapter = read_adapter(rte)
    write_adapter(Adapter(adapter.method, adapter.weights, adapter.head), bare)
    write_adapter(Adapter(adapter.method, adapter.weights, {}, adapter.base, adapter.origin), headless)
    write_adapter(dataclasses.replace(adapter, origin=Origin(task="reviews")), folder / "embedded")
    for message, *arguments in (
        ("adapter folder a{300} has no file", "--adapter", "a" * 300, *files),
        ("does not say its task", "--adapter", bare, *files),
        (r"the adapter has no classifier\.weight", "--adapter", headless, *files),
        ("would be written over the input", "--adapter", rte, "--input", inputs, "--output", inputs),
        (r"o\.txt: an output is a \.csv or a \.tsv file", "--adapter", rte, *files[:3], tmp_path / "o.txt"),
        ("cannot write .*: File name too long", "--adapter", rte, *files[:3], tmp_path / ("o" * 300 + ".csv")),
        (r"a{300}\.csv does not exist", "--adapter", rte, "--input", "a" * 300 + ".csv", *files[2:]),
        ("no column sentence1; the columns are premise", "--adapter", rte, "--input", other, *files[2:]),
        ("either --input and --output, or --glue-submission", "--adapter", rte, *files, *glue),
        ("needs --glue-dir", "--adapter", rte, "--glue-submission", tmp_path / "s"),
        ("reviews is no GLUE task", "--adapter", folder / "embedded", *glue),
        ("--batch must be >= 1", "--adapter", stsb, "--batch", "0", *files),
    ):
        refused(message, *arguments, folder=folder)
    where = r"does not say where its base \(bert-\w{6}\) is: name its folder with --model"
    refused(where, "--adapter", rte, *files)
    another = tiny.folder(folder / "another", "bert", seed=8)
    refused("not those that the adapter was trained on", "--adapter", rte, *files, "--model", another)
    assert list(tmp_path.iterdir()) == [] and inputs.read_bytes() == before


def example(language):
    """The code blocks of this language on the page about adapters, verbatim."""
    page = (ROOT / "lora" / "adapters" / "README.md").read_text()
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL) if kind == language]


def test_the_pages_example_runs_as_written(tmp_path, monkeypatch, capsys):
    """The folder holds the two runs of the page's first command. The served logits are PEFT's."""
    config, adapters = compose_run(["profile=mini", "task=reviews"]).model, tmp_path / "outputs" / "mini" / "adapters"
    for seed, task in enumerate(("reviews", "clauses")):
        assert f"-m lora task={task} runtime.save_adapter=true" in example("")[0]
        model = load_encoder(config, TASKS[task], seed).model
        shake(model, apply(model, LoraConfig(), seed), 0.05, seed)
        origin = Origin(task, TASKS[task].labels, max_length=128, encoder=config)
        adapter = adapter_of(model, describe_base(model, "minilm"), origin)
        write_adapter(adapter, adapters / f"minilm.lora-qv-r8.{task}.s1-0123456{seed}")
    assert str(model_folder()) not in (next(adapters.iterdir()) / "adapter.json").read_text()
    monkeypatch.chdir(tmp_path)
    code, _ = example("python")  # the other one needs a model of the hub
    scope = {}
    exec(compile(code, "lora/adapters/README.md", "exec"), scope)
    assert "tensor" in capsys.readouterr().out
    served = scope["served"](["reviews", "clauses"], **scope["rows"])
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "outputs" / "reviews-peft").eval()
    with torch.no_grad():
        expected = theirs(**{key: value[:1] for key, value in scope["rows"].items()}).logits[0]
    torch.testing.assert_close(served[0], expected, rtol=0, atol=1e-4)
    assert served[1].shape == (2,)
    columns = {task: TASKS[task].columns for task in ("reviews", "clauses")}
    texts = [int(row.max()) + 1 for row in scope["rows"]["token_type_ids"]]
    assert texts == [len(names) for names in columns.values()] == [1, 2]  # each row has its task's columns
    for task, names in columns.items():
        Path(f"{task}.tsv").write_text("\t".join(names) + "\n" + "\t".join("A text." for _ in names) + "\n")
    for line in example("")[1].splitlines():
        command = line.split()
        assert command[:4] == [".venv/bin/python", "-m", "lora", "predict"]
        assert lora("predict", *(glob.glob(word)[0] if "*" in word else word for word in command[4:])).returncode == 0
    for task, names in columns.items():
        assert read_tsv(Path(f"{task}.predicted.tsv"))[1][len(names)] in TASKS[task].labels
