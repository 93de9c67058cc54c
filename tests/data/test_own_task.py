"""A user-defined task, from its file to the report: real readers on real files, and real runs on them."""

import json
import random
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from commands import lora
from fake_hub import COMMIT, called
from own_tasks import ROWS, folders, learnable, write, write_csv, write_task
from own_tasks import settings as settings_of
from safetensors.numpy import load_file

from lora.config.compose import compose_run
from lora.config.plan import planned_tasks
from lora.data.own_metric import compute_own
from lora.data.own_task import FOLDER, find_task, kept_facts, kept_tasks, read_task
from lora.data.read import read
from lora.data.tables import read_table
from lora.errors import UserError
from lora.records.predictions import dev_predictions
from lora.records.record import load_records, predictions_path
from lora.sweep.request import select_runs

pytestmark = pytest.mark.slow

SCORED = {"labels": None, "range": [0, 5], "metric": "pearson"}
NO_RANGES = ([1, 0], [0, 1e-46], [0, 1e200], [-3e38, 3e38], [0, "nan"], [1])
OWN = {"evaluate": "f1", "key": "f1", "revision": COMMIT}
FORMS = (".csv", ".tsv", ".jsonl", ".parquet")


def rows_of(task, split="train"):
    return read(task, "own", splits=(split,)).splits[split]


# The definition


def test_a_task_is_named_by_its_file_and_by_what_it_says(tmp_path):
    task = read_task(write_task(tmp_path / "one", "my moods!"))
    assert task.name.startswith("my_moods-")
    assert task.official_rows == {"train": 4, "validation": 4} and task.family == "own"
    again = read_task(write_task(tmp_path / "two", "my moods!"))
    assert again.name == task.name, "another folder is the same definition"
    others = [
        read_task(write_task(tmp_path / "one", "my moods!", **change)).name
        for change in (
            {"labels": ["good", "bad"]},
            {"metric": "f1"},
            {"test": "dev.csv", "dev": "train.csv", "train": "../two/train.csv"},
            {"columns": ["mood"], "label": "text", "labels": [text for text, _ in ROWS]},
        )
    ]
    assert len({task.name, *others}) == 5


