import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from lora.data.batching import collate, encode, epoch_batches, evaluation_batches, to_device
from lora.data.embedded import model_folder
from lora.data.read import as_dataset, read
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
        chosen = pairs[rows]
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


def test_a_split_tokenized_in_pieces_is_the_same(tokenizer, pairs, monkeypatch):
    whole = encode(pairs, TASKS["clauses"], tokenizer, 40)
    monkeypatch.setattr("lora.data.batching.TOKENIZED_AT_ONCE", 7)
    pieces = encode(pairs, TASKS["clauses"], tokenizer, 40)
    for name in ("input_ids", "token_type_ids", "offsets", "lengths", "labels"):
        one, other = getattr(whole, name), getattr(pieces, name)
        assert np.array_equal(one, other) and one.dtype == other.dtype, name
    assert whole.input_ids.dtype == whole.token_type_ids.dtype == np.int32  # half the memory of int64


def test_a_batch_moves_to_a_device_under_its_names():
    there = to_device({"input_ids": torch.ones(2, 3, dtype=torch.int64)}, torch.device("meta"))
    assert there["input_ids"].device.type == "meta" and there["input_ids"].shape == (2, 3)


def test_of_a_long_pair_the_longer_text_is_cut(tokenizer):
    task = TASKS["clauses"]
    rows = {"question": ["a b c"], "clause": ["the " * 50], "label": [1]}
    encoded = encode(as_dataset(task, rows, np.arange(1)), task, tokenizer, 12)
    assert tokenizer.decode(encoded.input_ids) == "[CLS] a b c [SEP] the the the the the the [SEP]"
    assert encoded.token_type_ids.tolist() == [0] * 5 + [1] * 7


def test_one_sentence_with_scores(tokenizer):
    data = read(TASKS["ratings"], "embedded", train_rows=50, splits=("train",)).splits["train"]
    encoded = encode(data, TASKS["ratings"], tokenizer, 128)
    batch = collate(encoded, np.array([3, 1]), tokenizer.pad_token_id)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [data["label"][3], data["label"][1]]
    assert batch["attention_mask"].sum(1).tolist() == [
        len(tokenizer(data["sentence"][row])["input_ids"]) for row in (3, 1)
    ]


def test_nothing_is_padded_beyond_the_maximum_length(tokenizer, pairs):
    """A model with 38 positions cannot read 40 tokens."""
    encoded = encode(pairs, TASKS["clauses"], tokenizer, 38)
    longest = np.flatnonzero(encoded.lengths == 38)
    assert collate(encoded, longest, 0)["input_ids"].shape == (len(longest), 38)


def test_a_test_split_has_no_labels_and_roberta_no_token_types(tmp_path):
    task = TASKS["cola"]
    rows = {"sentence": ["the film", "a good story"], "label": [None, None]}
    encoded = encode(as_dataset(task, rows, np.arange(2)), task, tiny.tokenizer(tmp_path, "roberta"), 16)
    batch = collate(encoded, np.arange(2), 1)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0, -1] == 1 and batch["attention_mask"][0, -1] == 0


def test_batches_are_padded_to_a_multiple_of_four(tokenizer, pairs):
    encoded = encode(pairs, TASKS["clauses"], tokenizer, 40)
    assert collate(encoded, np.arange(4), 0)["input_ids"].shape == (4, -(-encoded.lengths[:4].max() // 4) * 4)


@pytest.mark.parametrize("similar_length", [False, True])
def test_an_epoch_sees_every_row_once(similar_length):
    batches = epoch_batches(LENGTHS, 16, 1, 1, similar_length)
    assert len(batches) == 63
    assert sorted(map(len, batches)) == [1003 % 16] + [16] * 62
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))


@pytest.mark.parametrize("similar_length", [False, True])
def test_the_order_depends_on_seed_and_epoch_alone(similar_length):
    def order(seed, epoch):
        return np.concatenate(epoch_batches(LENGTHS, 16, seed, epoch, similar_length)).tolist()

    first = order(1, 1)
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert order(1, 1) == first
    assert torch.equal(torch.get_rng_state(), torch_state) and np.random.get_state()[1].tolist() == numpy_state
    assert len({tuple(first), tuple(order(1, 2)), tuple(order(2, 1)), tuple(order(2, 2))}) == 4


def test_similar_length_saves_padding_and_keeps_the_order_random():
    def padded(batches):
        return sum(LENGTHS[rows].max() * len(rows) for rows in batches)

    similar, random = epoch_batches(LENGTHS, 16, 1, 1, True), epoch_batches(LENGTHS, 16, 1, 1, False)
    assert padded(similar) < 1.1 * LENGTHS.sum() < 1.5 * LENGTHS.sum() < padded(random)
    means = [LENGTHS[rows].mean() for rows in similar]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


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


def test_one_long_sentence_is_cut(tokenizer):
    rows = {"sentence": ["the " * 50], "label": [1]}
    encoded = encode(as_dataset(TASKS["cola"], rows, np.arange(1)), TASKS["cola"], tokenizer, 8)
    assert tokenizer.decode(encoded.input_ids) == "[CLS] the the the the the the [SEP]"


def test_evaluation_goes_from_long_to_short_and_keeps_the_order_of_equals():
    assert np.concatenate(evaluation_batches(LENGTHS, 64)).tolist() == sorted(
        range(1003), key=lambda row: -LENGTHS[row]
    )
    order = np.concatenate(evaluation_batches(LENGTHS, 64))
    assert sorted(order.tolist()) == list(range(1003))
    assert (np.diff(LENGTHS[order]) <= 0).all()


def test_a_shuffle_is_fair_and_stays_the_same():
    assert shuffled(8, "order", 1).tolist() == [
        6,
        0,
        2,
        1,
        3,
        5,
        7,
        4,
    ]  # a change would make all earlier runs impossible to repeat
    assert shuffled(0, "order").tolist() == []
    firsts = [int(shuffled(5, seed)[0]) for seed in range(2000)]
    assert all(340 < firsts.count(row) < 460 for row in range(5))  # expected 400, standard deviation 18


def test_rows_with_more_tokens_than_the_maximum_are_counted(tokenizer, pairs):
    whole = [len(ids) for ids in tokenizer(pairs["question"][:], pairs["clause"][:])["input_ids"]]
    for longest in (20, 40, max(whole), max(whole) + 1):
        assert encode(pairs, TASKS["clauses"], tokenizer, longest).truncated == sum(n > longest for n in whole)
