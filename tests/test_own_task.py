"""A user-defined task, from its file to the report: real readers on real files, and real runs on them."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import fake_hub
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import yaml
from commands import command as call

from lora.config.compose import compose_run, is_untuned
from lora.config.own_task import TASK_FILES, find_task
from lora.data.own_rows import duplicates
from lora.data.own_task import FOLDER, add_kept_tasks, add_task, keep_task
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_records
from lora.sweep.request import requested

STATED = {"columns": ["text"], "label": "mood", "labels": ["bad", "good"], "metric": "accuracy"}
STATED |= {"train": "train.csv", "dev": "dev.csv"}
ROWS = [("the film was good", "good"), ("the film was bad", "bad"), ("a good story", "good"), ("a dull story", "bad")]


@pytest.fixture(autouse=True)
def only_here():
    """Restore TASKS after each test."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def write_csv(path: Path, rows, header=("text", "mood")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_task(folder: Path, name: str = "moods", **changes) -> Path:
    """Write a definition, and its two CSV files unless they exist. A value of None omits the key."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        if not (folder / f"{split}.csv").exists():
            write_csv(folder / f"{split}.csv", ROWS)
    stated = {key: value for key, value in (STATED | changes).items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(stated))
    return path


def rows_of(task, split="train"):
    return read(task, "own", splits=(split,)).splits[split].to_dict()


# The definition


def test_a_task_is_named_by_its_file_and_by_what_it_says(tmp_path):
    task = add_task(write_task(tmp_path / "one", "my moods!"))
    assert task.name.startswith("my_moods-") and TASKS[task.name] is task
    assert task.official_rows == {"train": 4, "validation": 4} and task.family == "own"
    again = add_task(write_task(tmp_path / "two", "my moods!"))
    assert again.name == task.name, "another folder is the same definition"
    others = [
        add_task(write_task(tmp_path / "one", "my moods!", **change)).name
        for change in (
            {"labels": ["good", "bad"]},
            {"metric": "f1"},
            {"test": "dev.csv", "dev": "train.csv", "train": "../two/train.csv"},
            {"columns": ["mood"], "label": "text", "labels": [text for text, _ in ROWS]},
        )
    ]
    assert len({task.name, *others}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": ["text"]}, "colums is not a setting; the nearest is columns; the settings are columns, label"),
        ({"columns": None}, "columns is missing"),
        ({"columns": ["a", "b", "c"]}, "columns must be a list of one or two text columns"),
        ({"columns": ["text", "text"]}, "columns must be distinct names"),
        ({"columns": ["idx"]}, "columns must be called other than label or idx"),
        ({"label": "text"}, "label must be the name of a column that is no text column, got 'text'"),
        ({"labels": None}, r"labels \(of a classification\) or range \(of a regression\) must be stated, got neither"),
        ({"range": [0, 1]}, "must be stated, got both"),
        ({"labels": ["bad"]}, "labels must be two or more words"),
        ({"labels": ["bad", "bad"]}, "labels must be distinct"),
        (
            {"labels": [False, True]},
            "labels: YAML reads an unquoted yes, no, on, off, true or false as False; quote it",
        ),
        ({"labels": ["a\tb", "c"]}, "words without tabs and line ends"),
        ({"labels": ["a", "b", "c"], "metric": "f1"}, "metric must be accuracy or macro_f1 for more than two labels"),
        ({"metric": "pearson"}, "metric must be one of accuracy, f1, macro_f1, matthews with labels, got 'pearson'"),
        ({"labels": None, "range": [0, 1]}, "metric must be pearson or spearman with a range, got 'accuracy'"),
        ({"labels": None, "range": [1, 0], "metric": "pearson"}, r"range must be \[lowest, highest\], finite numbers"),
        ({"metric": "bleu"}, "metric must be one of accuracy, f1, macro_f1, matthews, pearson, spearman, got 'bleu'"),
        ({"dev": "train.csv"}, "train, dev, test must be different"),
        ({"hub": {"id": "a/b"}}, "hub.revision is missing"),
        ({"hub": {"id": "../a", "revision": "main"}}, "hub.id must be of the form user/data_set, got '../a'"),
    ],
)
def test_a_broken_rule_of_the_file_is_named(changes, message, tmp_path):
    path = write_task(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"(?s)moods.yaml does not define a task:\n.*{message}"):
        add_task(path)


def test_all_problems_of_a_file_come_together(tmp_path):
    path = write_task(tmp_path, label=3, metric="bleu", colour="red", dev=None)
    with pytest.raises(UserError) as caught:
        add_task(path)
    assert len(str(caught.value).splitlines()) == 1 + 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"columns: [text\nlabel: x\n", r"moods.yaml:2: not YAML"),
        (b"label: a\nmetric: f1\nlabel: b\n", r"moods.yaml:3: not YAML: the key label occurs twice"),
        (b"label: &a [x]\ncolumns: *a\n", r"moods.yaml:2: not YAML: aliases .* are not read"),
        (b"- text\n", "moods.yaml does not define a task: it must state columns, label, metric, train and dev"),
        (b"", "moods.yaml does not define a task: it must state"),
        (b"label: \xff\n", "moods.yaml is not UTF-8: byte 0xff"),
        (b"label: !!python/object/apply:os.system ['true']\n", r"moods.yaml:1: not YAML: could not determine"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_with_its_line(content, message, tmp_path):
    (tmp_path / "moods.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        add_task(tmp_path / "moods.yaml")


# The rows


def write_as(path: Path, rows, columns=("text", "mood")) -> None:
    """Write the rows in the format of the file's suffix, with other libraries than those that read them."""
    frame = pd.DataFrame(rows, columns=columns)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]), encoding="utf-8")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".parquet":
            frame.to_parquet(path, index=False)