def test_two_folders_with_one_definition_and_other_rows_are_not_one_task(tmp_path):
    folds = [write_task(tmp_path / fold) for fold in ("one", "two")]
    write_csv(tmp_path / "two" / "train.csv", [*ROWS, ("one more", "good")])
    asked = ["train.precision=fp32", "train.lr=1e-3", f"task={folds[0]},{folds[1]}"]
    with pytest.raises(UserError, match=r"/one and .*/two both define the task moods-"):
        select_runs("own", asked)
    renamed = folds[1].rename(tmp_path / "two" / "fold_two.yaml")
    runs = select_runs("own", [*asked[:2], f"task={folds[0]},{renamed}"])
    assert {run.task.name.partition("-")[0] for run in runs} == {"moods", "fold_two"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": ["text"]}, "colums is not a setting; the settings are columns, label"),
        ({"columns": None}, "columns is missing"),
        ({"columns": ["idx"]}, "columns must be called other than label or idx"),
        ({"label": "text"}, "label must be the name of a column that is no text column, got 'text'"),
        ({"labels": None}, r"labels \(of a classification\) or range \(of a regression\) must be stated, got neither"),
        ({"range": [0, 1]}, "must be stated, got both"),
        ({"labels": ["bad", "bad"]}, "labels must be distinct"),
        ({"labels": ["a\x1b[2J", "c"]}, "words without tabs, line ends"),
        ({"labels": ["a", "b", "c"], "metric": "f1"}, "metric must be accuracy or macro_f1 for more than two labels"),
        ({"labels": None, "range": [0, 1]}, "metric must be pearson or spearman with a range, got 'accuracy'"),
        *(({**SCORED, "range": ends}, r"range must be \[lowest, highest\], numbers that floa") for ends in NO_RANGES),
        ({"dev": "train.csv"}, "train, dev, test must be different files"),
        ({"metric": OWN}, "metric.trust must be true, because runs execute the module's code, got False"),
        ({"metric": OWN | {"trust": "yes"}}, "metric.trust must be of type bool, got 'yes'"),
        (
            {"metric": OWN | {"trust": True, "revision": "v1"}},
            "metric.revision must be a commit of 40 hexadecimal digits",
        ),
    ],
)
def test_a_broken_rule_of_the_file_is_named(changes, message, tmp_path):
    path = write_task(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"(?s)moods.yaml does not define a task:\n.*{message}"):
        read_task(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"columns: [text\nlabel: x\n", r"moods.yaml:2: not YAML"),
        (b"- text\n", "moods.yaml does not define a task: it must state columns, label, metric, train and dev"),
        (b"label: \xff\n", "moods.yaml: not YAML: 'utf-8' codec can't decode byte 0xff"),
        (b"label: !!python/object/apply:os.system ['true']\n", r"label must be of type str, got \['true'\]"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_with_its_line(content, message, tmp_path):
    (tmp_path / "moods.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_task(tmp_path / "moods.yaml")


# The rows


def write_as(path: Path, rows, columns=("text", "mood")) -> None:
    """Write the rows in the format of the file's suffix."""
    frame = pd.DataFrame(rows, columns=columns)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":  # without a line end after the last row
            path.write_text("\n".join("\t".join(map(str, row)) for row in [columns, *rows]), encoding="utf-8")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".parquet":
            frame.to_parquet(path, index=False)


HARD = [('a "quoted", text', "good"), ("ünïcode\u2028 in it", "bad"), ("NA", "good"), ("  spaces ", "bad")]


@pytest.mark.parametrize("ending", FORMS)
def test_every_form_gives_the_same_rows(ending, tmp_path):
    for split in ("train", "dev"):
        write_as(tmp_path / f"{split}{ending}", HARD)
    task = read_task(write_task(tmp_path, train=f"train{ending}", dev=f"dev{ending}"))
    assert rows_of(task) == {"text": [text for text, _ in HARD], "label": [1, 0, 1, 0], "idx": [0, 1, 2, 3]}


def test_quoted_cells_hold_line_ends_and_blank_lines_may_end_a_file(tmp_path):
    path = write_csv(tmp_path / "train.csv", [("one\ntwo\nthree", "good"), ("four", "bad")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert rows_of(read_task(write_task(tmp_path)))["text"] == ["one\ntwo\nthree", "four"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b'text\r\ngood\r\n""\r\n\r\n'), ("a.tsv", b"text\tid\ngood\t1\n\t\n\n")]
)
def test_a_row_of_empty_cells_at_the_end_is_a_row(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name).columns["text"] == ["good", ""]


@pytest.mark.parametrize(("ending", "end"), [(".tsv", "\n"), (".tsv", "\r\n"), (".csv", "\n"), (".csv", "\r")])
def test_a_lone_cr_is_text_unless_every_row_ends_with_it(ending, end, tmp_path):
    path, texts = tmp_path / f"rows{ending}", ["good\rfilm" if "\n" in end else "good", "ok"]
    path.write_bytes("".join(f"{line}{end}" for line in ("text", *texts)).encode())
    assert read_table(path).columns == {"text": texts}


@pytest.mark.parametrize("ending", FORMS)
def test_whole_numbers_are_labels_and_scores_are_numbers(ending, tmp_path):
    rows = [("a", "b", 0, 0.5), ("c", "d", 1, 2.0), ("e", "f", 1, -1.0)]
    for split in ("train", "dev"):
        write_as(tmp_path / f"{split}{ending}", rows, ("one", "two", "class", "score"))
    files = {"columns": ["one", "two"], "train": f"train{ending}", "dev": f"dev{ending}"}
    classes = read_task(write_task(tmp_path, "classes", label="class", labels=[1, 0], **files))
    assert classes.labels == ("1", "0") and rows_of(classes)["label"] == [1, 0, 0]
    scored = read_task(write_task(tmp_path, "scored", label="score", **SCORED | {"range": [-1, 2]}, **files))
    assert rows_of(scored)["label"] == [0.5, 2.0, -1.0] and rows_of(scored)["two"] == ["b", "d", "f"]
    assert scored.label_std == pytest.approx(np.std([0.5, 2.0, -1.0]))


@pytest.mark.parametrize(("labels", "cells"), [(["false", "true"], [True, False]), (["no", "yes"], ["no", "yes"])])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_truth_values_are_labels_as_json_writes_them(labels, cells, ending, tmp_path):
    for split in ("train", "dev"):
        write_as(tmp_path / f"{split}{ending}", [("a", cells[0]), ("b", cells[1])])
    task = read_task(write_task(tmp_path, labels=labels, train=f"train{ending}", dev=f"dev{ending}"))
    assert rows_of(task)["label"] == [labels.index(str(cell).lower()) for cell in cells]


BAD = {
    "a missing column": (".csv", "text,feeling\nx,good\ny,bad\n", r": no column mood; the columns are text, feeling"),
    "an unknown label": (".csv", "text,mood\nx,good\ny,Bad\n", r", row 2: 'Bad' in column mood: the labels are bad, g"),
    "no label": (".csv", "text,mood\nx,good\ny,\n", r", row 2: no label in column mood: the labels are bad, good"),
    "an empty text": (".csv", 'text,mood\nx,good\n" ",bad\n', r", row 2: an empty text in column text"),
    "Latin-1": (".csv", 'text,mood\nx,good\n"y\nz",bad\ncaf\xe9,bad\n'.encode("latin-1"), r", line 5: .*save .* UTF-8"),
    "semicolons": (".csv", "text;mood\nx;good\n", r": no column text; the columns are text;mood; .* by commas"),
    "no width": (".csv", "text,mood\nx,good\n\u200b\u2060 \ufeff,bad\n", r", row 2: an empty text in column text"),
    "a long row": (".csv", "text,mood\nx,good\ny,bad,more\n", r": Expected 2 fields in line 3, saw 3"),
    "an open quote": (".csv", 'text,mood\nx,good\n"y,bad\n', ": row 2: a quote opens a cell"),
    "a stray quote": (".csv", 'text,mood\nx,good\n"y" they said,bad\n', ": row 2: a quote opens a cell"),
    "no rows": (".csv", "text,mood\n", r": no rows; the dev split needs some"),
    "a list": (".jsonl", '{"text": "x", "mood": "good"}\n["y"]\n', r": row 2 is not a JSON object: it is a list"),
    "a switch": (".jsonl", '{"text": "x", "mood": true}\n', r", row 1: True in column mood: the labels are bad, good"),
    "half a pair": (".jsonl", '{"text": "x\\ud800", "mood": "good"}\n', r", row 1: .*which is not text"),
    "deep JSON": (".jsonl", "[" * 100_000, r": row 1 is not a JSON object"),
    "no parquet": (".parquet", "text", r": .*[Pp]arquet"),
    "no format": (".xlsx", "text", r": unknown extension '.xlsx'; a file of rows is .csv, .tsv, .jsonl, .parquet"),
}


def bad_rows(kind, tmp_path):
    """The definition of a task whose dev split has such rows, and the expression that its message matches."""
    ending, content, message = BAD[kind]
    path = write_task(tmp_path / "data", dev=f"rows{ending}")
    rows = path.parent / f"rows{ending}"
    rows.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path, rf"{re.escape(str(rows))}{message}"


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named(kind, tmp_path):
    path, message = bad_rows(kind, tmp_path)
    with pytest.raises(UserError, match=message):
        read_task(path)


def test_bad_rows_are_one_message_of_every_command_and_leave_nothing_behind(tmp_path):
    path, message = bad_rows("an unknown label", tmp_path)
    for words in (["profile=own"], ["-m", "profile=own"], ["status", "own"]):
        done = lora(*words, f"task={path}", *folders(tmp_path))
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
        assert re.search(message, done.stderr), done.stderr
    assert {found.name for found in tmp_path.iterdir()} == {"data"}


def test_a_class_without_train_rows_has_no_weight_and_no_run_begins(tiny_own, tmp_path):
    path, settings = tiny_own
    path = write_task(path.parent, labels=["bad", "good", "mixed"])
    done = lora("-m", f"task={path}", *settings, "experiment=own_task", "train.class_weights=balanced,null")
    assert (done.returncode, done.stdout) == (2, "") and "has no train row of mixed" in done.stderr
    assert {found.name for found in tmp_path.iterdir()} <= {"data", "models"}


@pytest.mark.parametrize("score", ["high", "", "nan", "5.5", "1_0e-1", "\u0663", "\uff13"])
def test_a_score_is_a_number_of_the_range(score, tmp_path):
    write_csv(tmp_path / "train.csv", [("a", "0"), ("b", "5"), ("c", score)])
    with pytest.raises(UserError, match=r"train.csv, row 3: .* in column mood: a score is a number from 0 to 5"):
        read_task(write_task(tmp_path, **SCORED))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("valid.csv", r"valid.csv does not exist \(found in its folder: dev.csv, moods.yaml, train"),
        (f"{'x' * 300}.csv", r"x.csv does not exist \(found in its folder: "),
        ("~nobody-here/dev.csv", "~nobody-here/dev.csv: Could not determine home directory"),
    ],
)
def test_a_file_that_is_absent_is_answered_with_those_that_exist(file, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_task(write_task(tmp_path, dev=file))


def test_a_test_split_needs_no_labels_and_files_may_lie_anywhere(tmp_path):
    path = write_task(tmp_path / "here", test="../elsewhere/test.csv")
    test = tmp_path / "elsewhere" / "test.csv"
    for rows, header in (([("x",), ("y",)], ("text",)), ([("x", ""), ("y", "")], ("text", "mood"))):
        write_csv(test, rows, header)
        assert rows_of(read_task(path), "test")["label"] == [None, None]
    write_csv(test, [("x", "good"), ("y", "")])
    with pytest.raises(UserError, match=r"test.csv, row 2: no label in column mood"):
        read_task(path)


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}.yaml", "~nobody-here/moods.yaml", "no/moods.yaml"])
def test_a_task_that_does_not_exist_is_one_message(name, tmp_path):
    with pytest.raises(UserError, match=r"task must be one of|cannot read the task's file|home directory"):
        find_task(name, {})


