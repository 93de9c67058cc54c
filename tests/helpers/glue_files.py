"""Small files of all nine GLUE tasks, in the official TSV layout and in the hub's, from the same values."""

from collections.abc import Sequence
from pathlib import Path

import datasets

from lora.data.tasks import TASKS, Task

GLUE_TASKS = tuple(name for name, task in TASKS.items() if task.family == "glue" and name != "wnli")  # of Table 2
# Texts that common readers change or drop: quotes, missing-value words, other line separators, spaces, empty text.
TEXTS = [
    'He said " no',
    '"quoted"',
    "NA",
    "null",
    "nan",
    " spaces around ",
    "é ü 漢字 🙂",
    "a\u2028b\x85c\x0bd",
    "\\t is no tab",
    "",
    "'",
    "1",
]
HEADERS = {
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "sst2": "sentence label",
    "qnli": "index question sentence label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
}
MRPC_HEADER = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
TEXT_NAMES = {"sentence", "question", "sentence1", "sentence2", "question1", "question2", "#1 String", "#2 String"}
LABEL_NAMES = {"label", "gold_label", "is_duplicate", "score", "Quality"}
SCORES = ["5.000", "0", "3.8", "2.533"]


def header_of(task: Task, split: str) -> list[str]:
    """The columns of an official file. A test file starts with an index and has no label."""
    tested = split.startswith("test")
    if task.name == "cola":
        return ["index", "sentence"] if tested else ["source", "label", "mark", "sentence"]
    names = MRPC_HEADER if task.name == "mrpc" else HEADERS[task.name].split()
    if not tested:
        return names
    return ["index", *(name for name in names if name not in LABEL_NAMES | {"index", "id", "qid1", "qid2", "label1"})]


def cells(task: Task, split: str, row: int, texts: Sequence[str], label: str) -> dict[str, str]:
    """A row of an official file by column. What is neither a text nor the label names the row."""
    values = {name: label if name in LABEL_NAMES else f"x{row}" for name in header_of(task, split)}
    names = [name for name in values if name in TEXT_NAMES]
    return values | dict(zip(names, texts, strict=False))


def words_of(task: Task) -> Sequence[str]:
    """The labels as the official files write them."""
    return task.tsv.words or task.labels


def hostile_cells(task: Task, split: str, row: int) -> dict[str, str]:
    words = words_of(task) or SCORES
    texts = (TEXTS[row % len(TEXTS)], TEXTS[(row + 5) % len(TEXTS)])
    return cells(task, split, row, texts, words[row % len(words)])


def write_split(folder: Path, task: Task, split: str, rows: Sequence[dict[str, str]]) -> None:
    path = folder / task.title / task.tsv.files[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    headed = task.name != "cola" or split == "test"
    header = [header_of(task, split)] if headed else []
    lines = ["\t".join(line) for line in (*header, *(row.values() for row in rows))]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_tsv(folder: Path, task: Task, rows: int = 24, splits=None) -> Path:
    for split in splits or task.official_rows:
        write_split(folder, task, split, [hostile_cells(task, split, row) for row in range(rows)])
    return folder


def write_parquet(folder: Path, task: Task, shards: int = 1, rows: int = 24, names=None) -> Path:
    """Write a task in the hub's layout with its features, from the same values."""
    for split in task.official_rows:
        made = [hostile_cells(task, split, row) for row in range(rows)]
        texts = [[row[name] for name in row if name in TEXT_NAMES] for row in made]
        columns = {name: [row[i] for row in texts] for i, name in enumerate(task.columns)}
        labels = [next((row[name] for name in row if name in LABEL_NAMES), None) for row in made]
        if task.labels:
            columns["label"] = [-1 if label is None else words_of(task).index(label) for label in labels]
        else:
            columns["label"] = [-1.0 if label is None else float(label) for label in labels]
        columns["idx"] = [7 * row for row in range(rows)]  # the hub's idx has gaps where rows were dropped or moved
        label = datasets.ClassLabel(names=list(names or task.labels)) if task.labels else datasets.Value("float32")
        kinds = dict.fromkeys(task.columns, datasets.Value("string")) | {"label": label, "idx": datasets.Value("int32")}
        whole = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        (folder / task.name).mkdir(parents=True, exist_ok=True)
        for shard in range(shards):
            part = whole.shard(shards, shard, contiguous=True)
            part.to_parquet(folder / task.name / f"{split}-{shard:05}-of-{shards:05}.parquet")
    return folder
