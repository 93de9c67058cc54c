import csv
import subprocess
import sys

import pytest

from lora import metrics
from lora.errors import UserError
from lora.provenance import ROOT
from lora.tasks import GLUE_TASKS, TASKS, get_task


def test_glue_tasks_are_those_of_the_papers_table_in_its_order():
    with open(ROOT / "experiments/glue_table2/paper.csv", newline="") as file:
        printed = list(dict.fromkeys(row["task"] for row in csv.DictReader(file)))
    titles = [TASKS[name].title for name in GLUE_TASKS]
    assert titles == [title for title in printed if title in titles]
    assert len(titles) == 8 and "wnli" not in GLUE_TASKS
    assert list(TASKS) == [*GLUE_TASKS, "wnli", "reviews", "ratings", "clauses", "scrambled"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_consistent(name):
    task = TASKS[name]
    assert task.name == name
    assert len(task.columns) in (1, 2)
    assert (task.label_range is None) == bool(task.labels) == (task.label_std is None)
    assert task.metric == task.metrics[0] and set(task.metrics) <= set(metrics.METRICS)
    assert task.training_splits == ("train", *task.validation_splits)
    assert set(task.official_rows) == {*task.training_splits, *task.test_splits}
    assert all(rows > 0 for rows in task.official_rows.values())
    assert (task.tsv is None) == (task.family == "embedded")
    if task.tsv is not None:
        assert set(task.tsv.files) == set(task.official_rows)
        assert len(task.tsv.texts) == len(task.columns)
        assert len(task.tsv.words) in (0, len(task.labels))


def test_headline_metrics_are_the_papers():
    others = {name: task.metric for name, task in TASKS.items() if task.metric != "accuracy"}
    assert others == {"cola": "matthews", "stsb": "pearson", "ratings": "pearson", "scrambled": "matthews"}


def test_an_unknown_task_is_answered_with_those_that_exist():
    assert get_task("rte") is TASKS["rte"]
    with pytest.raises(UserError, match=r"unknown task 'RTE'; the tasks are mnli, sst2, .*scrambled"):
        get_task("RTE")


def test_tasks_load_nothing_heavy():
    code = "import sys, lora.tasks; print([m for m in ('torch', 'datasets', 'numpy', 'pandas') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
