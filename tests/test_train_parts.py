"""The functions of the training loop, each against its definition. The whole loop: test_train.py."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator

from lora.data.tasks import TASKS
from lora.training.fused.optimizer import FusedAdamW
from lora.training.loop import NonFiniteLossError, check_finite
from lora.training.step import local_parts, make_optimizer, summed_loss, warmup_steps


@pytest.mark.parametrize(("rows", "processes", "accumulation"), [(12, 1, 1), (13, 2, 3), (4, 3, 2), (1, 2, 2)])
def test_processes_and_passes_see_every_row_once(rows, processes, accumulation, monkeypatch):
    batch = np.arange(100, 100 + rows)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    seen, sizes = [], []
    for index in range(processes):
        monkeypatch.setattr(Accelerator, "process_index", index)
        parts = local_parts(batch, Accelerator(cpu=True), accumulation)
        assert len(parts) == accumulation, "every process takes part as often as the others"
        for part in parts:
            assert len(part.rows) >= 1 and part.weight in (0.0, 1.0)
            if part.weight:
                seen += part.rows.tolist()
                sizes.append(len(part.rows))
            else:
                assert part.rows.tolist() == [100], "a stand-in whose loss does not count"
    assert sorted(seen) == batch.tolist()
    assert max(sizes) - min(sizes) <= 1


def test_the_loss_of_classes_is_the_summed_cross_entropy():
    model, batch = tiny.model("bert", outputs=3), tiny.inputs("bert")
    labels = torch.tensor([0, 2, 1, 1, 0])
    with torch.no_grad():
        logits = model(**batch).logits.double()
        loss = summed_loss(model, {**batch, "labels": labels}, TASKS["mnli"])
    by_row = [torch.log(row.exp().sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    assert loss.item() == pytest.approx(sum(by_row).item(), rel=1e-5)


def test_the_loss_of_scores_is_the_summed_squared_error():
    model, batch = tiny.model("bert", outputs=1), tiny.inputs("bert")
    labels = torch.tensor([0.0, 5.0, 2.5, 1.0, 3.8])
    with torch.no_grad():
        scores = model(**batch).logits[:, 0].double()
        loss = summed_loss(model, {**batch, "labels": labels}, TASKS["stsb"])
    assert loss.item() == pytest.approx(((scores - labels.double()) ** 2).sum().item(), rel=1e-5)


@pytest.mark.parametrize(("task", "outputs"), [("mnli", 3), ("stsb", 1)])
def test_the_loss_is_taken_in_float32(task, outputs):
    """Also for bfloat16 logits: a sum in bfloat16 keeps 8 bits."""
    model, batch = tiny.model("bert", outputs=outputs).bfloat16(), tiny.inputs("bert")
    labels = torch.tensor([0, 2, 1, 1, 0], dtype=torch.long if outputs == 3 else torch.float32)
    with torch.no_grad():
        assert summed_loss(model, {**batch, "labels": labels}, TASKS[task]).dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_first_step_whose_loss_is_not_finite_is_named(bad, place):
    """Five losses of an epoch whose last step is step 15 of the run."""
    losses = [torch.tensor(0.5) for _ in range(5)]
    check_finite(losses, 15)
    losses[place] = losses[-1] = torch.tensor(bad)
    with pytest.raises(NonFiniteLossError, match=rf"not finite at step {11 + place};"):
        check_finite(losses, 15)


@pytest.mark.parametrize("kernels", ["stock", "fused"])
def test_the_optimizer_has_the_settings_of_the_run(tiny_config, kernels):
    train = dataclasses.replace(
        tiny_config("train.lr=0.003", "train.weight_decay=0.1").train,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_eps=1e-7,
        kernels=kernels,
    )
    optimizer = make_optimizer(tiny.model("bert"), train)
    assert isinstance(optimizer, FusedAdamW) == (kernels == "fused")
    assert isinstance(optimizer, torch.optim.AdamW) == (kernels == "stock")
    assert kernels == "fused" or optimizer.defaults["fused"], "its last bits are those of the records"
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}
    for group in optimizer.param_groups:
        assert group["lr"] == 0.003
        assert tuple(group["betas"]) == (0.8, 0.95)
        assert group["eps"] == 1e-7


def test_warmup_is_the_next_whole_step(tiny_config):
    train = tiny_config().train
    for steps, frac, expected in ((100, 0.0, 0), (100, 0.5, 50), (100, 0.06, 6), (99, 0.06, 6), (101, 0.06, 7)):
        assert warmup_steps(dataclasses.replace(train, warmup_frac=frac, warmup_steps=None), steps) == expected
    assert warmup_steps(dataclasses.replace(train, warmup_frac=0.5, warmup_steps=0), 100) == 0
