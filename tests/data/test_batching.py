import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from lora.data.batching import collate, encode, epoch_batches, evaluation_batches
from lora.data.embedded import model_folder
from lora.data.read import choose_rows, read
from lora.data.tasks import TASKS
from lora.rng import shuffled

LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)


@pytest.fixture(scope="module")
def pairs():
    return read(TASKS["clauses"], "embedded", train_rows=200, splits=("train",)).splits["train"]


def test_tokens_and_padding_are_the_tokenizers_own(tokenizer, pairs):
    encoded = encode(pairs, TASKS["clauses"], tokenizer, 40)
    assert encoded.lengths.max() == 40 and encoded.lengths.min() < 40
    for rows in evaluation_batches(encoded.lengths, 32):
        batch = collate(encoded, rows, tokenizer.pad_token_id)
        chosen = {name: [values[row] for row in rows] for name, values in pairs.items()}
        expected = tokenizer(
            chosen["question"],
            chosen["clause"],
            truncation="longest_first",
            max_length=40,
            pad_to_multiple_of=4,
            padding="longest",
            return_tensors="pt",
        )
        assert set(batch) == {*expected, "labels"}
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor) and batch[name].dtype == tensor.dtype, name
        assert batch["labels"].tolist() == chosen["label"] and batch["labels"].dtype == torch.int64


def test_of_a_long_pair_the_longer_text_is_cut(tokenizer):
    task = TASKS["clauses"]
    rows = {"question": ["a b c"], "clause": ["the " * 50], "label": [1]}
    encoded = encode(choose_rows(task, rows, np.arange(1)), task, tokenizer, 12)
    assert tokenizer.decode(encoded.input_ids) == "[CLS] a b c [SEP] the the the the the the [SEP]"
    assert encoded.token_type_ids.tolist() == [0] * 5 + [1] * 7


def test_a_test_split_has_no_labels_and_roberta_no_token_types(tmp_path):
    task = TASKS["cola"]
    rows = {"sentence": ["the film", "a good story"], "label": [None, None]}
    encoded = encode(choose_rows(task, rows, np.arange(2)), task, tiny.tokenizer("roberta"), 16)
    batch = collate(encoded, np.arange(2), 1)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0, -1] == 1 and batch["attention_mask"][0, -1] == 0


def test_similar_length_sorts_within_fifty_batches_of_the_random_order_and_shuffles_these():
    """The recipe again, in plain lists. Another order would make all earlier runs impossible to repeat."""
    order = shuffled(1003, 7, "order", 2).tolist()
    expected = []
    for start in range(0, 1003, 50 * 16):
        mega = sorted(order[start : start + 50 * 16], key=lambda row: LENGTHS[row])  # a stable sort
        expected += [mega[first : first + 16] for first in range(0, len(mega), 16)]
    places = shuffled(len(expected), 7, "batches", 2)
    assert [rows.tolist() for rows in epoch_batches(LENGTHS, 16, 7, 2, True)] == [expected[place] for place in places]
    assert [rows.tolist() for rows in epoch_batches(LENGTHS, 16, 7, 2, False)] == [
        order[first : first + 16] for first in range(0, 1003, 16)
    ]


def test_a_shuffle_is_fair_and_stays_the_same():
    # a change would make all earlier runs impossible to repeat
    assert shuffled(8, "order", 1).tolist() == [6, 0, 2, 1, 3, 5, 7, 4]
    assert shuffled(0, "order").tolist() == []
    firsts = [int(shuffled(5, seed)[0]) for seed in range(2000)]
    assert all(340 < firsts.count(row) < 460 for row in range(5))  # expected 400, standard deviation 18


def test_rows_with_more_tokens_than_the_maximum_are_counted(tokenizer, pairs):
    whole = [len(ids) for ids in tokenizer(pairs["question"][:], pairs["clause"][:])["input_ids"]]
    for longest in (20, 40, max(whole), max(whole) + 1):
        assert encode(pairs, TASKS["clauses"], tokenizer, longest).truncated == [
            i for i, n in enumerate(whole) if n > longest
        ]