def test_task_names_a_file_by_its_path_or_by_its_place_in_conf(tmp_path, monkeypatch):
    path = write_task(tmp_path, "moods")
    monkeypatch.setattr("lora.data.own_task.TASK_FILES", tmp_path)
    assert find_task(str(path), {}).name == find_task("moods", {}).name
    with pytest.raises(UserError, match=r"task must be one of mnli, .*, moods, or a file "):
        find_task("mood", {})


def test_a_task_given_as_a_file_means_the_profile_own_unless_one_is_given(tmp_path):
    task = f"task={write_task(tmp_path)}"
    for given, profile in (((), "own"), (("profile=mini",), "mini")):
        for command in (("tune", "seed=1"), ("-m", "method=bitfit")):
            assert f" of profile {profile} " in lora(command[0], task, *given, command[1]).stderr
    assert "results: results/own" in lora(task, "--cfg", "job").stdout


def test_a_folder_of_an_older_version_keeps_definitions_beside_its_records(tmp_path):
    task = read_task(write_task(tmp_path / "data", metric="matthews"))
    path = tmp_path / "results" / FOLDER / f"{task.name}.json"
    content = kept_facts(task) | {"folder": str(tmp_path / "data")}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    ((name, kept),) = kept_tasks(tmp_path / "results").items()
    assert name == kept.name == task.name and kept == task
    assert read(kept, "own").fingerprint == read(task, "own").fingerprint
    shutil.move(tmp_path / "data", tmp_path / "moved")
    with pytest.raises(UserError, match=f"where the rows of {task.name} lie is not known here: name its file, task="):
        read(kept_tasks(tmp_path / "results")[name], "own")
    content["definition"]["labels"] = ["good", "bad"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds another definition of"):
        kept_tasks(tmp_path / "results")


def test_runs_carry_the_definitions_digits_and_no_other_task_may_take_its_place(tmp_path):
    path = write_task(tmp_path)
    config = compose_run(["profile=own", f"task={path}", "train.precision=fp32"])
    assert config.task == read_task(path).name and config.data.source == "own"
    assert f".{config.task}.s1-" in config.run_id
    for override, message in (
        ("data.path=/x", "data.path must be null for a task of your own"),
        ("data.source=tsv", f"data.source must be own for task {config.task}, got 'tsv'"),
        ("start=mnli", "start must be pretrained"),
        ("protocol=long", "task must be one that has a complete row with protocol=long"),
        ("task=null", r"profile own needs a task of your own: task=my_task\.yaml"),
        ("task=rte", "data.source must be tsv or parquet or hub for task rte, got 'own'"),
    ):
        with pytest.raises(UserError, match=message):
            compose_run(["profile=own", f"task={path}", "train.precision=fp32", override])


def test_a_task_without_a_row_takes_the_default_one_and_says_that_it_is_untuned(tmp_path):
    path = write_task(tmp_path)
    for model, profile in (("minilm", "small"), ("mpnet_base", "base")):
        for method in ("full", "lora"):
            asked = [f"model={model}", f"method={method}", "train.precision=fp32"]
            overrides = ["profile=own", f"task={path}", *asked]
            of_cola = compose_run([f"profile={profile}", "task=cola", *asked])
            assert compose_run(overrides).train.lr == of_cola.train.lr
            assert compose_run(overrides).runtime.rate_from == "default"
            assert compose_run([*overrides, "train.lr=1e-3"]).runtime.rate_from == "stated"
    with pytest.raises(UserError, match=r"rows for model=mpnet_base \(.*mpnet_base_full, .*\), got .*method=houlsby$"):
        compose_run(["profile=own", f"task={path}", "model=mpnet_base", "method=houlsby"])
    runs = select_runs("own", [f"task={path}", "train.precision=fp32"])
    assert {(run.method, run.seed) for run in runs} == {(m, s) for m in ("full", "houlsby", "lora") for s in (1, 2, 3)}
    assert {(run.config.runtime.rate_from, run.examples) for run in runs} == {("default", 4 * 10)}


# From the command line to the report


@pytest.fixture
def tiny_own(model_dir, tmp_path):
    """The file of a task of 500 examples, and overrides that turn the profile's runs into runs of one second."""
    return write(tmp_path / "data", 400, 100), [*settings_of(model_dir), *folders(tmp_path)]


def test_from_a_csv_to_the_report(tiny_own, tmp_path):
    """The sweep, status and report without the task's file, and the command that a report suggests."""
    path, settings = tiny_own
    results = tmp_path / "results"
    done = lora("-m", "profile=own", f"task={path}", *settings)
    assert done.returncode == 0, done.stderr
    (name,) = planned_tasks(results)
    assert f"rows:    {name}: train 400, dev 100\n" in done.stdout
    assert "untuned:" in done.stdout.partition("kernels:")[0], "announced before the first run"
    records, problems = load_records(results)
    assert not problems and len(records) == 9 and {record.config["task"] for record in records} == {name}
    assert max(record.selected["best"]["value"] for record in records) > 0.9, "the label can be learned"

    shutil.move(path.parent, tmp_path / "moved")
    assert lora("status", "own", *settings).stdout.startswith("profile own: 9 runs: 9 done, 0 running")
    reported = lora("report", "own", *settings)
    assert reported.returncode == 0, reported.stderr
    shown = pd.read_csv(results / "tables" / "table2_own.csv").set_index("Method")[f"{name} (acc.)"]
    titles = {"full": "Full fine-tuning", "lora-qv-r8": "LoRA (qv, r8)", "houlsby-m8": "Houlsby adapters (m8)"}
    for slug, title in titles.items():
        values = [100 * r.selected["best"]["value"] for r in records if f".{slug}." in r.run_id]
        assert shown[title].startswith(f"{np.median(values):.1f} ±{np.std(values, ddof=1):.1f}")
    shutil.move(tmp_path / "moved", path.parent)

    brief = lora("report", "own", f"runtime.results={results}")  # the task, encoder and epochs: the records'
    assert brief.returncode == 0 and len(pd.read_csv(results / "tables" / "table2_own.csv")) == 3 + 2, brief.stderr
    (command,) = set(re.findall(r"`([^`]*analyse intervals[^`]*)`", brief.stdout))
    _, _, _, *words = shlex.split(command)  # python -m lora
    done = lora(*words)
    assert done.returncode == 0 and "3 comparisons on 1 tasks" in done.stdout, done.stderr


# Regression


def scored(folder: Path, low: float, high: float) -> Path:
    """The definition of `learnable` sentences with scores: a good word has the upper half of the range."""
    source = random.Random(5)
    for split, rows in (("train", learnable(400, 1)), ("dev", learnable(100, 2))):
        halves = [(text, source.randrange(64) / 128 + (label == "good") / 2) for text, label in rows]
        write_csv(folder / f"{split}.csv", [(text, low + (high - low) * half) for text, half in halves])
    return write_task(folder, **SCORED | {"range": [low, high]})


def test_scores_that_are_equal_in_float32_are_other_rows(tmp_path):
    prints = []
    for score in (1e9 + 0.25, 1e9 + 0.75):
        for split in ("train", "dev"):
            write_csv(tmp_path / f"{split}.csv", [("a", 1e9), ("b", 1e9 + 1), ("c", score)])
        prints.append(read(read_task(write_task(tmp_path, **SCORED | {"range": [1e9, 1e9 + 1]})), "own").fingerprint)
    assert len({*prints}) == 2


def test_a_run_that_predicts_the_same_for_every_row_says_so(tiny_own, tmp_path):
    """Its correlation is undefined. It stays a result, which tables count as 0: leaving it out flatters its method."""
    _, settings = tiny_own
    path = scored(tmp_path / "scored", 0, 5)
    one = ["profile=own", "method=full", "seed=1", f"task={path}", *settings]
    for rate, is_constant in ((1e-3, False), (10.0, True)):
        done = lora(*one, f"train.lr={rate}")
        (record,) = (r for r in load_records(tmp_path / "results")[0] if r.config["train"]["lr"] == rate)
        predicted = dev_predictions(record, tmp_path / "results")["best"]
        assert (len({*predicted}) == 1) is is_constant is ("collapsed" in done.stdout), done
        assert (record.selected["best"]["value"] is None) is is_constant and record.status == "ok"


def test_scores_of_any_range_are_learned_alike_and_adapters_answer_in_their_units(tiny_own, tmp_path):
    _, settings = tiny_own
    predicted, found = {}, {}
    for low, high in ((0, 5), (1000, 2000), (10**9, 10**9 + 1)):
        path = scored(tmp_path / f"to_{high}", low, high)
        done = lora("profile=own", f"task={path}", "method=lora", "seed=1", "runtime.save_adapter=true", *settings)
        assert done.returncode == 0, done.stderr
        (record,) = (r for r in load_records(tmp_path / "results")[0] if r.config["task"] == read_task(path).name)
        output = tmp_path / f"to_{high}.tsv"
        (adapter,) = (tmp_path / "outputs" / "adapters").glob(f"*{record.config['task']}*")
        given = ["--adapter", adapter, "--model", settings[1].partition("=")[2], "--input", path.parent / "dev.csv"]
        done = lora("predict", *given, "--output", output)
        assert done.returncode == 0, done.stderr
        best = found[high] = record.selected["best"]["value"]
        answers = pd.read_csv(output, sep="\t")["prediction"].to_numpy()
        labels = pd.read_csv(path.parent / "dev.csv")["mood"].to_numpy()
        assert scipy.stats.pearsonr(answers, labels).statistic == pytest.approx(best, abs=2e-3)
        recorded = dev_predictions(record, tmp_path / "results")["best"]
        rounding = np.spacing(float(high)) / (recorded - low).std()  # of a score, against how far scores differ
        assert scipy.stats.pearsonr(recorded - low, labels - low).statistic == pytest.approx(best, abs=1e-6 + rounding)
        loss = record.epochs[record.selected["best"]["epoch"] - 1]["loss"]["validation"]
        assert loss == pytest.approx(np.square(recorded - labels).mean(), rel=1e-6)
        assert abs(answers.mean() - labels.mean()) < 0.2 * (high - low), "in the units of the user's scores"
        predicted[high] = (answers - low) / (high - low)
    assert predicted[2000] == pytest.approx(predicted[5], abs=1e-3)
    assert predicted[10**9 + 1] == pytest.approx(predicted[5], abs=1e-3)
    assert [*found.values()] == pytest.approx([found[5]] * 3, abs=1e-4)

    description = adapter / "adapter.json"
    content = json.loads(description.read_text())
    content["origin"]["columns"] = ["text", "a\tb"]
    description.write_text(json.dumps(content))
    hostile = lora("predict", *given, "--output", output)
    assert hostile.returncode == 2 and "describes no task: columns and labels must be words" in hostile.stderr


# A metric of one's own

MODULE = """
import datasets, evaluate
from .prices import PRICES

class Cost(evaluate.Metric):
    def _info(self):
        kinds = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
        return evaluate.MetricInfo("", "", kinds)

    def _compute(self, predictions, references, average):
        with open(CALLS, "a") as calls:
            calls.write(".")
        costs = [PRICES[true] * (true != given) for given, true in zip(predictions, references)]
        return {average: sum(costs) / len(costs), "each": costs, "none": float("nan")}
"""
COST = {"evaluate": "cost", "key": "mean", "average": "mean", "trust": True, "greater_is_better": False}
PAIR = np.array([0, 1]), np.array([1, 1])


def write_cost(folder: Path, module: str = MODULE, **changes) -> Path:
    """Write a module, and a task with it as its metric."""
    (folder / "cost").mkdir(parents=True)
    (folder / "cost" / "cost.py").write_text(module.replace("CALLS", repr(str(folder / "calls"))))
    (folder / "cost" / "prices.py").write_text("PRICES = [1.0, 5.0]\n")
    return write_task(folder, metric=COST | changes)


def test_a_run_takes_scores_and_epoch_from_its_metrics_module_which_nothing_else_executes(model_dir, tmp_path):
    write(tmp_path / "data", 200, 100)
    path, calls, results = write_cost(tmp_path / "data"), tmp_path / "data" / "calls", tmp_path / "results"
    given = [f"task={path}", *settings_of(model_dir), *folders(tmp_path)]
    done = lora("-m", "profile=own", "experiment=own_task", "method=lora,bitfit", "seed=1,2", *given)
    assert done.returncode == 0 and calls.read_text() == 3 * 4 * ".", done.stderr
    true = np.array(read(read_task(path), "own").splits["validation"]["label"])
    for record in load_records(results)[0]:
        predicted = load_file(predictions_path(results, record.run_id))
        costs = [(np.array([1, 5])[true] * (predicted[f"{n}.validation"] != true)).mean() for n in (1, 2, 3)]
        recorded = [value for epoch in record.epochs for value in epoch["metrics"]["validation"].values()]
        assert recorded == pytest.approx(costs, abs=1e-12) and record.selected["split_half"] == {"value": None}
        assert record.selected["best"]["epoch"] == 1 + np.argmin(costs)
    assert {file.name for file in (tmp_path / "outputs" / "cache").glob("*/*.py")} == {"cost.py", "prices.py"}
    assert "a metric of this project: nothing can be" in lora("analyse", "intervals", "own", *given).stderr
    assert "4 done" in lora("status", "own", *given).stdout
    shutil.rmtree(path.parent / "cost")
    shown = lora("report", "own", f"runtime.results={results}").stdout
    assert "(cost.mean, lower is better)" in shown and ", lower is better: " in shown.splitlines()[2], shown
    assert "analyse intervals" not in shown and calls.read_text() == 3 * 4 * "."


@pytest.mark.parametrize(
    ("changes", "module", "message"),
    [
        ({"key": "meen"}, MODULE, "must select one number of mean, each, none, got 0 of meen"),
        ({"key": "each"}, MODULE, "must select one number of mean, each, none, got 2 of each"),
        ({}, MODULE.replace("sum(costs)", "1 / 0"), "metric cost.mean, lower is better: ZeroDivisionError"),
        ({}, MODULE.replace('Value("int32")', 'Sequence(datasets.Value("string"))'), "ValueError: Predictions and/or"),
        ({"evaluate": "f1"}, MODULE, "metric.evaluate needs .*/f1/f1.py, or revision for a name on the hub"),
        ({"evaluate": "f1", "revision": COMMIT}, MODULE, "metric f1.mean, lower is better: LocalEntryNotFoundError: "),
    ],
)
def test_a_module_that_gives_no_single_number_is_one_message(changes, module, message, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        compute_own(read_task(write_cost(tmp_path, module, **changes)), str(tmp_path), *PAIR)


def test_an_undefined_value_is_none_and_changed_files_are_another_task(tmp_path, capsys):
    path = write_cost(tmp_path, key="none")
    task = read_task(path)
    assert compute_own(task, str(tmp_path), *PAIR) is None
    assert capsys.readouterr().err == "metric cost.none, lower is better is undefined: nan\n"
    (tmp_path / "cost" / "prices.py").write_text("PRICES = [2.0, 5.0]\n")
    assert read_task(path).name != task.name
    with pytest.raises(UserError, match="the files of metric cost have changed"):
        compute_own(task, str(tmp_path / "elsewhere"), *PAIR)


def test_a_metric_on_the_hub_is_executed_at_its_commit(tmp_path):
    path = write_cost(tmp_path, revision=COMMIT)
    code = "from lora.data.own_metric import *; from lora.data.own_task import *; given = np.array([[0, 1], [1, 1]]); "
    code += "print(compute_own(read_task(Path(sys.argv[1])), sys.argv[2], *given))"
    hub = "evaluate-metric/cost", (tmp_path / "cost").rename(tmp_path / "space"), tmp_path / "home", "spaces"
    assert called(code, [path, tmp_path], *hub) == [2.5]
