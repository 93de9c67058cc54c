"""Predictions of a model, their metrics, and the epochs to report."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lora.data import metrics
from lora.data.batching import Encoded, collate, evaluation_batches, to_device
from lora.data.own_metric import compute_own
from lora.data.read import TRAIN_ROWS
from lora.data.tasks import Task
from lora.errors import DIVERGED, DivergedError
from lora.rng import shuffled
from lora.training.device import Process

DEV_HALVES = 200  # ours: fixed divisions of the dev set into two halves; 20 leave noise of up to 0.6 points


@torch.inference_mode()
def predict(
    model: nn.Module,
    encoded: Encoded,
    task: Task,
    pad_token_id: int,
    batch_size: int,
    process: Process,
    between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, float]:
    """Predict the class of every example, or its score for regression, in the order of the split.

    The processes share the batches.

    Args:
        between: Called after every batch.
    Returns: The predictions, and their mean loss: cross-entropy in nats, or squared error in the labels' units.
    Raises: DivergedError: If a logit is not finite: the largest of NaN would be a class like any other.
    """
    model.eval()
    chunks = []
    batches = evaluation_batches(encoded.lengths, batch_size)
    for rows in batches[process.rank :: process.count]:
        batch = to_device(collate(encoded, rows, pad_token_id), process.device)
        labels = batch.pop("labels")
        with process.autocast():
            logits = model(**batch).logits.float()
        if task.labels:
            scores = logits.argmax(-1)
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            shift, factor = task.target_scale
            scores = logits.squeeze(-1).to(getattr(torch, task.score_type)) * factor + shift
            losses = (scores - labels).square()
        chunks.append((rows, scores.cpu().numpy(), losses.cpu().numpy(), bool(logits.isfinite().all())))
        between()
    predictions = np.empty(len(encoded.lengths), np.int16 if task.labels else task.score_type)
    loss_of = np.empty(len(encoded.lengths))  # of every row, so that the sum does not depend on the number of processes
    gathered = process.gather(chunks)
    if not all(is_finite for *_, is_finite in gathered):
        raise DivergedError(f"logits of evaluated examples are not finite; {DIVERGED}: try a lower train.lr first")
    for rows, scores, losses, _ in gathered:
        predictions[rows], loss_of[rows] = scores, losses
    return predictions, float(loss_of.mean())


def evaluate(
    predictions: dict[str, np.ndarray], splits: dict[str, Encoded], task: Task, outputs: str
) -> dict[str, dict[str, float | None]]:
    """Compute every metric on every validation split, and on both pooled if there are two (MNLI)."""
    if task.metric not in metrics.METRICS:
        return {s: {task.metric: compute_own(task, outputs, p, splits[s].labels)} for s, p in predictions.items()}
    values = {}
    for split, predicted in predictions.items():
        values[split] = metrics.compute(task.metrics, predicted, splits[split].labels)
    if len(predictions) > 1:
        references = np.concatenate([splits[split].labels for split in predictions])
        values["pooled"] = metrics.compute(task.metrics, np.concatenate(list(predictions.values())), references)
    return values


def choose_epochs(epochs: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """Choose `best`, the first epoch with the best headline metric (the last if it is never defined), and `last`. Their
    values are those of the scoring split, also where train rows choose."""
    split = task.scoring_split
    scores = [{"epoch": entry["epoch"], "value": entry["metrics"][split][task.metric]} for entry in epochs]
    chosen_by = [entry["metrics"].get(TRAIN_ROWS, entry["metrics"][split])[task.metric] for entry in epochs]
    defined = [(value, score) for value, score in zip(chosen_by, scores, strict=True) if value is not None]
    better = metrics.better(task.metric)
    _, best = max(defined, key=lambda one: better * one[0], default=(None, scores[-1]))
    return {"metric": task.metric, "split": split, "best": best, "last": scores[-1]}


def split_half(
    predictions: Mapping[int, Mapping[str, np.ndarray]], splits: Mapping[str, Encoded], task: Task
) -> float | None:
    """The headline metric without the gain from choosing an epoch on the rows that score it.

    The epoch is chosen on one half of the scoring split and scored on the other, both ways, over `DEV_HALVES` fixed
    divisions. The value is the mean of these scores. An epoch is chosen as in `choose_epochs`.

    Args:
        predictions: Epoch -> split -> the predictions of its rows.
    Returns: None for a user's own metric, and if a score is undefined, as Pearson's correlation of a constant is.
    """
    score = metrics.METRICS.get(task.metric)
    labels = splits[task.scoring_split].labels
    epochs = [predictions[epoch][task.scoring_split] for epoch in sorted(predictions)]
    if score is None or len(labels) < 2:
        return None
    scores: list[float | None] = []
    for division in range(DEV_HALVES):
        order = shuffled(len(labels), "dev halves", division)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        values = [[score(predicted[half], labels[half]) for half in halves] for predicted in epochs]
        for chosen_on, scored_on in ((0, 1), (1, 0)):
            defined = [pair for pair in values if pair[chosen_on] is not None]
            scores.append(max(defined, key=lambda pair: pair[chosen_on], default=values[-1])[scored_on])
    return None if None in scores else math.fsum(scores) / len(scores)
