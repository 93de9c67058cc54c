"""Predictions against each example alone through the model; metrics against scikit-learn; the choice of epochs."""

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.numpy import load
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora.data.batching import Encoded
from lora.data.tasks import TASKS
from lora.training import evaluation
from lora.training.evaluation import evaluate, pack_predictions, predict, select, selecting_split

LENGTHS = np.random.default_rng(3).integers(4, 20, 23)
BATCH = 4


def encoded(labels: np.ndarray | None = None) -> Encoded:
    """Examples of random lengths, with random tokens."""
    ids = np.random.default_rng(4).integers(5, len(tiny.WORDS) + 5, LENGTHS.sum()).astype(np.int32)
    given = np.zeros(len(LENGTHS), np.int64) if labels is None else labels
    return Encoded(ids, None, np.cumsum(LENGTHS) - LENGTHS, LENGTHS.astype(np.int64), given, 32)


def alone(model: torch.nn.Module, rows: Encoded) -> torch.Tensor:
    """The logits of each example in a batch of its own, which needs no padding."""
    ids = np.split(rows.input_ids.astype(np.int64), rows.offsets[1:])
    with torch.no_grad():
        return torch.cat([model.eval()(torch.from_numpy(row)[None]).logits for row in ids])


def test_the_prediction_is_the_class_of_the_largest_logit_of_every_row_in_order():
    model, rows, calls = tiny.model("bert", outputs=3), encoded(), []
    logits = alone(model, rows)
    expected = [max(range(3), key=row.__getitem__) for row in logits.tolist()]
    assert len(set(expected)) == 3, "every class is predicted somewhere"
    model.train()  # `predict` turns dropout off
    predicted = predict(model, rows, TASKS["mnli"], 0, BATCH, Accelerator(cpu=True), lambda: calls.append(1))
    assert predicted.dtype == np.int16
    assert predicted.tolist() == expected
    assert len(calls) == 6  # after each batch of four of the 23 examples
    assert not model.training


def test_the_prediction_of_a_regression_is_its_score():
    model, rows = tiny.model("bert", outputs=1), encoded()
    predicted = predict(model.train(), rows, TASKS["stsb"], 0, BATCH, Accelerator(cpu=True))
    assert predicted.dtype == np.float32 and predicted.shape == (23,)
    np.testing.assert_allclose(predicted, alone(model, rows)[:, 0].numpy(), atol=1e-5)


def test_processes_share_the_batches(monkeypatch):
    """Two simulated processes in turn, their pieces joined as `gather_object` does. Real ones: test_processes.py."""
    model, rows, pieces = tiny.model("bert", outputs=3), encoded(), []
    monkeypatch.setattr(evaluation, "gather_object", lambda chunks: pieces.extend(chunks) or list(pieces))
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    sizes = []
    for index in range(2):
        monkeypatch.setattr(Accelerator, "process_index", index)
        predicted = predict(model, rows, TASKS["mnli"], 0, BATCH, Accelerator(cpu=True))
        sizes.append(sum(len(places) for places, _ in pieces))
    assert predicted.tolist() == alone(model, rows).argmax(-1).tolist()
    assert sizes == [12, 23], "each row once"


def test_every_metric_of_every_split_and_of_both_of_mnli_pooled():
    source = np.random.default_rng(5)
    splits = {f"validation_{name}": encoded(source.integers(0, 3, len(LENGTHS))) for name in ("matched", "mismatched")}
    predictions = {name: source.integers(0, 3, len(LENGTHS)).astype(np.int16) for name in splits}
    values = evaluate(predictions, splits, TASKS["mnli"])
    assert set(values) == {"validation_matched", "validation_mismatched", "pooled"}
    hits = {name: accuracy_score(splits[name].labels, predictions[name]) for name in splits}
    assert hits["validation_matched"] != hits["validation_mismatched"]
    for name in splits:
        assert values[name] == {"accuracy": pytest.approx(hits[name])}
    assert values["pooled"] == {"accuracy": pytest.approx(sum(hits.values()) / 2)}


OTHERS = {"mrpc": ("f1", f1_score), "cola": ("matthews", matthews_corrcoef)}


@pytest.mark.parametrize("task", OTHERS)
def test_one_split_is_not_pooled(task):
    other, score = OTHERS[task]
    source = np.random.default_rng(6)
    truth, predicted = source.integers(0, 2, len(LENGTHS)), source.integers(0, 2, len(LENGTHS)).astype(np.int16)
    values = evaluate({"validation": predicted}, {"validation": encoded(truth)}, TASKS[task])
    expected = {"accuracy": accuracy_score(truth, predicted), other: score(truth, predicted)}
    assert values == {"validation": {name: pytest.approx(value) for name, value in expected.items()}}


def test_the_split_that_selects():
    names = [selecting_split(TASKS["mnli"], selection) for selection in ("matched", "mismatched", "pooled")]
    assert names == ["validation_matched", "validation_mismatched", "pooled"]
    assert {selecting_split(TASKS["rte"], s) for s in ("matched", "mismatched", "pooled")} == {"validation"}


def epochs(*values: float | None, split: str = "validation", metric: str = "matthews") -> list[dict]:
    return [{"epoch": number, "metrics": {split: {metric: v}}} for number, v in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "best", "last"),
    [
        ((0.1, 0.3, 0.3, 0.2), (2, 0.3), (4, 0.2)),
        ((-0.2, -0.1), (2, -0.1), (2, -0.1)),
        ((None, -0.1, None), (2, -0.1), (3, None)),
        ((None, None, None), (3, None), (3, None)),
    ],
)
def test_the_first_of_the_highest_is_the_best_and_an_undefined_one_never_is(values, best, last):
    chosen = select(epochs(*values), TASKS["cola"], "matched")
    assert (chosen["metric"], chosen["split"]) == ("matthews", "validation")
    for name, (epoch, value) in (("best", best), ("last", last)):
        assert chosen[name] == {"epoch": epoch, "value": value}


def test_mnli_is_selected_by_the_split_that_is_asked_for():
    both = epochs(0.5, 0.6, split="validation_matched", metric="accuracy")
    for entry, value in zip(both, (0.9, 0.1), strict=True):
        entry["metrics"]["validation_mismatched"] = {"accuracy": value}
    chosen = {name: select(both, TASKS["mnli"], name)["best"] for name in ("matched", "mismatched")}
    assert chosen == {"matched": {"epoch": 2, "value": 0.6}, "mismatched": {"epoch": 1, "value": 0.9}}


def test_packed_predictions_are_those_of_best_and_last():
    predictions = {number: {"validation": np.array([number, 0], np.int16)} for number in (2, 3)}
    stored = load(pack_predictions(predictions, {"best": {"epoch": 2}, "last": {"epoch": 3}}))
    assert {name: values.tolist() for name, values in stored.items()} == {
        "best.validation": [2, 0],
        "last.validation": [3, 0],
    }
