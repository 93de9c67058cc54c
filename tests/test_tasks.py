import pytest
from glue_files import header_of, write_parquet

from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError

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
    assert all(rows["label"][:] == list(words.values()) for rows in data.splits.values())


@pytest.mark.parametrize("name", HUB_NAMES)
def test_the_hubs_own_names_are_taken_and_turned_round_ones_are_not(name, tmp_path):
    task, names = TASKS[name], HUB_NAMES[name]
    read(task, "parquet", write_parquet(tmp_path / "hub", task, names=names))
    with pytest.raises(UserError, match="label"):
        read(task, "parquet", write_parquet(tmp_path / "turned", task, names=names[::-1]))
