"""The functions of the training loop, each against its definition. The whole loop: test_loop.py."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from sklearn.utils.class_weight import compute_class_weight

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.models.load import load_encoder
from lora.rng import seed_for
from lora.training.device import Process, start_process
from lora.training.fused.encoder import fuse
from lora.training.step import MicroBatch, micro_batches, prepare_step, warmup_steps

NO_DROPOUT = ["train.dropout=0.0", "train.head_dropout=0.0"]


@pytest.mark.parametrize(("rows", "processes", "accumulation"), [(12, 1, 1), (13, 2, 3), (4, 3, 2), (1, 2, 2)])
def test_micro_batches_of_all_processes_see_every_example_once(rows, processes, accumulation):
    batch = np.arange(100, 100 + rows)
    seen, sizes = [], []
    for rank in range(processes):
        micro = micro_batches(batch, Process(torch.device("cpu"), rank, processes), accumulation)
        assert len(micro) == accumulation, "every process takes part as often as the others"
        for one in micro:
            assert len(one.rows) >= 1 and one.weight in (0.0, 1.0)
            if one.weight:
                seen += one.rows.tolist()
                sizes.append(len(one.rows))
            else:
                assert one.rows.tolist() == [100], "a stand-in whose loss does not count"
    assert sorted(seen) == batch.tolist()
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("clip", ["0.05", "null"])
@pytest.mark.parametrize("kernels", ["stock", "fused"])
def test_steps_in_uneven_parts_are_those_of_plain_torch_on_whole_batches(tiny_config, kernels, clip):
    """With the kernels, dropout too: a mask depends on the seed, the step and the example, not on the part."""
    more = ["train.dropout=0.2", "train.head_dropout=0.1"] if kernels == "fused" else NO_DROPOUT
    more += ["train.adam_eps=0.001"]  # keys' biases have no gradient but rounding, which a small value would blow up
    more += [f"train.kernels={kernels}", f"train.clip_norm={clip}", "train.warmup_steps=1", "train.weight_decay=0.1"]
    config = tiny_config("method=full", "task=cola", "train.lr=0.01", *more)
    train, task = config.train, TASKS["cola"]
    ours, plain = (load_encoder(config.model, task, 1, train.dropout, train.head_dropout).model for _ in range(2))
    step = prepare_step(ours, config, TASKS[config.task], start_process(config), steps=4)
    masks = fuse(plain, "fp32", seed_for(config.seed, "dropout")) if kernels == "fused" else None
    assert (step.masks is None) == (masks is None) and ours.get_input_embeddings().weight.requires_grad
    assert ours.get_input_embeddings().sparse == (kernels == "fused")
    named = dict(plain.named_parameters())
    decayed = [p for name, p in named.items() if not name.endswith("bias") and "LayerNorm" not in name]
    others = [p for name, p in named.items() if name.endswith("bias") or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_eps)
    ours.train(), plain.train()
    batch = {**tiny.inputs("bert"), "labels": torch.tensor([0, 1, 1, 0, 1])}
    for number, factor in enumerate((0, 1, 2 / 3, 1 / 3)):
        rows = np.array([7, 3, 40, 11, 2]) + number
        places = (slice(3), 1.0), (slice(3, 5), 1.0), (slice(1), 0.0)
        batches = (
            (MicroBatch(rows[place], weight), {key: value[place] for key, value in batch.items()})
            for place, weight in places
        )
        loss = step.take(number, batches, len(rows))
        if masks is not None:
            masks.begin(number, rows)
        logits = plain(**{key: value for key, value in batch.items() if key != "labels"}).logits
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        optimizer.zero_grad()
        expected.backward()
        if train.clip_norm is not None:
            assert torch.nn.utils.clip_grad_norm_(named.values(), train.clip_norm) > train.clip_norm
        for group in optimizer.param_groups:
            group["lr"] = train.lr * factor
        optimizer.step()
        for name, parameter in ours.named_parameters():
            assert parameter.grad is None
            torch.testing.assert_close(parameter, named[name], rtol=1e-4, atol=1e-5)


def test_warmup_is_the_next_whole_step(tiny_config):
    train = tiny_config().train
    for steps, frac, expected in ((100, 0.0, 0), (100, 0.5, 50), (100, 0.06, 6), (99, 0.06, 6), (101, 0.06, 7)):
        assert warmup_steps(dataclasses.replace(train, warmup_frac=frac, warmup_steps=None), steps) == expected
    assert warmup_steps(dataclasses.replace(train, warmup_frac=0.5, warmup_steps=0), 100) == 0


def test_balanced_weights_are_those_of_scikit_learn_and_divide_by_examples(tiny_config):
    """In two parts and at once. Scores, and a class without rows, are refused."""
    config, labels = tiny_config("train.class_weights=balanced", *NO_DROPOUT), [0] * 30 + [1] * 10
    task, batch = TASKS["cola"], tiny.inputs("bert")
    model = load_encoder(config.model, task, 1, 0.0, 0.0).model
    step = prepare_step(model, config, task, start_process(config), steps=4, labels=labels)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.array([0, 1]), y=labels), dtype=torch.float32)
    assert torch.allclose(step.class_weights, weights)
    true = torch.tensor([0, 1, 1, 0, 1])
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(model(**batch).logits, true, reduction="none")
        whole = step.loss(0, MicroBatch(np.arange(5), 1.0), batch | {"labels": true}, 5)
        parts = []
        for rows in (np.array([0, 1]), np.array([2, 3, 4])):
            part = {key: value[rows] for key, value in (batch | {"labels": true}).items()}
            parts.append(step.loss(0, MicroBatch(rows, 1.0), part, 5))
    assert torch.allclose(whole, (each * weights[true]).sum() / 5) and torch.allclose(sum(parts), whole)
    for name, rows in (("stsb", [1.0, 2.0]), ("cola", [0, 0])):
        with pytest.raises(UserError, match="class_weights=balanced is for classes that all have train rows"):
            prepare_step(model, config, TASKS[name], start_process(config), 4, rows)
