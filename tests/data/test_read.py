import csv
import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
from glue_files import write_parquet, write_tsv
from own_tasks import write_csv, write_task

from lora.data.own_task import read_task
from lora.data.read import read
from lora.data.tasks import TASKS, Task
from lora.errors import UserError

GLUE = [name for name, task in TASKS.items() if task.family == "glue"]
# Label in the official files -> integer of `nyu-mll/glue`, as the builder of that data set maps them. Records hold
# predictions as these integers, submission files as the words.
HUB_LABELS = {
    "mnli": {"entailment": 0, "neutral": 1, "contradiction": 2},
    "sst2": {"0": 0, "1": 1},
    "mrpc": {"0": 0, "1": 1},
    "cola": {"0": 0, "1": 1},
    "qnli": {"entailment": 0, "not_entailment": 1},
    "qqp": {"0": 0, "1": 1},
    "rte": {"entailment": 0, "not_entailment": 1},
    "wnli": {"0": 0, "1": 1},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", GLUE)
def test_the_official_files_are_read_as_the_csv_module_reads_them(name, tmp_path):
    task = TASKS[name]
    data = read(task, "tsv", write_tsv(tmp_path, task), splits=tuple(task.official_rows))
    compared = 0
    for split, rows in data.splits.items():
        with open(tmp_path / task.title / task.tsv.files[split], newline="\n", encoding="utf-8") as file:
            fieldnames = ["source", "label", "mark", "sentence"] if name == "cola" and split != "test" else None
            expected = list(csv.DictReader(file, fieldnames, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert len(rows["idx"]) == len(expected) == 24
        for column, official in zip(task.columns, task.tsv.texts, strict=True):
            assert rows[column][:] == [row[official] for row in expected]
        if split in task.test_splits:
            assert rows["label"] == [None] * 24
        elif task.labels:
            integers = HUB_LABELS[name]
            assert rows["label"] == [integers[row[task.tsv.label]] for row in expected]
            assert set(rows["label"]) == set(integers.values())
        else:
            assert rows["label"] == [float(np.float32(row["score"])) for row in expected]
        assert rows["idx"] == list(range(24))
        assert [*rows] == [*task.columns, "label", "idx"]
        compared += 1
    assert compared == len(task.official_rows)


@pytest.mark.parametrize("name", GLUE)
def test_the_same_rows_come_from_tsv_and_parquet(name, tmp_path):
    task, splits = TASKS[name], tuple(TASKS[name].official_rows)
    tsv = read(task, "tsv", write_tsv(tmp_path / "tsv", task), splits=splits)
    parquet = read(task, "parquet", write_parquet(tmp_path / "parquet", task, shards=3), splits=splits)
    assert set(tsv.splits) == set(parquet.splits) == set(splits)
    for split in splits:
        assert tsv.splits[split] == parquet.splits[split]
    assert tsv.fingerprint == parquet.fingerprint
    assert (tsv.rows, tsv.is_part, tsv.skipped) == (parquet.rows, parquet.is_part, parquet.skipped)


def test_the_fingerprint_changes_with_any_text_label_or_split(tmp_path):
    task = TASKS["rte"]
    folder = write_tsv(tmp_path, task)
    first = read(task, "tsv", folder).fingerprint
    path = folder / "RTE/dev.tsv"
    text = path.read_bytes().decode()
    seen = {first}
    for old, new in (("He said", "He  said"), ("\tentailment", "\tnot_entailment")):
        path.write_bytes(text.replace(old, new, 1).encode())
        seen.add(read(task, "tsv", folder).fingerprint)
    path.write_bytes(text.encode())
    seen.add(read(task, "tsv", folder, splits=("train",)).fingerprint)
    assert len(seen) == 4
    assert read(task, "tsv", folder).fingerprint == first


def test_a_whole_and_a_part_are_told_apart(tmp_path):
    task = TASKS["wnli"]
    for train, is_part in ((635, False), (634, True), (636, True)):
        write_tsv(tmp_path, task, train, ["train"])
        write_tsv(tmp_path, task, 71, ["validation"])
        data = read(task, "tsv", tmp_path)
        assert data.rows == {"train": train, "validation": 71}
        assert data.official_rows == {"train": 635, "validation": 71}
        assert data.is_part == is_part


def test_a_subset_is_fixed_nested_and_in_order(tmp_path):
    task = TASKS["wnli"]
    folder = write_tsv(tmp_path, task, 635)
    whole, large, small = (read(task, "tsv", folder, train_rows=rows) for rows in (None, 100, 40))
    assert whole.rows["train"] == 635 and large.rows["train"] == 100 and small.rows["train"] == 40
    assert large.is_part and large.rows["validation"] == whole.rows["validation"]
    idx = large.splits["train"]["idx"]
    assert idx == sorted(set(idx)) and idx != list(range(100)) and set(small.splits["train"]["idx"]) < set(idx)
    assert max(idx) > 500
    assert large.splits["train"]["sentence1"] == [whole.splits["train"]["sentence1"][row] for row in idx]
    assert len({whole.fingerprint, large.fingerprint, small.fingerprint}) == 3
    assert read(task, "tsv", folder, train_rows=100).fingerprint == large.fingerprint
    assert read(task, "tsv", folder, train_rows=5000).fingerprint == whole.fingerprint


@pytest.mark.parametrize("scores", [False, True], ids=["classes", "scores"])
def test_a_draw_of_each_seed_is_nested_and_keeps_every_class(tmp_path, scores):
    words = ["rare"] + ["some"] * 19 + ["most"] * 80
    rows = [(f"text {number}", number if scores else word) for number, word in enumerate(words)]
    for split in ("train", "dev"):
        write_csv(tmp_path / f"{split}.csv", rows)
    kind = {"labels": None, "range": [0, 99], "metric": "pearson"} if scores else {"labels": ["rare", "some", "most"]}
    task = read_task(write_task(tmp_path, **kind))
    sizes, draws = range(2 if scores else 3, 100), {}
    for draw in (1, 2):
        parts = [read(task, "own", train_rows=size, draw=draw).splits["train"] for size in sizes]
        kept = [set(part["idx"]) for part in parts]
        assert [len(rows) for rows in kept] == [*sizes] and all(map(set.issubset, kept, kept[1:]))
        for size, part in zip(sizes, parts, strict=True):
            classes = np.asarray(part["label"]) // 20 if scores else np.asarray(part["label"])
            shares = [0.2] * 5 if scores else [0.01, 0.19, 0.8]
            counts = [np.sum(classes == place) for place in range(len(shares))]
            assert all(abs(count - size * share) < 2 for count, share in zip(counts, shares, strict=True)), size
            assert min(counts) >= 1 or size < len(shares)
        draws[draw] = parts[20]["idx"]
    assert draws[1] != draws[2] and draws[1] != read(task, "own", train_rows=len(draws[1])).splits["train"]["idx"]


@pytest.mark.parametrize("name", ["cola", "rte"])  # without a header, and with one
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.removesuffix(b"\n"),
        lambda data: data.replace(b"\n", b"\r\n").removesuffix(b"\n"),
    ],
    ids=["BOM", "CRLF", "no final line end", "CRLF, the last cut"],
)
def test_copies_with_other_ends_are_the_same_rows(name, change, tmp_path):
    task = TASKS[name]
    path = write_tsv(tmp_path, task, splits=["validation"]) / task.title / "dev.tsv"
    whole = read(task, "tsv", tmp_path, splits=("validation",))
    path.write_bytes(change(path.read_bytes()))
    again = read(task, "tsv", tmp_path, splits=("validation",))
    assert again.rows == whole.rows and again.fingerprint == whole.fingerprint


def qqp(tmp_path: Path, left_out: int, extra: list[str]) -> Task:
    """Write a QQP dev file of the official size less `left_out`, with extra lines after the third row."""
    task = TASKS["qqp"]
    lines = [f"{i}\t{i}\t{i}\tone {i}\ttwo\t{i % 2}\n" for i in range(task.official_rows["validation"] - left_out)]
    lines[3:3] = extra
    path = tmp_path / "QQP/dev.tsv"
    path.parent.mkdir()
    path.write_bytes("".join(["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", *lines]).encode())
    return task


@pytest.mark.parametrize(
    "extra", [["7\t7\t7\ttorn\n", "\tapart\t0\n"], ["7\t7\t7\ttorn\rapart\ttwo\t0\n"]], ids=["lf", "cr"]
)
def test_torn_lines_of_qqp_are_left_out_and_counted(extra, tmp_path):
    data = read(qqp(tmp_path, 0, extra), "tsv", tmp_path, splits=("validation",))
    assert data.skipped == {"QQP/dev.tsv": 2} and not data.is_part
    assert data.rows == data.official_rows == {"validation": 40430}
    assert data.splits["validation"]["question1"][2:4] == ["one 2", "one 3"]


def test_torn_lines_of_qqp_with_another_total_are_an_error(tmp_path):
    task = qqp(tmp_path, 1, ["7\t7\t7\ttorn\n", "\tapart\t0\n"])
    with pytest.raises(UserError, match=r"QQP/dev.tsv: 2 lines .* 6 columns\. .*official 40430 .*40429"):
        read(task, "tsv", tmp_path, splits=("validation",))


def replace_line(number: int, line: bytes):
    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[number - 1] = line
        return b"\n".join(lines)

    return change


BAD_FILES = {
    "fewer columns": ("rte", replace_line(3, b"0\tone\ttwo"), r"RTE/train.tsv:3: 3 columns, must be 4 \(index, .*'0"),
    "no header": ("cola", replace_line(2, b"x\t1\tgood"), r"CoLA/train.tsv:2: 3 columns, must be 4 \(source, label"),
    "label word": ("rte", replace_line(2, b"0\ta\tb\tmaybe"), r"train.tsv:2: 'maybe' .*the labels are entailment"),
    "score too high": ("stsb", replace_line(2, b"0\t" * 9 + b"5.1"), r"train.tsv:2: '5.1' .*number from 0 to 5"),
    "latin-1": ("sst2", replace_line(6, b"caf\xe9\t1"), r"SST-2/train.tsv:6: not UTF-8: byte 0xe9"),
    "empty": ("rte", lambda data: b"", r"RTE/train.tsv: empty file"),
    "header only": ("rte", lambda data: data.partition(b"\n")[0] + b"\n", r"RTE/train.tsv: a header but no rows"),
    "other header": (
        "mrpc",
        lambda data: data.replace(b"Quality", b"quality"),
        r"MRPC/train.tsv:1: the header has no column Quality; it has quality, #1 ID",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_line_and_reason(case, tmp_path):
    name, change, message = BAD_FILES[case]
    task = TASKS[name]
    path = write_tsv(tmp_path, task) / task.title / task.tsv.files["train"]
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(UserError, match=message):
        read(task, "tsv", tmp_path, splits=("train",))


def test_absent_files_are_named_with_what_was_found(tmp_path):
    task = TASKS["rte"]
    write_tsv(tmp_path, task, splits=["train"])
    for folder, message in (
        ("x" * 300, r"RTE/train.tsv does not exist .*; GLUE_DIR= sets the folder that holds CoLA, MNLI, "),
        (tmp_path, r"dev.tsv does not exist \(found in its folder: train.tsv\)"),
    ):
        with pytest.raises(UserError, match=message):
            read(task, "tsv", folder)
    write_parquet(tmp_path, task)
    (tmp_path / "rte/train-00000-of-00001.parquet").write_bytes(b"no parquet")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"cannot read train of .*/rte: .*; GLUE_DIR= sets the folder"):
            read(task, "parquet", folder)


def test_bad_parquet_columns_and_labels(tmp_path):
    task = TASKS["rte"]
    write_parquet(tmp_path / "order", task, names=task.labels[::-1])
    with pytest.raises(UserError, match="are not_entailment, entailment; expected, in this order: entailment, not_ent"):
        read(task, "parquet", tmp_path / "order")
    plain = {"sentence1": ["a", "b"], "sentence2": ["a", "b"], "label": [0, 1]}
    for number, (column, values, message) in enumerate(
        (
            ("label", [0, 2], "row 1: 2 in column label: the labels are 0, 1"),
            ("label", [-1, 0], "row 0: -1 in column label"),
            ("label", [None, 0], "row 0: no label in column label"),
            ("label", [1.0, 0.5], "row 0: 1.0 in column label"),
            ("sentence2", [1, 2], "sentence1 and sentence2 must be text in every row"),
            ("sentence2", ["a", None], "sentence1 and sentence2 must be text in every row"),
            ("sentence2", None, "has no column sentence2; it has sentence1, label"),
        )
    ):
        folder = tmp_path / str(number) / "rte"
        folder.mkdir(parents=True)
        columns = {name: made for name, made in (plain | {column: values}).items() if made is not None}
        datasets.Dataset.from_dict(columns).to_parquet(folder / "train-00000-of-00001.parquet")
        with pytest.raises(UserError, match=message):
            read(task, "parquet", folder.parent, splits=("train",))
    score = dataclasses.replace(TASKS["stsb"], name="rte")
    with pytest.raises(UserError, match=r"row 0: -1 in column label: a score is a number from 0 to 5"):
        read(score, "parquet", tmp_path / "1", splits=("train",))
