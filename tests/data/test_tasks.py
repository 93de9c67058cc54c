import pytest
from glue_files import header_of

from lora.data.read import read
from lora.data.tasks import TASKS

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


@pytest.mark.parametrize("name", HUB_LABELS)
def test_a_word_of_the_files_is_read_as_the_hubs_integer(name, tmp_path):
    task, words = TASKS[name], HUB_LABELS[name]
    for split in task.training_splits:
        path = tmp_path / task.title / task.tsv.files[split]
        path.parent.mkdir(exist_ok=True)
        header = header_of(task, split)
        lines = [] if name == "cola" else ["\t".join(header)]
        lines += ["\t".join(word if column == task.tsv.label else "x" for column in header) for word in words]
        path.write_text("".join(f"{line}\n" for line in lines))
    data = read(task, "tsv", tmp_path)
    assert len(data.splits) >= 2
    assert all(rows["label"] == list(words.values()) for rows in data.splits.values())
