"""Predictions against each example alone through the model; metrics against scikit-learn; the choice of epochs."""

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import matthews_corrcoef

from lora.data.batching import Encoded
from lora.data.tasks import TASKS
from lora.errors import DivergedError
from lora.rng import shuffled
from lora.training.device import Process
from lora.training.evaluation import DEV_HALVES, choose_epochs, predict, split_half

LENGTHS = np.random.default_rng(3).integers(4, 20, 23)
BATCH = 4
ALONE = Process(torch.device("cpu"))


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
    predicted, loss = predict(model, rows, TASKS["mnli"], 0, BATCH, ALONE, lambda: calls.append(1))
    assert loss == pytest.approx(-logits.double().log_softmax(1)[:, 0].mean().item(), rel=1e-5)  # every label is 0
    assert predicted.dtype == np.int16
    assert predicted.tolist() == expected
    assert len(calls) == 6  # after each batch of four of the 23 examples
    assert not model.training


def test_the_prediction_of_a_regression_is_its_score():
    model, rows = tiny.model("bert", outputs=1), encoded()
    predicted, loss = predict(model.train(), rows, TASKS["stsb"], 0, BATCH, ALONE)
    assert loss == pytest.approx((alone(model, rows)[:, 0].double() ** 2).mean().item(), rel=1e-5)  # every label is 0
    assert predicted.dtype == np.float32 and predicted.shape == (23,)
    np.testing.assert_allclose(predicted, alone(model, rows)[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_logits_that_are_not_finite_are_divergence(outputs):
    """The largest of NaN would be a class like any other."""
    model, task = tiny.model("bert", outputs=outputs), TASKS["mnli" if outputs == 3 else "stsb"]
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="logits of evaluated examples are not finite"):
        predict(model, encoded(), task, 0, BATCH, ALONE)


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
    chosen = choose_epochs(epochs(*values), TASKS["cola"])
    assert (chosen["metric"], chosen["split"]) == ("matthews", "validation")
    for name, (epoch, value) in (("best", best), ("last", last)):
        assert chosen[name] == {"epoch": epoch, "value": value}


def test_mnli_is_scored_on_its_matched_rows():
    both = epochs(0.5, 0.6, split="validation_matched", metric="accuracy")
    for entry, value in zip(both, (0.9, 0.1), strict=True):
        entry["metrics"]["validation_mismatched"] = {"accuracy": value}
    assert choose_epochs(both, TASKS["mnli"])["best"] == {"epoch": 2, "value": 0.6}


def test_the_split_half_score_does_not_gain_from_the_choice_of_an_epoch():
    """Forty epochs of coin tosses: the best one gains points by chance, on the rows that chose it alone."""
    source = np.random.default_rng(0)
    gains = []
    for _ in range(20):
        labels = source.integers(0, 2, 300)
        predictions = {epoch: {"validation": source.integers(0, 2, 300)} for epoch in range(1, 41)}
        score = split_half(predictions, {"validation": encoded(labels)}, TASKS["rte"])
        best = max((p["validation"] == labels).mean() for p in predictions.values())
        gains.append((best - 0.5, score - 0.5))
    by_best, by_half = np.array(gains).T
    assert by_best.mean() > 0.05
    assert abs(by_half.mean()) < 3 * by_half.std(ddof=1) / np.sqrt(20)


def test_the_split_half_score_is_the_mean_of_scores_on_the_other_half():
    """The truth: scikit-learn's metric, epochs chosen and scored in a loop of its own."""
    source = np.random.default_rng(1)
    labels = source.integers(0, 2, 101)
    tosses = {epoch: np.where(source.random(101) < 0.6 + 0.1 * epoch, labels, 1 - labels) for epoch in (1, 2, 3)}
    predictions = {epoch: {"validation": p} for epoch, p in tosses.items()}
    scores = []
    for division in range(DEV_HALVES):
        order = shuffled(101, "dev halves", division)
        for chosen_on, scored_on in ((order[:50], order[50:]), (order[50:], order[:50])):
            chosen = [matthews_corrcoef(labels[chosen_on], p[chosen_on]) for p in tosses.values()]
            scores.append(matthews_corrcoef(labels[scored_on], tosses[1 + int(np.argmax(chosen))][scored_on]))
    found = split_half(predictions, {"validation": encoded(labels)}, TASKS["cola"])
    assert found == pytest.approx(np.mean(scores), abs=1e-12)


def test_one_epoch_has_the_same_epoch_in_both_halves_and_constant_scores_have_no_score():
    labels = np.linspace(0, 5, 40, dtype=np.float32)
    halves = [{1: {"validation": p}} for p in (labels + 1, np.ones(40, np.float32))]
    found = [split_half(p, {"validation": encoded(labels)}, TASKS["stsb"]) for p in halves]
    assert found == [pytest.approx(1), None]
