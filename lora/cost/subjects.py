"""Models that take the same training step in different ways: this project's, PEFT's, full fine-tuning."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora.config.run import RunConfig
from lora.cost.throughput.runs import BERT_HEAD, BERT_TARGETS
from lora.data.tasks import TASKS
from lora.methods import METHODS
from lora.methods.configs import FullConfig, LoraConfig
from lora.models.load import load_encoder
from lora.models.modules import trainable
from lora.models.sizes import SIZES
from lora.rng import generator
from lora.training.fused.encoder import DTYPES, fuse, sparse_embeddings
from lora.training.step import make_optimizer, summed_loss

CLASSES = 2
TASK = TASKS["reviews"]
Build = Callable[[str], nn.Module]  # from the attention's implementation to a fresh model in float32 on the CPU


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Args:
        step: A whole training step on a batch: forward, backward, clipping, optimizer.
        loss: Only the forward pass, for what it keeps.
    """

    name: str
    model: nn.Module
    step: Callable[[dict[str, Tensor]], None]
    loss: Callable[[dict[str, Tensor]], Tensor]


def pretrained(config: RunConfig) -> Build:
    """Fresh copies of a run's encoder."""

    def build(attention: str) -> nn.Module:
        return load_encoder(dataclasses.replace(config.model, attention=attention), TASK, config.seed).model

    return build


def of_size(model: str, config: RunConfig) -> Build:
    """The embedded encoder, or one of a published size with random weights: time does not depend on their values."""
    if model == "minilm":
        return pretrained(config)

    def build(attention: str) -> nn.Module:
        sizes = dict(SIZES[model])
        settings = AutoConfig.for_model(sizes.pop("model_type"), num_labels=CLASSES, **sizes)
        settings._attn_implementation = attention
        return AutoModelForSequenceClassification.from_config(settings)

    return build


def ours(
    build: Build,
    config: RunConfig,
    name: str,
    method: LoraConfig | FullConfig,
    precision: str,
    device: str = "cpu",
    attention: str = "eager",
    compiled: bool = False,
) -> Contender:
    """This project's step: the compiled kernels on a CPU, transformers' modules under autocast on a GPU."""
    fused = device == "cpu"
    train = dataclasses.replace(config.train, precision=precision, kernels="fused" if fused else "stock")
    model = build(attention).train()
    METHODS[method.name].apply(model, method, config.seed)
    model.to(device)
    masks = None
    if fused:
        masks = fuse(model, precision, config.seed, config.model.gradient_checkpointing)
        sparse_embeddings(model)
    optimizer = make_optimizer(model, train)
    trained = [p for _, p in trainable(model)]
    forward = torch.compile(model) if compiled else model
    taken = iter(range(2**31))

    def loss(batch: dict[str, Tensor]) -> Tensor:
        rows = len(batch["input_ids"])
        if masks is not None:
            masks.begin(next(taken), torch.arange(rows).numpy())
        with nullcontext() if fused else autocast(device, precision):
            return summed_loss(forward, dict(batch), TASK) / rows

    def step(batch: dict[str, Tensor]) -> None:
        loss(batch).backward()
        if not fused:  # else the optimizer clips
            nn.utils.clip_grad_norm_(trained, train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender(name, model, step, loss)


def peft(
    build: Build,
    config: RunConfig,
    name: str,
    method: LoraConfig,
    precision: str,
    device: str = "cpu",
    attention: str = "eager",
) -> Contender:
    """PEFT's LoRA as a Trainer steps it: autocast, clipping, torch's fused AdamW."""
    from peft import LoraConfig as PeftConfig  # of the extra `peers`
    from peft import TaskType, get_peft_model

    model = build(attention).train()
    modules = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    adapted = PeftConfig(
        task_type=TaskType.SEQ_CLS,
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=[BERT_TARGETS[target] for target in method.targets],
        modules_to_save=[part for part in BERT_HEAD if part in modules],
    )
    model = get_peft_model(model, adapted).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    train = config.train
    optimizer = torch.optim.AdamW(
        trained, train.lr, (train.adam_beta1, train.adam_beta2), train.adam_eps, train.weight_decay, fused=True
    )

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with autocast(device, precision):
            return model(**batch).loss

    def step(batch: dict[str, Tensor]) -> None:
        loss(batch).backward()
        nn.utils.clip_grad_norm_(trained, train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender(name, model, step, loss)


def autocast(device: str, precision: str):
    return nullcontext() if precision == "fp32" else torch.autocast(device, DTYPES[precision])


def random_batch(rows: int, tokens: int, vocabulary: int, device: str = "cpu") -> dict[str, Tensor]:
    """Rows of random tokens, none padded."""
    source = generator(0, "benchmark batch", rows, tokens)
    batch = {
        "input_ids": torch.randint(5, vocabulary, (rows, tokens), generator=source),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "labels": torch.randint(0, CLASSES, (rows,), generator=source),
    }
    return {key: value.to(device) for key, value in batch.items()}