HARD = [('a "quoted", text', "good"), ("ünïcode\u2028 in it", "bad"), ("NA", "good"), ("  spaces ", "bad")]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_form_gives_the_same_rows(ending, tmp_path):
    for split in ("train", "dev"):
        write_as(tmp_path / f"{split}{ending}", HARD)
    task = add_task(write_task(tmp_path, train=f"train{ending}", dev=f"dev{ending}"))
    assert rows_of(task) == {"text": [text for text, _ in HARD], "label": [1, 0, 1, 0], "idx": [0, 1, 2, 3]}
    plain = add_task(write_task(tmp_path / "plain", train=f"../train{ending}", dev="dev.csv"))
    assert plain.name != task.name


def test_quoted_cells_may_have_lines_and_messages_name_the_line_of_the_file(tmp_path):
    write_csv(tmp_path / "train.csv", [("one\ntwo\nthree", "good"), ("four", "bad"), ("five", "ugly")])
    with pytest.raises(UserError, match=r"train.csv:6: 'ugly' in column mood: the labels are bad, good"):
        add_task(write_task(tmp_path))
    write_csv(tmp_path / "train.csv", [("one\ntwo\nthree", "good"), ("four", "bad")])
    assert rows_of(add_task(write_task(tmp_path)))["text"] == ["one\ntwo\nthree", "four"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_whole_numbers_are_labels_and_scores_are_numbers(ending, tmp_path):
    rows = [("a", "b", 0, 0.5), ("c", "d", 1, 2.0), ("e", "f", 1, -1.0)]
    for split in ("train", "dev"):
        write_as(tmp_path / f"{split}{ending}", rows, ("one", "two", "class", "score"))
    files = {"columns": ["one", "two"], "train": f"train{ending}", "dev": f"dev{ending}"}
    classes = add_task(write_task(tmp_path, "classes", label="class", labels=[1, 0], **files))
    assert classes.labels == ("1", "0") and rows_of(classes)["label"] == [1, 0, 0]
    scored = add_task(
        write_task(tmp_path, "scored", label="score", labels=None, range=[-1, 2], metric="spearman", **files)
    )
    assert rows_of(scored)["label"] == [0.5, 2.0, -1.0] and rows_of(scored)["two"] == ["b", "d", "f"]
    assert scored.label_std == pytest.approx(np.std([0.5, 2.0, -1.0]))


BAD = {
    "a missing column": ("text,feeling\nx,good\ny,bad\n", r":1: no column mood; the columns are text, feeling"),
    "a column twice": ("text,mood,mood\nx,good,good\n", r":1: the column 'mood' occurs 2 times"),
    "an unknown label": ("text,mood\nx,good\ny,Bad\n", r":3: 'Bad' in column mood: the labels are bad, good"),
    "no label": ("text,mood\nx,good\ny,\n", r":3: no label in column mood: the labels are bad, good"),
    "an empty text": ('text,mood\nx,good\n" ",bad\n', r":3: an empty text in column text"),
    "Latin-1": ("text,mood\nx,good\ncaf\xe9,bad\n".encode("latin-1"), r":3: not UTF-8: byte 0xe9"),
    "UTF-16": ("text,mood\nx,good\n".encode("utf-16"), r":1: UTF-16; save it as UTF-8"),
    "a ragged row": ("text,mood\nx,good\ny,bad,more\n", r":3: 3 columns, must be 2 \(text, mood\): 'y, bad, more'"),
    "a short row": ("text,mood\nx,good\ny\n", r":3: 1 columns, must be 2"),
    "an empty line": ("text,mood\nx,good\n\ny,bad\n", r":3: an empty line between rows"),
    "an open quote": ('text,mood\nx,good\n"y,bad\n', r":3: not CSV: unexpected end of data"),
    "one class": ("text,mood\nx,good\ny,good\n", r": all 2 rows have 'good' in column mood"),
    "no rows": ("text,mood\n", r": no rows; the dev split needs some"),
    "nothing": ("", r": empty file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_one_message_with_file_and_line(kind, tmp_path):
    content, message = BAD[kind]
    path = write_task(tmp_path)
    (tmp_path / "dev.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"{tmp_path}/dev.csv{message}") as caught:
        add_task(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        (".tsv", "text\tmood\nx\tgood\ny\n", r":3: 1 columns, must be 2"),
        (".jsonl", '{"text": "x", "mood": "good"}\n{"text": "y"}\n', r":2: no column mood; the columns are text"),
        (".jsonl", '{"text": "x", "mood": "good", "mood": "bad"}\n', r":1: the column 'mood' occurs 2 times"),
        (".jsonl", '{"text": "x", "mood": "good"}\n["y"]\n', r":2: must be a JSON object"),
        (".jsonl", '{"text": "x", "mood": "good"}\n{"text": "y"\n', r":2: not JSON"),
        (".jsonl", '{"text": 5, "mood": "good"}\n', r":1: 5, which is not text, in column text"),
        (".jsonl", '{"text": "x", "mood": true}\n', r":1: True in column mood: the labels are bad, good"),
        (".parquet", "text", r": .*is it a whole parquet file\?"),
        (".xlsx", "text", r": unknown extension '.xlsx'; a file of rows is .csv, .tsv, .jsonl, .parquet"),
        ("", "text", r": unknown extension ''; a file of rows is"),
    ],
)
def test_bad_files_of_other_forms_are_one_message(ending, content, message, tmp_path):
    (tmp_path / f"rows{ending}").write_text(content)
    with pytest.raises(UserError, match=rf"{tmp_path}/rows{ending}{message}"):
        add_task(write_task(tmp_path, dev=f"rows{ending}"))


@pytest.mark.parametrize("score", ["high", "", "nan", "inf", "5.5", "-0.1"])
def test_a_score_is_a_number_of_the_range(score, tmp_path):
    path = write_task(tmp_path, labels=None, range=[0, 5], metric="pearson")
    write_csv(tmp_path / "train.csv", [("a", "0"), ("b", "5"), ("c", score)])
    with pytest.raises(UserError, match=r"train.csv:4: .* in column mood: a score is a number from 0 to 5"):
        add_task(path)


def test_a_file_that_is_absent_is_answered_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match=r"valid.csv does not exist \(found in its folder: dev.csv, moods.yaml, train"):
        add_task(write_task(tmp_path, dev="valid.csv"))


def test_a_test_split_needs_no_labels_and_files_may_lie_anywhere(tmp_path):
    write_csv(tmp_path / "elsewhere" / "test.csv", [("x",), ("y",)], header=("text",))
    task = add_task(write_task(tmp_path / "here", test="../elsewhere/test.csv"))
    assert task.official_rows["test"] == 2 and rows_of(task, "test")["label"] == [None, None]
    write_csv(tmp_path / "elsewhere" / "test.csv", [("x", ""), ("y", "")])
    assert rows_of(add_task(write_task(tmp_path / "here", test="../elsewhere/test.csv")), "test")["label"] == [None] * 2
    write_csv(tmp_path / "elsewhere" / "test.csv", [("x", "good"), ("y", "")])
    with pytest.raises(UserError, match=r"test.csv:3: no label in column mood"):
        add_task(write_task(tmp_path / "here", test="../elsewhere/test.csv"))


def test_rows_that_dev_shares_with_train_are_counted(tmp_path):
    write_csv(tmp_path / "dev.csv", [(ROWS[0][0], "bad"), ("new", "good"), (ROWS[0][0], "good"), ("also new", "bad")])
    assert duplicates(add_task(write_task(tmp_path))) == {"validation": 2}
    write_csv(tmp_path / "dev.csv", [("new", "good"), ("also new", "bad")])
    assert duplicates(add_task(write_task(tmp_path))) == {"validation": 0}


def test_a_changed_file_is_read_again(tmp_path):
    path = write_task(tmp_path)
    before = read(add_task(path), "own").fingerprint
    write_csv(tmp_path / "train.csv", [*ROWS, ("one more", "good")])
    task = add_task(path)
    assert task.official_rows["train"] == 5 and read(task, "own").fingerprint != before


HUB_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: held
    path: held.parquet
  - split: test
    path: test.parquet
---
"""
HUB_CODE = """
import json, sys
from pathlib import Path
from lora.data.own_task import add_task
from lora.data.read import read
from lora.errors import UserError
try:
    splits = read(add_task(Path(sys.argv[1])), "own", splits=("train", "validation", "test")).splits
    print(json.dumps({split: rows.to_dict() for split, rows in splits.items()}))
except UserError as error:
    print(json.dumps(str(error)))
"""


def test_a_data_set_of_the_hub_is_read_at_its_revision_by_the_words_of_its_labels(tmp_path):
    """The hub is on localhost. Its class indices are in another order than the definition's words."""
    folder = tmp_path / "hub"
    folder.mkdir()
    classes = datasets.Features({"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["good", "bad"])})
    for split, indices in (("train", [0, 1, 0, 1]), ("held", [1, 1, 0, 0]), ("test", [-1, -1, -1, -1])):
        table = datasets.Dataset.from_dict({"text": [text for text, _ in ROWS], "mood": indices}, features=classes)
        table.to_parquet(str(folder / f"{split}.parquet"))
    (folder / "README.md").write_text(HUB_CARD)
    of_hub = {"train": "train", "dev": "held", "test": "test"}
    good = write_task(tmp_path, hub={"id": "someone/moods", "revision": fake_hub.COMMIT}, **of_hub)
    bad = write_task(tmp_path, "bad", hub={"id": "someone/moods", "revision": "nowhere"}, **of_hub)
    with fake_hub.serve("someone/moods", folder) as endpoint:
        kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and "OFFLINE" not in key}
        environment = kept | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
        found = []
        for path in (good, bad):
            command = [sys.executable, "-c", HUB_CODE, path]
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout))
    texts = [text for text, _ in ROWS]
    assert found[0]["train"] == {"text": texts, "label": [1, 0, 1, 0], "idx": [0, 1, 2, 3]}
    assert found[0]["validation"] == {"text": texts, "label": [0, 0, 1, 1], "idx": [0, 1, 2, 3]}
    assert found[0]["test"]["label"] == [None] * 4
    assert found[1].startswith("cannot read train of someone/moods (revision nowhere) from the hub: ")


# How it is named


def test_task_names_a_file_by_its_path_or_by_its_place_in_conf(tmp_path, monkeypatch):
    path = write_task(tmp_path, "moods")
    monkeypatch.setattr("lora.config.own_task.TASK_FILES", tmp_path)
    assert find_task(str(path), tmp_path).name == find_task("moods", tmp_path).name
    assert find_task("rte", tmp_path) is TASKS["rte"]
    with pytest.raises(UserError, match=r"task must be one of mnli, .*, moods, or a file .*\(the nearest is moods\)"):
        find_task("mood", tmp_path)
    assert TASK_FILES == ROOT / "conf" / "tasks"


def test_results_keep_the_definition_for_other_processes(tmp_path):
    task = add_task(write_task(tmp_path, metric="matthews"))
    keep_task(task, tmp_path / "results")
    del TASKS[task.name]
    assert add_kept_tasks(tmp_path / "results") == [task.name]
    kept = TASKS[task.name]
    assert (kept.columns, kept.labels, kept.metric) == (("text",), ("bad", "good"), "matthews")
    assert kept.official_rows == task.official_rows
    with pytest.raises(UserError, match=f"where the rows of {task.name} lie is not known here: name its file, task="):
        read(kept, "own")
    path = tmp_path / "results" / FOLDER / f"{task.name}.json"
    content = json.loads(path.read_text())
    content["definition"]["labels"] = ["good", "bad"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds another definition than its name says"):
        add_kept_tasks(tmp_path / "results")


def test_runs_carry_the_definitions_digits_and_no_other_task_may_take_its_place(tmp_path):
    path = write_task(tmp_path)
    config = compose_run(["profile=own", f"task={path}", "train.precision=fp32"])
    assert config.task == add_task(path).name and config.data.source == "own"
    assert f".{config.task}.s1-" in config.run_id
    small = compose_run(["profile=small", f"task={path}"])
    assert (small.data.source, small.data.revision) == ("own", None)
    other = compose_run(["profile=own", f"task={write_task(tmp_path, metric='f1')}", "train.precision=fp32"])
    assert other.run_id.split(".")[2] != config.run_id.split(".")[2]
    for override, message in (
        ("data.path=/x", "data.path must be null for a task of your own"),
        ("data.source=tsv", f"data.source must be own for task {other.task}, got 'tsv'"),
        ("start=mnli", "start must be pretrained"),
        ("protocol=long", "task must be one that has a row with protocol=long"),
    ):
        with pytest.raises(UserError, match=message):
            compose_run(["profile=own", f"task={path}", override])
    with pytest.raises(UserError, match=r"profile own needs a task of your own: task=my_task\.yaml"):
        compose_run(["profile=own"])
    with pytest.raises(UserError, match=r"task rte is not one of your own; profile own .* needs a file such as"):
        compose_run(["profile=own", "task=rte"])


def test_a_task_without_a_row_takes_the_default_one_and_says_that_it_is_untuned(tmp_path):
    path = write_task(tmp_path)
    of_cola = {m: compose_run(["profile=small", "task=cola", f"method={m}"]).train.lr for m in ("full", "lora")}
    for method, lr in of_cola.items():
        overrides = ["profile=own", f"task={path}", f"method={method}", "train.precision=fp32"]
        assert compose_run(overrides).train.lr == lr
        assert is_untuned(overrides) and not is_untuned([*overrides, "train.lr=1e-3"])
    assert not is_untuned(["profile=small", "task=cola"])
    runs = requested("own", [f"task={path}", "train.precision=fp32"])
    assert sorted({(run.method, run.seed) for run in runs}) == [
        (method, seed) for method in ("full", "houlsby", "lora") for seed in (1, 2, 3)
    ]
    assert all(run.untuned and run.examples == 4 * 10 for run in runs)
    assert not any(run.untuned for run in requested("own", [f"task={path}", "train.precision=fp32", "train.lr=1e-3"]))


def test_mpnet_trains_ones_own_task_with_the_methods_that_it_has_rows_for(tmp_path):
    asked = ["profile=own", f"task={write_task(tmp_path)}", "model=mpnet_base", "train.precision=fp32"]
    for method in ("full", "lora"):
        of_cola = compose_run(["profile=base", "task=cola", *asked[2:], f"method={method}"])
        run = compose_run([*asked, f"method={method}"])
        assert (run.train.lr, run.train.epochs) == (of_cola.train.lr, 10)
        assert is_untuned([*asked, f"method={method}"])
    runs = requested("own", ["experiment=own_task", "method=full,lora", *asked[1:]])
    assert {(run.method, run.seed) for run in runs} == {(m, seed) for m in ("full", "lora") for seed in (1, 2, 3)}
    with pytest.raises(UserError, match=r"for with model=mpnet_base \(full, lora\), got 'houlsby'$"):
        compose_run([*asked, "method=houlsby"])


# From the command line to the report


def learnable(rows: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of the tiny tokenizers' words. The label says whether a sentence has a good word or a bad one."""
    source, found = random.Random(seed), []
    plain = [word for word in tiny.WORDS if word not in ("good", "bright", "well", "bad", "dull", "badly")]
    for _ in range(rows):
        good = source.random() < 0.5
        words = [*source.choices(plain, k=4), source.choice(("good", "bright", "well") if good else ("bad", "dull"))]
        source.shuffle(words)
        found.append((" ".join(words), "good" if good else "bad"))
    return found


def lora(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lora", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def tiny_own(model_dir, tmp_path):
    """The file of a task of 500 examples, and overrides that turn the profile's runs into runs of one second."""
    write_csv(tmp_path / "data" / "train.csv", learnable(400, 1))
    write_csv(tmp_path / "data" / "dev.csv", [*learnable(95, 2), *learnable(400, 1)[:5]])
    settings = ["model=local", f"model.path={model_dir}", "data.max_length=32", "train.epochs=3", "train.batch=4"]
    settings += ["train.precision=fp32", "train.kernels=stock", "runtime.device=cpu"]
    folders = [f"runtime.{name}={tmp_path}/{name}" for name in ("results", "outputs")]
    return write_task(tmp_path / "data"), [*settings, *folders]


def test_tuned_rates_of_ones_own_task_are_taken_and_not_called_untuned(tiny_own, tmp_path):
    path, settings = tiny_own
    tried = lora("tune", "profile=own", f"task={path}", "method=lora", "train.lr=1e-3,3e-3,1e-2", *settings)
    assert tried.returncode == 0, tried.stderr
    (kept,) = (tmp_path / "results" / FOLDER).glob("*.json")
    (entry,) = yaml.safe_load((tmp_path / "results" / "rates.yaml").read_text())["rates"]
    assert entry["task"] == kept.stem and entry["lr"] in entry["tried"]
    asked = ("profile=own", f"task={path}", "experiment=own_task", "method=lora", "seed=1", *settings)
    done = lora("-m", *asked)
    assert done.returncode == 0, done.stderr
    assert f"{kept.stem}: lora {entry['lr']:g}" in done.stdout and "ntuned" not in done.stdout
    records, _ = load_records(tmp_path / "results")
    assert {record.config["train"]["lr"] for record in records if record.config["seed"] == 1} == {entry["lr"]}
    reported = lora("report", *asked[0].split("=")[1:], *asked[1:])
    assert reported.returncode == 0 and "ntuned" not in reported.stdout, reported.stderr


def test_from_a_csv_to_the_report(tiny_own, tmp_path):
    """The sweep, then reports in other processes, the last of them without the task's file."""
    path, settings = tiny_own
    results = tmp_path / "results"
    done = lora("-m", "profile=own", f"task={path}", *settings)
    assert done.returncode == 0, done.stderr
    (kept,) = (results / FOLDER).glob("*.json")
    name = kept.stem
    assert f"rows:    {name}: train 400, dev 100; also in train: 5 of dev\n" in done.stdout
    labels = pd.read_csv(path.parent / "dev.csv")["mood"]
    word, share = labels.mode()[0], labels.value_counts(normalize=True).max()
    assert f"{share:.0%} of dev are {word}, its most frequent label" in done.stdout
    assert "untuned rates" in done.stdout.partition("kernels:")[0], "announced before the first run"
    records, problems = load_records(results)
    assert not problems and len(records) == 9 and {record.config["task"] for record in records} == {name}
    assert all(f".{name}.s" in record.run_id for record in records)
    assert max(record.selected["best"]["value"] for record in records) > 0.9, "the label can be learned"

    shutil.move(path.parent, tmp_path / "moved")
    assert lora("status", "own", *settings).stdout.startswith("profile own: 9 runs: 9 done, 0 running")
    reported = lora("report", "own", *settings)
    assert reported.returncode == 0, reported.stderr
    shutil.move(tmp_path / "moved", path.parent)
    assert reported.stdout == lora("report", "own", f"task={path}", *settings).stdout
    for text in (f"| Method | Trainable | Head | Seeds | {name} (acc.) |", "Every method against every other"):
        assert text in reported.stdout and text in done.stdout
    assert reported.stdout.count("**Untuned rates.**") == 2
    page = (results / "report.html").read_text()
    assert "not measured here" not in page and "What the paper says" not in page and "Untuned rates" in page
    assert {file.name for file in (results / "figures").glob("*.svg")} == {
        "curves_own.svg", "forest_own.svg", "gaps_own.svg", "parameters_own.svg",
    }  # fmt: skip

    best = {(r.run_id.split(".")[1], r.config["seed"]): 100 * r.selected["best"]["value"] for r in records}
    shown = pd.read_csv(results / "tables" / "table2_own.csv").set_index("Method")[f"{name} (acc.)"]
    pairs = pd.read_csv(results / "tables" / "pairs_own.csv").set_index(["Method", "Minus"])
    titles = {"full": "Full fine-tuning", "lora-qv-r8": "LoRA (qv, r8)", "houlsby-m8": "Houlsby adapters (m8)"}
    for slug, title in titles.items():
        values = [best[slug, seed] for seed in (1, 2, 3)]
        assert shown[title].startswith(f"{np.median(values):.1f} ±{np.std(values, ddof=1):.1f}")
        if slug != "lora-qv-r8":
            differences = np.array([best["lora-qv-r8", seed] - best[slug, seed] for seed in (1, 2, 3)])
            row = pairs.loc["LoRA (qv, r8)", title]
            assert row["Difference"] == pytest.approx(differences.mean(), abs=0.051)
            if np.ptp(differences):
                ends = scipy.stats.t.interval(0.95, 2, differences.mean(), scipy.stats.sem(differences))
                assert row["95% over seeds"] == f"{ends[0]:+.1f} to {ends[1]:+.1f}"


def test_a_sweep_that_is_done_trains_nothing_and_other_rows_or_words_are_not_taken_for_it(tiny_own, tmp_path):
    path, settings = tiny_own
    one = ["profile=own", "method=bitfit", "seed=1"]
    first = lora(*one, f"task={path}", *settings)
    assert first.returncode == 0 and "trained in" in first.stdout, first.stderr
    assert "untuned rates" in first.stdout
    again = lora(*one, f"task={path}", *settings)
    assert again.returncode == 0 and "already done" in again.stdout, again.stderr

    copy = shutil.copytree(path.parent, tmp_path / "copy") / path.name
    elsewhere = lora(*one, f"task={copy}", *settings)
    assert elsewhere.returncode == 0 and "already done" in elsewhere.stdout, elsewhere.stderr
    write_csv(copy.parent / "train.csv", learnable(400, 3))
    changed = lora(*one, f"task={copy}", *settings)
    assert changed.returncode == 2 and "Traceback" not in changed.stderr
    assert changed.stderr.startswith("error: the rows of moods-") and "runtime.results=FOLDER" in changed.stderr
    other = write_task(path.parent, metric="macro_f1")
    trained = lora(*one, f"task={other}", *settings)
    write_task(path.parent)
    assert trained.returncode == 0 and "trained in" in trained.stdout, trained.stderr
    assert ": ok, macro_f1 best " in trained.stdout


def test_bad_input_ends_every_command_with_one_message(tiny_own, tmp_path):
    path, settings = tiny_own
    copy = shutil.copytree(path.parent, tmp_path / "copy") / path.name
    write_csv(copy.parent / "dev.csv", [("x", "good"), ("y", "goood")])
    for command in (["profile=own"], ["-m", "profile=own"], ["report", "own"], ["status", "own"], ["plan", "own"]):
        done = lora(*command, f"task={copy}", *settings)
        assert done.returncode == 2, done.stdout
        assert done.stderr == f"error: {copy.parent}/dev.csv:3: 'goood' in column mood: the labels are bad, good\n"
    in_grids = lora("-m", "profile=mini", f"task={path}")
    assert in_grids.returncode == 2 and "is in no grid of profile mini" in in_grids.stderr
    assert in_grids.stderr.endswith("A task of your own has a grid with profile=own\n")


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_end_a_run_a_sweep_and_a_report_before_anything_is_written(kind, tmp_path, monkeypatch, capfd):
    """The kinds of `BAD` as a shell shows them, in this process."""
    content, message = BAD[kind]
    path = write_task(tmp_path / "data")
    dev = path.parent / "dev.csv"
    dev.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sys, "argv", ["lora"])  # where Hydra reads its arguments
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which a launch sets for good
    folders = [f"runtime.{name}={tmp_path}/{name}" for name in ("results", "outputs")]
    for words in ("profile=own", "-m profile=own", "status own", "report own"):
        with pytest.raises(SystemExit) as ended:
            call(words)([f"task={path}", *folders])
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), words
        assert re.fullmatch(rf"error: {re.escape(str(dev))}{message}.*\n", err), (words, err)
    assert {found.name for found in tmp_path.iterdir()} == {"data"}


def test_adapters_predict_without_the_tasks_file(tiny_own, tmp_path):
    """The adapter's folder states its columns and labels. The predicted words give the recorded dev metric."""
    path, settings = tiny_own
    done = lora("profile=own", f"task={path}", "method=lora", "runtime.save_adapter=true", *settings)
    assert done.returncode == 0, done.stderr
    (adapter,) = (tmp_path / "outputs" / "adapters").iterdir()
    model = settings[1].partition("=")[2]
    output = tmp_path / "predicted.tsv"
    given = ["--adapter", adapter, "--model", model, "--input", path.parent / "dev.csv", "--output", output]
    done = lora("predict", *given)
    assert done.returncode == 0, done.stderr
    words = pd.read_csv(output, sep="\t")["prediction"].tolist()
    labels = pd.read_csv(path.parent / "dev.csv")["mood"].tolist()
    (record,) = load_records(tmp_path / "results")[0]
    assert np.mean([word == label for word, label in zip(words, labels, strict=True)]) == pytest.approx(
        record.selected["best"]["value"]
    )
    assert len(set(words)) == 2
    named = lora("predict", *given, "--task", path)
    assert named.returncode == 0 and pd.read_csv(output, sep="\t")["prediction"].tolist() == words

    description = adapter / "adapter.json"
    content = json.loads(description.read_text())
    content["origin"]["columns"] = ["text", "a\tb"]
    description.write_text(json.dumps(content))
    hostile = lora("predict", *given)
    assert hostile.returncode == 2 and "describes no task: columns and labels must be words" in hostile.stderr
    lacking = write_csv(tmp_path / "lacking.csv", [("x",)], header=("words",))
    named = lora(
        "predict", "--adapter", adapter, "--task", path, "--model", model, "--input", lacking, "--output", output
    )
    assert named.returncode == 2
    assert named.stderr.startswith(f"error: {lacking}:1: moods-") and "needs the columns text" in named.stderr
