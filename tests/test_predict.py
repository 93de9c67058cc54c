"""`python -m lora predict`: the recorded dev predictions again, the official files, several adapters, and bad input."""

import glob
import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import tiny
import tiny_glue
import torch
from commands import command
from glue_files import GLUE_TASKS
from safetensors.numpy import load_file

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.base import describe_base
from lora.adapters.base_location import model_entries
from lora.adapters.folder import DESCRIPTION, read_adapter, write_adapter
from lora.config.compose import compose_run
from lora.data.tasks import TASKS
from lora.files import ROOT
from lora.methods import apply
from lora.methods.configs import LoraConfig
from lora.models.load import load_encoder
from lora.records.record import adapter_path
from lora.sweep.worker import ensure_record

main = command("predict")

RUNS = {
    "rte": ("task=rte", "method=lora", "method.rank=3"),
    "mnli": ("task=mnli", "method=lora", "method.targets=[q,k,o]", "method.alpha=16"),
    "stsb": ("task=stsb", "method=houlsby", "method.bottleneck=6"),
    "cola": ("task=cola", "method=lora"),
    "mrpc": ("task=mrpc", "method=bitfit"),
}
TESTS = {
    "CoLA/test.tsv": ("index\tsentence", 1),
    "MRPC/test.tsv": ("index\t#1 ID\t#2 ID\t#1 String\t#2 String", 2),
    "STS-B/test.tsv": ("index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2", 2),
    "RTE/test.tsv": ("index\tsentence1\tsentence2", 2),
    "MNLI/test_matched.tsv": ("index\tpromptID\tpairID\tgenre\tsentence1\tsentence2", 2),
    "MNLI/test_mismatched.tsv": ("index\tpromptID\tpairID\tgenre\tsentence1\tsentence2", 2),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five trained runs on one base: task -> (record, adapter folder), and the folder of everything."""
    folder = tmp_path_factory.mktemp("predict")
    glue, model = tiny_glue.write(folder / "glue"), tiny.folder(folder / "bert", "bert")
    for file, (header, texts) in TESTS.items():
        rows = [[str(i), *["x"] * (header.count("\t") - texts)] for i in range(11)]
        for seed in range(texts):
            for row, text in zip(rows, tiny.sentences(11, seed + 50), strict=True):
                row.append(text)
        (glue / file).write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    trained = {}
    for task, overrides in RUNS.items():
        config = compose_run(
            [
                "profile=small",
                "model=local",
                f"model.path={model}",
                f"data.path={glue}",
                "train.epochs=2",
                "train.batch=8",
                "train.lr=1e-3",
                "train.precision=fp32",
                "train.kernels=stock",
                "data.max_length=32",
                f"runtime.results={folder}/results",
                f"runtime.outputs={folder}/outputs",
                "runtime.device=cpu",
                "runtime.save_adapter=true",
                *overrides,
            ]
        )
        record = ensure_record(config, mistakes_fail=False)
        trained[task] = record, adapter_path(config.runtime.outputs, config.run_id).parent
    return trained, folder


def predict(*arguments):
    """Run the command and return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code
    return 0


def read_tsv(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def dev_file(folder, task):
    """Write the dev rows as an input: a header with the task's column names, and the texts alone."""
    layout, split = TASKS[task].tsv, TASKS[task].validation_splits[0]
    lines = read_tsv(folder / "glue" / layout.folder / layout.files[split])
    header = list(layout.bare) if layout.bare else lines.pop(0)
    places = [header.index(name) for name in layout.texts]
    path = folder / f"{task}.tsv"
    rows = [TASKS[task].columns, *([line[place] for place in places] for line in lines)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def recorded(folder, record, task):
    """The predictions of the best epoch that training recorded: class indices or scores."""
    split = TASKS[task].validation_splits[0]
    epoch = record.selected["best"]["epoch"]
    return load_file(folder / "results" / "predictions" / f"{record.run_id}.safetensors")[f"{epoch}.{split}"]


@pytest.mark.parametrize("task", RUNS)
def test_a_trained_adapter_predicts_again_what_its_record_holds(runs, task, tmp_path):
    trained, folder = runs
    record, adapter = trained[task]
    inputs = dev_file(folder, task)
    found = tmp_path / "deep" / "out.tsv"
    assert (
        predict("--adapter", adapter, "--task", task, "--input", inputs, "--output", found, "--model", folder / "bert")
        == 0
    )
    header, *rows = read_tsv(found)
    assert header == ["index", "prediction"] and [row[0] for row in rows] == [str(i) for i in range(20)]
    expected = recorded(folder, record, task)
    if TASKS[task].labels:
        assert [row[1] for row in rows] == [TASKS[task].labels[index] for index in expected]
    else:
        assert np.array([float(row[1]) for row in rows]) == pytest.approx(expected, abs=1e-4)


def test_several_adapters_from_one_base_are_as_each_alone(runs, tmp_path):
    trained, folder = runs
    alone, together = [], []
    for task, (_, adapter) in trained.items():
        inputs = dev_file(folder, task)
        predict("--adapter", adapter, "--input", inputs, "--output", tmp_path / f"{task}.1", "--model", folder / "bert")
        alone.append(tmp_path / f"{task}.1")
        together += ["--adapter", adapter, "--input", inputs, "--output", tmp_path / f"{task}.2"]
    assert predict(*together, "--model", folder / "bert", "--batch", 7) == 0
    for path in alone:
        assert path.read_text() == path.with_suffix(".2").read_text()


def mixed_file(folder, path):
    """Write dev rows of two tasks in turn, each naming its adapter. Fields of the other task's columns are empty."""
    pairs, singles = read_tsv(dev_file(folder, "rte"))[1:], read_tsv(dev_file(folder, "cola"))[1:]
    lines = ["adapter\tsentence1\tsentence2\tsentence"]
    for pair, single in zip(pairs, singles, strict=True):
        lines += [f"first\t{pair[0]}\t{pair[1]}\t", f"second\t\t\t{single[0]}"]
    path.write_text("\n".join(lines) + "\n")
    return path


def two(runs):
    trained, _ = runs
    return ["--adapter", f"first={trained['rte'][1]}", "--adapter", f"second={trained['cola'][1]}"]


def test_rows_of_one_file_name_their_adapters(runs, tmp_path):
    trained, folder = runs
    inputs = mixed_file(folder, tmp_path / "mixed.tsv")
    found = tmp_path / "out.tsv"
    assert predict(*two(runs), "--input", inputs, "--output", found, "--model", folder / "bert") == 0
    header, *rows = read_tsv(found)
    assert header == ["index", "adapter", "prediction"] and [row[0] for row in rows] == [str(i) for i in range(40)]
    for place, (name, task) in enumerate((("first", "rte"), ("second", "cola"))):
        expected = recorded(folder, trained[task][0], task)
        assert [row[1] for row in rows[place::2]] == [name] * 20
        assert [row[2] for row in rows[place::2]] == [TASKS[task].labels[index] for index in expected]


def test_a_glue_submission_has_the_official_names_headers_and_words(runs, tmp_path):
    trained, folder = runs
    adapters = [part for _, adapter in trained.values() for part in ("--adapter", adapter)]
    arguments = ["--glue-dir", folder / "glue", "--model", folder / "bert"]
    assert predict(*adapters, "--glue-submission", tmp_path / "s", *arguments) == 0
    allowed = {
        "CoLA.tsv": {"0", "1"},
        "MRPC.tsv": {"0", "1"},
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
    official = tmp_path / "rte.tsv"
    arguments = ["--input", folder / "glue" / "RTE" / "test.tsv", "--output", official, "--model", folder / "bert"]
    assert predict("--adapter", trained["rte"][1], *arguments) == 0  # the official file is an input as it is
    assert official.read_text() == (tmp_path / "s" / "RTE.tsv").read_text()


def test_every_glue_task_has_a_file_of_the_official_name():
    """Source: the sample submission of gluebenchmark.com."""
    names = {task: TASKS[task].tsv.folder for task in GLUE_TASKS}
    official = ["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B"]
    assert list(names.values()) == official
    assert TASKS["sst2"].tsv.words == TASKS["qqp"].tsv.words == ("0", "1") and not TASKS["qnli"].tsv.words


def lines_of(path, change):
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def rename(lines):
    lines[0] = "premise\thypothesis"


def widen(lines):
    lines[4] += "\tmore"


def misname(lines):
    lines[3] = lines[3].replace("first", "third")


def unname(lines):
    lines[0] = lines[0].replace("adapter", "task")


BAD_INPUT = {
    "column": (rename, r"rte\.tsv: RTE needs the columns sentence1, sentence2; it has premise, hypothesis"),
    "line": (widen, r"cannot read .*rte\.tsv: Expected 2 fields in line 5, saw 3"),
    "empty": (lambda lines: lines.__delitem__(slice(1, None)), r"rte\.tsv: a header but no rows"),
}


@pytest.mark.parametrize("fault", BAD_INPUT)
def test_a_bad_input_is_refused_with_file_and_row(runs, fault, tmp_path, capsys):
    trained, folder = runs
    inputs = shutil.copy(dev_file(folder, "rte"), tmp_path / "rte.tsv")
    change, message = BAD_INPUT[fault]
    lines_of(inputs, change)
    refused(
        capsys, message, "--adapter", trained["rte"][1], "--input", inputs, "--output", tmp_path / "o", folder=folder
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rte.tsv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (misname, r"mixed\.tsv, row 3: no adapter 'third' is loaded; the adapters are first, second"),
        (unname, r"mixed\.tsv: no column adapter; the columns are task, "),
    ],
)
def test_a_bad_name_in_a_mixed_input_is_refused(runs, change, message, tmp_path, capsys):
    inputs = mixed_file(runs[1], tmp_path / "mixed.tsv")
    lines_of(inputs, change)
    refused(capsys, message, *two(runs), "--input", inputs, "--output", tmp_path / "o", folder=runs[1])
    assert not (tmp_path / "o").exists()


def refused(capsys, message, *arguments, folder=None):
    assert predict(*arguments, *(["--model", folder / "bert"] if folder else [])) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "Traceback" not in said.err and said.out == ""
    assert re.search(message, said.err), said.err


def test_what_was_asked_for_wrongly_is_refused(runs, tmp_path, capsys):
    trained, folder = runs
    rte, stsb = trained["rte"][1], trained["stsb"][1]
    inputs, out = dev_file(folder, "rte"), tmp_path / "o"
    files = ["--input", inputs, "--output", out]
    glue = ["--glue-dir", folder / "glue", "--glue-submission", tmp_path / "s"]
    for message, *arguments in (
        ("was trained on rte .*, and task mnli has labels entailment, n", "--adapter", rte, "--task", "mnli", *files),
        ("and task rte has labels", "--adapter", stsb, "--task", "rte", *files),
        ("unknown task 'rt'", "--adapter", rte, "--task", "rt", *files),
        ("adapter folder .*nowhere does not exist", "--adapter", tmp_path / "nowhere", *files),
        ("2 adapters need as many inputs", "--adapter", rte, "--adapter", stsb, *files, *files, *files),
        ("adapters need distinct names", "--adapter", rte, "--adapter", rte, *files),
        ("two outputs are the same file", *two(runs), *files, *files),
        ("either --input and --output, or --glue-submission", "--adapter", rte, *files, *glue),
        ("either --input and --output, or --glue-submission", "--adapter", rte),
        ("1 inputs and 0 outputs", "--adapter", rte, "--input", inputs),
        ("needs --glue-dir", "--adapter", rte, "--glue-submission", tmp_path / "s"),
        ("two adapters for rte", "--adapter", f"a={rte}", "--adapter", f"b={rte}", *glue),
        ("1 tasks for 2", *two(runs), "--task", "rte", *files),
        ("--batch must be >= 1", "--adapter", rte, "--batch", "0", *files),
        ("nowhere.csv does not exist", "--adapter", rte, "--input", tmp_path / "nowhere.csv", "--output", out),
    ):
        refused(capsys, message, *arguments, folder=folder)
    refused(
        capsys, r"does not say where its base \(bert-\w{6}\) is: name its folder with --model", "--adapter", rte, *files
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_taken_whole_and_a_name_otherwise(runs, tmp_path, capsys, monkeypatch):
    trained, folder = runs
    monkeypatch.chdir(tmp_path)
    inputs, end = dev_file(folder, "rte"), ["--output", "out", "--model", folder / "bert"]
    shutil.copytree(trained["rte"][1], "runs/lr=0.1/a")
    shutil.copytree(trained["rte"][1], "x=y")
    (tmp_path / "y").mkdir()  # if x were a name, this would be its folder
    for given in ("runs/lr=0.1/a", "x=y", "first=runs/lr=0.1/a", "first=x=y"):
        assert predict("--adapter", given, "--input", inputs, *end) == 0
        capsys.readouterr()
    two_rows = ["adapter\tsentence1\tsentence2", "a\tgood film\tbad film", "first\tgood film\tbad film"]
    Path("mixed.tsv").write_text("\n".join(two_rows) + "\n")
    both = ["--adapter", "runs/lr=0.1/a", "--adapter", "first=x=y"]
    assert predict(*both, "--input", "mixed.tsv", *end) == 0
    capsys.readouterr()
    for given, message in (
        ("runs/lr=0.2/a", "adapter folder 0.2/a does not exist, and neither does a folder runs/lr=0.2/a"),
        ("name=", r"adapter folder \(none\) does not exist"),
        ("=x=y", "an adapter's name must not be empty or contain tabs"),
        ("a\tb=x=y", "an adapter's name must not be empty or contain tabs"),
    ):
        refused(capsys, message, "--adapter", given, "--input", inputs, *end)


def test_an_adapter_without_a_head_predicts_nothing(runs, tmp_path, capsys):
    trained, folder = runs
    adapter = read_adapter(trained["rte"][1])
    write_adapter(Adapter(adapter.method, adapter.weights, {}, adapter.base, adapter.origin), tmp_path / "a")
    files = ["--input", dev_file(folder, "rte"), "--output", tmp_path / "o"]
    refused(capsys, r"adapter a has no classifier\.weight", "--adapter", tmp_path / "a", *files, folder=folder)
    assert not (tmp_path / "o").exists()


def example(language):
    """The code blocks of this language on the page about adapters, verbatim."""
    page = (ROOT / "lora" / "adapters" / "README.md").read_text()
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL) if kind == language]


def test_the_pages_example_runs_as_written(tmp_path, monkeypatch, capsys):
    """The folder holds the two runs of the page's first command. The served logits are PEFT's."""
    config, adapters = model_entries()["minilm"], tmp_path / "outputs" / "mini" / "adapters"
    for seed, task in enumerate(("reviews", "clauses")):
        assert f"-m lora task={task} runtime.save_adapter=true" in example("")[0]
        model = load_encoder(config, TASKS[task], seed).model
        names = apply(model, LoraConfig(), seed)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in names:
                parameter = model.get_parameter(name)
                parameter += 0.05 * torch.randn(parameter.shape, generator=source)
        origin = Origin(task, TASKS[task].labels, max_length=128, encoder=config)
        adapter = adapter_of(model, describe_base(model, "minilm"), origin)
        write_adapter(adapter, adapters / f"minilm.lora-qv-r8.{task}.s1-0123456{seed}")
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
    command = example("")[1].replace("\\\n", " ").split()
    assert command[:4] == [".venv/bin/python", "-m", "lora", "predict"]
    assert predict(*(glob.glob(word)[0] if "*" in word else word for word in command[4:])) == 0
    for task in columns:
        assert read_tsv(Path(f"{task}.out"))[1][1] in TASKS[task].labels


def test_another_base_and_an_unknown_origin_are_refused(runs, tmp_path, capsys):
    trained, folder = runs
    other = tiny.folder(tmp_path / "other", "bert", seed=8)
    arguments = ["--adapter", trained["rte"][1], "--input", dev_file(folder, "rte"), "--output", tmp_path / "o"]
    refused(capsys, "not those that the adapter was trained on", *arguments, "--model", other)
    adapter = read_adapter(trained["rte"][1])
    write_adapter(Adapter(adapter.method, adapter.weights, adapter.head), tmp_path / "bare")
    arguments[1] = tmp_path / "bare"
    refused(capsys, "does not say its task: name it with --task", *arguments, folder=folder)
    assert predict(*arguments, "--task", "rte", "--model", folder / "bert") == 0
    capsys.readouterr()
    refused(
        capsys, "has 2 outputs, and task mnli has labels", *arguments[:3], *mnli_input(folder, tmp_path), folder=folder
    )
    bare = Adapter(adapter.method, adapter.weights, adapter.head, None, Origin(task="reviews"))
    write_adapter(bare, tmp_path / "embedded")
    glue = ["--glue-dir", folder / "glue", "--glue-submission", tmp_path / "s"]
    refused(capsys, "not a GLUE task: reviews", "--adapter", tmp_path / "embedded", *glue, folder=folder)
    assert not (tmp_path / "s").exists()


def mnli_input(folder, tmp_path):
    (tmp_path / "o").unlink()
    return dev_file(folder, "mnli"), "--output", tmp_path / "o", "--task", "mnli"


def test_a_runs_adapter_says_how_its_base_is_found(runs):
    encoder = json.loads((runs[0]["rte"][1] / DESCRIPTION).read_text())["origin"]["encoder"]
    assert encoder["source"] == "local" and encoder["path"] is None
