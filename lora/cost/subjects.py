"""The subjects of measurements: encoders in training, and as deployed."""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from lora.adapters.merge import merge
from lora.config.run import RunConfig
from lora.cost.parameters import model_of_size
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.methods import apply
from lora.methods.lowrank import LoraLinear, LoraSlice
from lora.models.load import load_encoder
from lora.models.sizes import SIZES
from lora.rng import generator, seed_for
from lora.training.device import start_process
from lora.training.fused.encoder import fuse
from lora.training.step import MicroBatch, prepare_step

Action = Callable[[], object]
Batch = dict[str, Tensor]
SPECIAL = 5  # smaller ids are padding and other special tokens
ENDLESS = 2**40  # steps of the schedule, so that the learning rate stays the same
STD_B = 0.02  # ours: of random values that stand in for a trained B, since B is zero before training


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


def trained(config: RunConfig) -> Subject:
    """A run's encoder, trained by this project's own step, that of the training loop.

    Raises: UserError: If the device or precision is not available, or the kernels do not cover the encoder.
    """
    encoder = load(config)[0]
    apply(encoder, config.method, config.seed)
    constant = changed(config, train={"warmup_steps": 0})
    step = prepare_step(encoder, constant, start_process(constant), ENDLESS)
    step.model.train()
    numbers = itertools.count()

    def whole(batch: Batch) -> tuple[MicroBatch, Batch]:
        return MicroBatch(np.arange(len(batch["labels"])), 1.0), dict(batch)  # the loss removes the labels

    def loss(batch: Batch) -> Tensor:
        return step.loss(next(numbers), *whole(batch), len(batch["labels"]))

    def take(batch: Batch) -> None:
        step.take(next(numbers), [whole(batch)], len(batch["labels"]))

    return Subject(step.model, step.optimizer, loss, take)


def served(config: RunConfig, merged: bool) -> nn.Module:
    """A run's encoder as deployed: frozen, with its weights in the run's precision, on its device.

    B gets values of the size that training gives it.

    Args:
        merged: Whether LoRA is merged, in float32, before any cast.
    """
    model, precision = load(config)[0], config.train.precision
    apply(model, config.method, config.seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLinear | LoraSlice):
                source = generator(config.seed, "lora_b", name)
                module.lora_b.copy_(torch.empty(module.lora_b.shape).normal_(0.0, STD_B, generator=source))
    if merged:
        merge(model)
    model.requires_grad_(False)
    if config.train.kernels == "fused":
        fuse(model, precision, config.seed)
    elif precision == "bf16":
        model.to(torch.bfloat16)
    return model.to(config.runtime.device).eval()


@torch.inference_mode()
def serve(model: nn.Module, batch: Batch) -> Float[Tensor, "batch classes"]:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def rows_and_tokens(shape: str) -> tuple[int, int]:
    """The rows and tokens of a batch's shape. Raises: UserError: If it is not of the form `16x128`."""
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", shape):
        raise UserError(f"a shape must be <rows>x<tokens>, such as 16x128, got {shape!r}")
    rows, tokens = map(int, shape.split("x"))
    return rows, tokens


def random_batch(settings: PretrainedConfig, shape: str, device: str = "cpu") -> Batch:
    """Random ids without padding, and random labels."""
    rows, tokens = rows_and_tokens(shape)
    source = generator(0, "inputs", shape)
    batch = {
        "input_ids": torch.randint(SPECIAL, settings.vocab_size, (rows, tokens), generator=source),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "labels": torch.randint(0, settings.num_labels, (rows,), generator=source),
    }
    if getattr(settings, "type_vocab_size", 0) > 1:  # otherwise the tokenizer gives none
        batch["token_type_ids"] = torch.zeros(rows, tokens, dtype=torch.int64)
    return {key: value.to(device) for key, value in batch.items()}


def clock_of(device: str) -> Callable[[Action], float]:
    """The timer of an action: the machine's clock, or on a GPU events in its stream, so that no launch is missed."""
    return wall_seconds if device == "cpu" else event_seconds


def wall_seconds(action: Action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def event_seconds(action: Action) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    action()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000
