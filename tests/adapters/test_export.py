"""`python -m lora export`: what it writes is loaded by peft or transformers alone, with the logits that predict has."""

import csv
import os
import subprocess
import sys

import own_tasks
import pytest
import tiny_glue
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lora.cli import main
from lora.data.tasks import TASKS

METHODS = {
    "lora": ["method=lora"],
    "merged": ["method=lora", "method.rank=2"],
    "peft": ["method=peft", "method.type=ia3"],
    "full": ["method=full"],
    "bitfit": ["method=bitfit"],
}


def trained(overrides, *more: str) -> str:
    """The folder of a saved adapter."""
    assert main([*overrides, *more, "seed=1", "runtime.save_adapter=true"]) == 0
    outputs = next(one.partition("=")[2] for one in overrides if one.startswith("runtime.outputs="))
    (folder,) = (entry.path for entry in os.scandir(f"{outputs}/adapters"))
    return folder


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_library_alone_has_the_logits_of_predict(tiny_overrides, model_dir, tmp_path, name):
    adapter, out = trained(tiny_overrides, *METHODS[name]), str(tmp_path / "out")
    texts = ["the film was good", "a bad story well told", "good", "good bad " * 20]  # the last is cut at 32 tokens
    own_tasks.write_csv(tmp_path / "rows.csv", [[text] for text in texts], ["sentence"])
    table = ["--input", f"{tmp_path}/rows.csv", "--output", f"{tmp_path}/out.csv"]
    assert main(["predict", "--adapter", adapter, "--model", str(model_dir), *table]) == 0
    more = ["--merged"] if name in ("merged", "full") else []
    assert main(["export", adapter, out, "--model", str(model_dir), *more]) == 0
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out").rglob("*") if path.is_file())
    is_peft = name in ("lora", "peft")
    library = AutoPeftModelForSequenceClassification if is_peft else AutoModelForSequenceClassification
    model = library.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(f"{out}/base" if is_peft else out)
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        shares = model.eval()(**inputs).logits.softmax(-1)
    with open(tmp_path / "out.csv") as file:
        rows = list(csv.DictReader(file))
    labels = TASKS["cola"].labels
    expected = [[float(row[f"p_{label}"]) for label in labels] for row in rows]
    assert torch.allclose(shares, torch.tensor(expected), atol=2e-6)
    assert [model.config.id2label[int(one)] for one in shares.argmax(-1)] == [row["prediction"] for row in rows]
    answers = pipeline("text-classification", out, tokenizer=f"{out}/base" if is_peft else out)(texts, truncation=True)
    assert [(one["label"], one["score"]) for one in answers] == [
        (row["prediction"], pytest.approx(max(share), abs=2e-6)) for row, share in zip(rows, expected, strict=True)
    ]


@pytest.mark.parametrize("merged", [True, False])
def test_a_regression_of_ones_own_gives_scores(model_dir, tmp_path, merged):
    scores = [(f"word {number} {'good' if number % 3 else 'bad'}", f"{10 * (number % 3)}") for number in range(30)]
    for split in ("train", "dev"):
        own_tasks.write_csv(tmp_path / f"{split}.csv", scores)
    path = own_tasks.write_task(tmp_path, labels=None, range=[0, 20], metric="pearson")
    overrides = ["profile=own", f"task={path}", *own_tasks.settings(model_dir), *own_tasks.folders(tmp_path)]
    adapter, texts = trained(overrides, "method=lora"), ["word good", "word bad"]
    out = str(tmp_path / "out")
    assert main(["export", adapter, out, *["--merged"] * merged, "--model", str(model_dir)]) == 0
    own_tasks.write_csv(tmp_path / "rows.csv", [[text] for text in texts], ["text"])
    table = ["--input", f"{tmp_path}/rows.csv", "--output", f"{tmp_path}/out.csv"]
    assert main(["predict", "--adapter", adapter, "--model", str(model_dir), *table]) == 0
    classify = pipeline("text-classification", out, tokenizer=out if merged else f"{out}/base")
    with open(tmp_path / "out.csv") as file:
        expected = [float(row["prediction"]) for row in csv.DictReader(file)]
    assert [one["score"] for one in classify(texts)] == pytest.approx(expected, rel=1e-4)


def test_what_no_library_loads_or_cannot_be_written_leaves_nothing(tiny_overrides, model_dir, tmp_path, capsys):
    adapter, base = trained(tiny_overrides, "method=houlsby"), ["--model", str(model_dir)]
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    other = tiny_glue.write(tmp_path / "glue")  # no encoder
    for words, message in (
        ([adapter, str(tmp_path / "out"), *base], "houlsby is of no format that peft loads"),
        ([adapter, str(full), *base], "must be a new folder, or an empty one"),
        ([adapter, str(tmp_path / "out"), "--merged", *base], "--merged is for LoRA"),
    ):
        assert main(["export", *words]) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and [*full.iterdir()] == [full / "mine.txt"]
    overrides = [one if "outputs" not in one else f"runtime.outputs={tmp_path}/second" for one in tiny_overrides]
    lora = trained(overrides, "method=lora")
    assert main(["export", lora, str(tmp_path / "out"), "--model", str(other)]) == 2
    words = f"{sys.executable} -B -m lora export {lora} {tmp_path}/out --merged --model {model_dir}"  # -B: no cut .pyc
    done = subprocess.run(["bash", "-c", f"ulimit -f 20; exec {words}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: cannot write "), done.stderr
    assert not (tmp_path / "out").exists()
