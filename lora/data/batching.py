"""Turn rows into padded tensors: tokenize a split once, draw seeded batches, pad each to its longest example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lora.data.read import Rows
from lora.data.tasks import Task
from lora.rng import shuffled

TOKENIZED_AT_ONCE = 20_000  # rows; the tokenizer's objects take much memory
WIDTHS = 4  # padded lengths are multiples of this: every new shape needs a new plan for its matrix products
MEGA_BATCH = 50  # batches sorted together by length; the order is otherwise random


@dataclass(frozen=True)
class Encoded:
    """The concatenated tokens of a split's rows.

    Args:
        input_ids: Tokens of all rows; row i has the lengths[i] tokens that start at offsets[i].
        token_type_ids: The same for token types; None if the tokenizer returns none.
        labels: int64 class indices or scores in `Task.score_type`; None for a test split.
        max_length: Number of tokens to which longer rows were truncated.
        truncated: These rows.
    """

    input_ids: Int[np.ndarray, " tokens"]
    token_type_ids: Int[np.ndarray, " tokens"] | None
    offsets: Int[np.ndarray, " rows"]
    lengths: Int[np.ndarray, " rows"]
    labels: np.ndarray | None
    max_length: int
    truncated: Sequence[int] = ()


def encode(rows: Rows, task: Task, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize rows. A pair that is too long loses tokens one by one, each from the longer text at that point."""
    ids, types, lengths, truncated = [], [], [], []
    for start in range(0, len(rows["label"]), TOKENIZED_AT_ONCE):
        texts = [rows[column][start : start + TOKENIZED_AT_ONCE] for column in task.columns]
        tokens = tokenizer(*texts, truncation="longest_first", max_length=max_length, return_attention_mask=False)
        lengths += map(len, tokens["input_ids"])
        full = [row for row, ids_of_row in enumerate(tokens["input_ids"]) if len(ids_of_row) == max_length]
        if full:  # whether anything was cut off
            whole = tokenizer(*([column[row] for row in full] for column in texts), verbose=False)
            cut = (len(ids_of_row) > max_length for ids_of_row in whole["input_ids"])
            truncated += [start + row for row, is_cut in zip(full, cut, strict=True) if is_cut]
        ids += [np.array(row, np.int32) for row in tokens["input_ids"]]
        types += [np.array(row, np.int32) for row in tokens.get("token_type_ids", ())]
    labels = rows["label"]
    unlabelled = any(label is None for label in labels)
    counts = np.array(lengths, np.int64)
    return Encoded(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types) if types else None,
        offsets=np.cumsum(counts) - counts,
        lengths=counts,
        labels=None if unlabelled else np.array(labels, np.int64 if task.labels else task.score_type),
        max_length=max_length,
        truncated=truncated,
    )


def epoch_batches(
    lengths: Int[np.ndarray, " rows"], batch: int, seed: int, epoch: int, similar_length: bool
) -> list[Int[np.ndarray, " _"]]:
    """Row indices of each batch of an epoch. Every row occurs once. Equal arguments give equal batches on any machine.

    Args:
        similar_length: Sort every 50 batches of the random order by length, cut them again, and shuffle the batches.
            The one batch that may be smaller can then be anywhere in the epoch.
    """
    order = shuffled(len(lengths), seed, "order", epoch)
    if not similar_length:
        return cut(order, batch)
    batches = []
    for mega in cut(order, MEGA_BATCH * batch):
        batches += cut(mega[np.argsort(lengths[mega], kind="stable")], batch)
    return [batches[place] for place in shuffled(len(batches), seed, "batches", epoch)]


def evaluation_batches(lengths: Int[np.ndarray, " rows"], batch: int) -> list[Int[np.ndarray, " _"]]:
    """Row indices of each batch, longest examples first: if any batch exceeds the memory, the first one does."""
    return cut(np.argsort(-lengths, kind="stable"), batch)


def cut(order: Int[np.ndarray, " rows"], size: int) -> list[Int[np.ndarray, " _"]]:
    """Consecutive pieces of `size` indices; the last may be shorter."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def collate(encoded: Encoded, rows: Int[np.ndarray, " batch"], pad_token_id: int) -> dict[str, Tensor]:
    """Model inputs and `labels` of these rows, padded on the right to the longest one, rounded up to `WIDTHS`."""
    lengths, offsets = encoded.lengths[rows], encoded.offsets[rows]
    longest = int(lengths.max())
    columns = np.arange(min(-(-longest // WIDTHS) * WIDTHS, encoded.max_length))
    mask = columns < lengths[:, None]
    places = np.where(mask, offsets[:, None] + columns, 0)
    inputs = {
        "input_ids": np.where(mask, encoded.input_ids[places], pad_token_id).astype(np.int64),
        "attention_mask": mask.astype(np.int64),
    }
    if encoded.token_type_ids is not None:
        inputs["token_type_ids"] = np.where(mask, encoded.token_type_ids[places], 0).astype(np.int64)
    if encoded.labels is not None:
        inputs["labels"] = encoded.labels[rows]
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
