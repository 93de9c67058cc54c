"""The encoder with a method on it: ready to train, by the training loop's own loss and optimizer, or ready to serve."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora.adapters.merge import merge
from lora.config.run import TrainConfig
from lora.cost.efficiency.plan import RANDOM, Plan, method_run, model_config, sides
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.methods import METHODS
from lora.methods.lowrank import LoraLinear
from lora.models.load import load_encoder, max_positions
from lora.models.modules import trainable
from lora.models.sizes import SIZES
from lora.rng import generator, seed_for
from lora.training.fused.encoder import fuse, sparse_embeddings
from lora.training.fused.masks import Masks
from lora.training.step import make_optimizer, summed_loss

TASK = TASKS["reviews"]  # two classes: of the data, only the head's outputs matter here
SPECIAL = 5  # ids below are padding and the like
STD_B = 0.02  # ours: of the stand-in for a trained B, which is zero before training


def resolve_device(wanted: str, kernels: str | None) -> torch.device:
    """`auto` is a GPU where torch sees one, unless the kernels are those for CPUs.

    Raises: UserError: If `cuda` is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device here; auto or cpu would do")
    if wanted == "auto" and torch.cuda.is_available() and kernels != "fused":
        return torch.device("cuda")
    return torch.device("cpu" if wanted == "auto" else wanted)


def build_encoder(plan: Plan) -> tuple[nn.Module, str]:
    """The encoder in float32, on the CPU, and the name of its weights.

    Raises: UserError: If it is absent, or reads fewer tokens than a shape of the plan has.
    """
    config, train = model_config(plan), method_run(plan, "full").train
    if plan.model in RANDOM:
        model, weights = random_encoder(plan.model, config.attention, plan.seed), f"random, seed {plan.seed}"
    else:
        encoder = load_encoder(config, TASK, plan.seed, train.dropout, train.head_dropout)
        model, weights = encoder.model, encoder.weights
    longest = max(sides(shape)[1] for shape in (*plan.step_shapes, *plan.latency_shapes))
    if longest > max_positions(model.config):
        raise UserError(f"a shape has {longest} tokens, but {plan.model} reads at most {max_positions(model.config)}")
    return model, weights


def random_encoder(name: str, attention: str, seed: int) -> nn.Module:
    """Of full size; what it costs does not depend on what its weights are."""
    sizes = dict(SIZES[name])
    settings = AutoConfig.for_model(sizes.pop("model_type"), num_labels=len(TASK.labels), **sizes)
    settings._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights", name))
        return AutoModelForSequenceClassification.from_config(settings)


@dataclass(frozen=True)
class Trainee:
    """A model in training. `masks` is None with kernels=stock."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train: TrainConfig
    masks: Masks | None
    device: torch.device


def make_trainee(plan: Plan, name: str) -> Trainee:
    """As `lora.training.loop.run` sets it up.

    Raises: UserError: If the kernels do not cover the encoder.
    """
    run, (model, _) = method_run(plan, name), build_encoder(plan)
    METHODS[run.method.name].apply(model, run.method, plan.seed)
    device, masks = torch.device(plan.device), None
    if plan.kernels == "fused":
        masks = fuse(model, plan.precision, seed_for(plan.seed, "dropout"))
        sparse_embeddings(model)
    model.to(device).train()
    return Trainee(model, make_optimizer(model, run.train), run.train, masks, device)


def loss_of(trainee: Trainee, batch: dict[str, Tensor], number: int) -> Float[Tensor, ""]:
    """The forward pass of step `number`: the mean loss over the rows."""
    rows = len(batch["labels"])
    if trainee.masks is not None:
        trainee.masks.begin(number, np.arange(rows))
    with _autocast(trainee):
        return summed_loss(trainee.model, dict(batch), TASK) / rows


def train_step(trainee: Trainee, batch: dict[str, Tensor], number: int) -> None:
    """Forward and backward pass, clipping, and the optimizer's step."""
    loss_of(trainee, batch, number).backward()
    if trainee.train.clip_norm is not None and trainee.masks is None:  # else the optimizer clips
        nn.utils.clip_grad_norm_([p for _, p in trainable(trainee.model)], trainee.train.clip_norm)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)


def _autocast(trainee: Trainee) -> AbstractContextManager:
    if trainee.masks is None and trainee.train.precision == "bf16":
        return torch.autocast(trainee.device.type, torch.bfloat16)
    return nullcontext()  # the fused kernels cast by themselves


def make_server(plan: Plan, name: str) -> nn.Module:
    """The model as it is deployed: everything frozen, and held in the plan's precision.

    B gets values as training would give it, and `lora_merged` is merged in float32 before anything is cast.
    """
    run, (model, _) = method_run(plan, name), build_encoder(plan)
    METHODS[run.method.name].apply(model, run.method, plan.seed)
    fill_b(model, plan.seed)
    if name == "lora_merged":
        merge(model)
    model.requires_grad_(False)
    if plan.kernels == "fused":
        fuse(model, plan.precision, plan.seed)
    elif plan.precision == "bf16":
        model.to(torch.bfloat16)
    return model.to(torch.device(plan.device)).eval()


@torch.no_grad()
def fill_b(model: nn.Module, seed: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            draw = torch.empty(module.lora_b.shape).normal_(0.0, STD_B, generator=generator(seed, "lora_b", name))
            module.lora_b.copy_(draw)


@torch.inference_mode()
def serve(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "batch classes"]:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def make_batch(model: nn.Module, shape: str, plan: Plan) -> dict[str, Tensor]:
    """Random ids without padding, and labels."""
    rows, tokens = sides(shape)
    settings, source = model.config, generator(plan.seed, "inputs", shape)
    batch = {
        "input_ids": torch.randint(SPECIAL, settings.vocab_size, (rows, tokens), generator=source),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "labels": torch.randint(0, len(TASK.labels), (rows,), generator=source),
    }
    if getattr(settings, "type_vocab_size", 0) > 1:  # else the tokenizer gives none
        batch["token_type_ids"] = torch.zeros(rows, tokens, dtype=torch.int64)
    return {key: value.to(plan.device) for key, value in batch.items()}
