"""One optimizer step, from its batch to the updated parameters. The loop takes it, and benchmarks time it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lora.config.run import RunConfig, TrainConfig
from lora.data.facts import class_counts
from lora.data.tasks import Task
from lora.models.modules import is_head, is_layer_norm, trainable
from lora.rng import seed_for
from lora.training.device import Process
from lora.training.fused.encoder import fuse
from lora.training.fused.functions import Masks
from lora.training.fused.optimizer import FusedAdamW
from lora.training.ranks import Ranks, Subspaces, allocator


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together.

    Args:
        rows: Their indices in the train split.
        weight: 0 for a stand-in: a process without examples must still join the step. Otherwise 1.
    """

    rows: np.ndarray
    weight: float


@dataclass(frozen=True)
class Step:
    """A model in training, with everything that an optimizer step needs.

    Args:
        trained: The trainable parameters.
        masks: The source of dropout masks with train.kernels=fused; None with stock.
        ranks: AdaLoRA's, or AdaMSS's subspaces; None with other methods.
        class_weights: Of the train loss, whose sum is divided by the number of examples all the same.
    """

    model: nn.Module
    trained: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    masks: Masks | None
    process: Process
    task: Task
    train: TrainConfig
    ranks: Ranks | Subspaces | None = None
    class_weights: Tensor | None = None

    def loss(self, number: int, micro: MicroBatch, batch: dict[str, Tensor], examples: int) -> Tensor:
        """Run a micro-batch's forward pass. Pops the batch's labels.

        Returns: Its share of the step's mean loss: cross-entropy, or squared error for regression, in float32.
        """
        if self.masks is not None:
            self.masks.begin(number, micro.rows)
        labels = batch.pop("labels")
        with self.process.autocast():
            logits = self.model(**batch).logits.float()
        if self.task.labels:
            loss = F.cross_entropy(logits, labels, self.class_weights, reduction="sum")
        else:
            shift, factor = self.task.target_scale
            loss = F.mse_loss(logits.squeeze(-1), ((labels - shift) / factor).float(), reduction="sum")
        loss = loss * micro.weight / examples
        if isinstance(self.ranks, Ranks):
            loss = loss + self.ranks.penalty() * micro.weight * len(micro.rows) / examples
        return loss

    def take(self, number: int, batches: Iterable[tuple[MicroBatch, dict[str, Tensor]]], examples: int) -> Tensor:
        """Run the forward and backward passes, clip the gradients, and step the optimizer and the schedule.

        Args:
            number: The index of this step, from 0.
            batches: This process's micro-batches; an iterator may create each on demand.
            examples: Number of examples in the step, over all processes and micro-batches.
        Returns: The mean loss of the step.
        """
        loss = torch.zeros((), device=self.process.device)
        for micro, batch in batches:
            share = self.loss(number, micro, batch, examples)
            share.backward()
            loss += share.detach()
        self.process.sum_gradients(self.trained)
        if self.train.clip_norm is not None and self.masks is None:  # otherwise the optimizer clips
            nn.utils.clip_grad_norm_(self.trained, self.train.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.ranks is not None:
            self.ranks.update(number + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return self.process.sum(loss)


def balanced(task: Task, labels: Sequence[float | int]) -> Tensor:
    """The weights n / (K n_k) of K classes, each with n_k of the n train rows. Raises: UserError: As `class_counts`."""
    counts = class_counts(task, labels)
    return torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32)


def prepare_step(
    model: nn.Module, config: RunConfig, task: Task, process: Process, steps: int, labels: Sequence[float | int] = ()
) -> Step:
    """Set up a run's kernels, optimizer and schedule, for a model with its method applied.

    Args:
        steps: Number of steps of the whole run, over which the schedule extends.
        labels: Of the train rows; needed for train.class_weights.
    Raises: UserError: If train.kernels=fused does not cover the encoder, PEFT's allocator does not fit the steps, or
        class weights do not fit the task.
    """
    train = config.train
    masks = None
    weights = balanced(task, labels).to(process.device) if train.class_weights else None
    model.to(process.device)
    if train.kernels == "fused":
        masks = fuse(model, train.precision, seed_for(config.seed, "dropout"))
        for module in model.modules():
            # A vocabulary's dense gradient is mostly zeros, and creating, clipping and applying it takes a quarter of a
            # step. Several processes add dense gradients.
            if isinstance(module, nn.Embedding) and module.weight.requires_grad:
                module.sparse = process.count == 1
    optimizer = make_optimizer(model, train)
    schedule = LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps(train, steps), steps))
    trained = [p for _, p in trainable(model)]
    # Stock dropout draws from the global generator, which is seeded last so that nothing above advances it.
    torch.manual_seed(seed_for(config.seed, "dropout", process.rank))
    ranks = allocator(model, steps) if config.method.name == "peft" else None
    return Step(model, trained, optimizer, schedule, masks, process, task, train, ranks, weights)


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay on all trainable parameters except biases and LayerNorms.

    With `lora_plus`, B and the head's biases train at that multiple of the rate; with `head_lr`, the head at its own.

    Source: the released Trainer, which decides by module type. A Pfeiffer adapter decays although it is inside a
        layer's LayerNorm. DoRA's norms do not decay (ours): it would pull the pretrained weights to zero. LoRA+'s
        groups: the released code of Hayou et al. 2024 (`create_loraplus_optimizer`), in which every parameter of one
        dimension is in B's group.
    """
    bare = not getattr(getattr(getattr(model, "applied", None), "method", None), "decay", True)  # one of PEFT's methods
    norms = {f"{name}.weight" for name, module in model.named_modules() if is_layer_norm(module)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(train.lr, True): [], (train.lr, False): []}
    for name, parameter in trainable(model):
        in_head = is_head(model, name)
        is_fast = name.endswith("lora_b") or parameter.dim() == 1
        decays = "bias" not in name and name not in norms and not name.endswith("lora_m") and (in_head or not bare)
        lr = train.lr * (train.lora_plus or 1) if is_fast else train.lr
        lr = train.head_lr or lr if in_head else lr
        groups.setdefault((lr, decays), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": train.weight_decay if decays else 0.0, "lr": lr}
        for (lr, decays), parameters in groups.items()
    ]
    betas = (train.adam_beta1, train.adam_beta2)
    if train.kernels == "fused":
        return FusedAdamW(settings, train.lr, betas, train.adam_eps, train.clip_norm)
    return torch.optim.AdamW(settings, train.lr, betas, train.adam_eps, fused=True)


def warmup_steps(train: TrainConfig, steps: int) -> int:
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_frac * steps)


def lr_factor(step: int, warmup: int, steps: int) -> float:
    """The released Trainer's schedule: linear from 0 to 1 in `warmup` steps, then linear to 0 at `steps`.

    transformers' version is in a module that imports its Trainer, and with it PEFT, which takes half of the time to a
    run's first step.
    """
    return step / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))


def micro_batches(rows: np.ndarray, process: Process, accumulation: int) -> list[MicroBatch]:
    """This process's micro-batches of a global batch. All processes together see every example once.

    A step's loss is the sum over all examples of the global batch divided by their number. It depends neither on the
    number of processes nor on that of micro-batches, even for an uneven last batch.
    """
    shares = np.array_split(rows, process.count * accumulation)
    mine = shares[process.rank :: process.count]
    return [MicroBatch(share, 1.0) if len(share) else MicroBatch(rows[:1], 0.0) for share in mine]
