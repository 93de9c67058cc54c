"""The subjects of timings: models in training, by this project's step or PEFT's, and random batches for them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora.config.run import RunConfig
from lora.cost.parameters import model_of_size
from lora.cost.shapes import rows_and_tokens
from lora.cost.throughput.runs import PEFT_HEAD, PEFT_TARGETS
from lora.cost.timing import Action, wall_seconds
from lora.data.tasks import TASKS
from lora.methods import apply
from lora.models.load import load_encoder
from lora.models.sizes import SIZES
from lora.rng import generator, seed_for
from lora.training.device import make_accelerator
from lora.training.fused.encoder import DTYPES
from lora.training.step import Part, prepare_step

Batch = dict[str, Tensor]
SPECIAL = 5  # smaller ids are padding and other special tokens
ENDLESS = 2**40  # steps of the schedule, so that the learning rate stays the same


@dataclass(frozen=True)
class Subject:
    """A model in training.

    Args:
        loss: The forward pass of a batch: its mean loss.
        step: A whole training step on a batch: forward and backward pass, clipping, optimizer.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]
    step: Callable[[Batch], None]


def changed(config: RunConfig, **sections: Any) -> RunConfig:
    """A configuration with changed settings, such as `changed(config, train={"precision": "bf16"})`.

    Args:
        sections: The new settings by section; or a whole section, which replaces the old one.
    """
    new = {
        name: dataclasses.replace(getattr(config, name), **values) if isinstance(values, Mapping) else values
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **new)


def load(config: RunConfig) -> tuple[nn.Module, str]:
    """A fresh copy of a run's encoder in float32 on the CPU, and the name of its weights.

    An encoder in `SIZES` gets random weights, so that nothing is downloaded. Time does not depend on their values.

    Raises: UserError: If the encoder is absent.
    """
    name, task, train = config.model.name, TASKS[config.task], config.train
    if name not in SIZES:
        encoder = load_encoder(config.model, task, config.seed, train.dropout, train.head_dropout)
        return encoder.model, encoder.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "weights", name))
        model = model_of_size(name, len(task.labels) or 1, config.model.attention)
    return model, f"random, seed {config.seed}"


def ours(config: RunConfig, encoder: nn.Module | None = None, compiled: bool = False) -> Subject:
    """An encoder trained by this project's own step, that of the training loop.

    Args:
        encoder: The encoder, in float32 on the CPU; None loads the run's.
        compiled: Whether the model runs under torch.compile.
    Raises: UserError: If the device or precision is not available, or the kernels do not cover the encoder.
    """
    encoder = load(config)[0] if encoder is None else encoder
    apply(encoder, config.method, config.seed)
    constant = changed(config, train={"warmup_steps": 0})
    step = prepare_step(encoder, constant, make_accelerator(constant), ENDLESS)
    step.model.train()
    if compiled:
        step = dataclasses.replace(step, model=torch.compile(step.model))
    numbers = itertools.count()

    def whole(batch: Batch) -> tuple[Part, Batch]:
        return Part(np.arange(len(batch["labels"])), 1.0), dict(batch)  # the loss removes the labels

    def loss(batch: Batch) -> Tensor:
        return step.loss(next(numbers), *whole(batch), len(batch["labels"]))

    def take(batch: Batch) -> None:
        step.take(next(numbers), [whole(batch)], len(batch["labels"]))

    return Subject(step.model, step.optimizer, loss, take)


def peft(config: RunConfig, encoder: nn.Module | None = None) -> Subject:
    """An encoder with PEFT's LoRA, trained as Trainer does: autocast, clipping, torch's fused AdamW."""
    from peft import LoraConfig as PeftConfig  # of the extra `peers`
    from peft import TaskType, get_peft_model

    train, method = config.train, config.method
    device = "cuda" if config.runtime.device == "cuda" else "cpu"
    encoder = load(config)[0] if encoder is None else encoder
    modules = {name.rsplit(".", 1)[-1] for name, _ in encoder.named_modules()}
    adapted = PeftConfig(
        task_type=TaskType.SEQ_CLS,
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=[PEFT_TARGETS[target] for target in method.targets],
        modules_to_save=[part for part in PEFT_HEAD if part in modules],
    )
    model = get_peft_model(encoder.train(), adapted).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (train.adam_beta1, train.adam_beta2)
    optimizer = torch.optim.AdamW(trained, train.lr, betas, train.adam_eps, train.weight_decay, fused=True)
    casts = nullcontext() if train.precision == "fp32" else torch.autocast(device, DTYPES[train.precision])

    def loss(batch: Batch) -> Tensor:
        with casts:
            return model(**batch).loss

    def step(batch: Batch) -> None:
        loss(batch).backward()
        nn.utils.clip_grad_norm_(trained, train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Subject(model, optimizer, loss, step)


def random_batch(model: nn.Module, shape: str, seed: int = 0) -> Batch:
    """Random ids without padding, and random labels, on the model's device."""
    rows, tokens = rows_and_tokens(shape)
    settings, source = model.config, generator(seed, "inputs", shape)
    batch = {
        "input_ids": torch.randint(SPECIAL, settings.vocab_size, (rows, tokens), generator=source),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "labels": torch.randint(0, settings.num_labels, (rows,), generator=source),
    }
    if getattr(settings, "type_vocab_size", 0) > 1:  # otherwise the tokenizer gives none
        batch["token_type_ids"] = torch.zeros(rows, tokens, dtype=torch.int64)
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}


def clock_of(device: str) -> Callable[[Action], float]:
    """The timer of an action: the machine's clock, or on a GPU events in its stream, so that no launch is missed."""
    return wall_seconds if device == "cpu" else event_seconds


def event_seconds(action: Action) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    action()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000
