import csv

import pytest
from glue_files import GLUE_TASKS, header_of, write_parquet

from lora.data import metrics
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT

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
HUB_NAMES = {
    "mnli": ["entailment", "neutral", "contradiction"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "cola": ["unacceptable", "acceptable"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


def test_every_task_with_labels_has_the_hubs_map():
    labelled = [name for name, task in TASKS.items() if task.family == "glue" and task.labels]
    assert set(labelled) == set(HUB_LABELS) == set(HUB_NAMES)
    assert len(labelled) == 8


@pytest.mark.parametrize("name", HUB_LABELS)
def test_a_word_of_the_files_is_read_as_the_hubs_integer(name, tmp_path):
    task, words = TASKS[name], HUB_LABELS[name]
    for split in task.training_splits:
        path = tmp_path / task.tsv.folder / task.tsv.files[split]
        path.parent.mkdir(exist_ok=True)
        header = header_of(task, split)
        lines = [] if name == "cola" else ["\t".join(header)]
        lines += ["\t".join(word if column == task.tsv.label else "x" for column in header) for word in words]
        path.write_text("".join(f"{line}\n" for line in lines))
    data = read(task, "tsv", tmp_path)
    assert len(data.splits) >= 2
    assert all(rows["label"][:] == list(words.values()) for rows in data.splits.values())


@pytest.mark.parametrize("name", HUB_NAMES)
def test_the_hubs_own_names_are_taken_and_turned_round_ones_are_not(name, tmp_path):
    task, names = TASKS[name], HUB_NAMES[name]
    read(task, "parquet", write_parquet(tmp_path / "hub", task, names=names))
    with pytest.raises(UserError, match="label"):
        read(task, "parquet", write_parquet(tmp_path / "turned", task, names=names[::-1]))


def test_glue_tasks_are_those_of_the_papers_table_in_its_order():
    with open(ROOT / "experiments/glue_table2/paper.csv", newline="") as file:
        printed = list(dict.fromkeys(row["task"] for row in csv.DictReader(file)))
    titles = [TASKS[name].title for name in GLUE_TASKS]
    assert titles == [title for title in printed if title in titles]
    assert len(titles) == 8 and "wnli" not in GLUE_TASKS
    embedded = ["reviews", "ratings", "clauses", "scrambled"]
    assert [name for name, task in TASKS.items() if task.own is None] == [*GLUE_TASKS, "wnli", *embedded]
    assert [name for name, task in TASKS.items() if task.family == "embedded"] == embedded


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_consistent(name):
    task = TASKS[name]
    assert task.name == name
    assert len(task.columns) in (1, 2)
    assert (task.label_range is None) == bool(task.labels) == (task.label_std is None)
    assert task.metrics and set(task.metrics) <= set(metrics.METRICS)
    assert task.training_splits == ("train", *task.validation_splits)
    assert set(task.official_rows) == {*task.training_splits, *task.test_splits}
    assert all(rows > 0 for rows in task.official_rows.values())
    if task.tsv is not None:
        assert set(task.tsv.files) == set(task.official_rows)
        assert len(task.tsv.texts) == len(task.columns)
        assert len(task.tsv.words) in (0, len(task.labels))


def test_headline_metrics_are_the_papers():
    others = {name: task.metric for name, task in TASKS.items() if task.metric != "accuracy"}
    assert others == {"cola": "matthews", "stsb": "pearson", "ratings": "pearson", "scrambled": "matthews"}
