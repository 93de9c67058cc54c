"""Predictions of a model, their metrics, and the epochs to report."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.numpy import save
from torch import nn

from lora.data import metrics
from lora.data.batching import Encoded, collate, evaluation_batches, to_device
from lora.data.tasks import Task


@torch.inference_mode()
def predict(
    model: nn.Module,
    encoded: Encoded,
    task: Task,
    pad_token_id: int,
    batch_size: int,
    accelerator: Accelerator,
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Predict the class of every example, or its score for regression, in the order of the split.

    The batches are divided among the processes, possibly unevenly, so the forward pass does not synchronise them.

    Args:
        between: Called after every batch.
    """
    model = accelerator.unwrap_model(model)  # DistributedDataParallel's forward pass would synchronise all processes
    model.eval()
    chunks = []
    batches = evaluation_batches(encoded.lengths, batch_size)
    for rows in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = to_device(collate(encoded, rows, pad_token_id), accelerator.device)
        batch.pop("labels")
        logits = model(**batch).logits
        scores = logits.argmax(-1) if task.labels else logits.float().squeeze(-1)
        chunks.append((rows, scores.cpu().numpy()))
        between()
    predictions = np.empty(len(encoded.lengths), np.int16 if task.labels else np.float32)
    for rows, scores in gather_object(chunks):
        predictions[rows] = scores
    return predictions


def evaluate(
    predictions: dict[str, np.ndarray], splits: dict[str, Encoded], task: Task
) -> dict[str, dict[str, float | None]]:
    """Compute every metric on every validation split, and on both pooled if there are two (MNLI)."""
    values = {}
    for split, predicted in predictions.items():
        values[split] = metrics.compute(task.metrics, predicted, splits[split].labels)
    if len(predictions) > 1:
        references = np.concatenate([splits[split].labels for split in predictions])
        values["pooled"] = metrics.compute(task.metrics, np.concatenate(list(predictions.values())), references)
    return values


def selecting_split(task: Task, selection: str) -> str:
    if len(task.validation_splits) == 1:
        return task.validation_splits[0]
    return selection if selection == "pooled" else f"validation_{selection}"


def select(epochs: list[dict[str, Any]], task: Task, selection: str) -> dict[str, Any]:
    """Choose `best`, the first epoch with the highest headline metric (the last if it is never defined), and `last`."""
    split = selecting_split(task, selection)

    def chosen(entry: dict[str, Any]) -> dict[str, Any]:
        return {"epoch": entry["epoch"], "value": entry["metrics"][split][task.metric]}

    defined = [entry for entry in epochs if entry["metrics"][split][task.metric] is not None]
    best = max(defined, key=lambda entry: entry["metrics"][split][task.metric], default=epochs[-1])
    return {"metric": task.metric, "split": split, "best": chosen(best), "last": chosen(epochs[-1])}


def pack_predictions(predictions: dict[int, dict[str, np.ndarray]], selected: dict[str, Any]) -> bytes:
    tensors = {
        f"{rule}.{split}": values
        for rule in ("best", "last")
        for split, values in predictions[selected[rule]["epoch"]].items()
    }
    return save(tensors)
