"""The subjects of measurements, encoders in training and as deployed, and the bytes that their training needs."""

import ctypes
import dataclasses
import gc
import itertools
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig

from lora.adapters.merge import merge
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.methods import apply
from lora.methods.lowrank import LoraLinear, LoraSlice
from lora.models.load import load_encoder, model_of_size
from lora.models.modules import count_parameters, trainable
from lora.models.sizes import ENCODER_SIZES
from lora.rng import generator, seed_for
from lora.training.device import optimizer_bytes, start_process
from lora.training.fused.encoder import fuse
from lora.training.step import MicroBatch, prepare_step

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


def load(config: RunConfig) -> tuple[nn.Module, str]:
    """A fresh copy of a run's encoder in float32 on the CPU, and the name of its weights.

    An encoder in `ENCODER_SIZES` gets random weights, so nothing is downloaded. Time does not depend on their values.
    """
    name = config.model.name
    task = TASKS[config.task]
    train = config.train
    if name not in ENCODER_SIZES:
        encoder = load_encoder(config.model, task, config.seed, train.dropout, train.head_dropout)
        return encoder.model, encoder.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "weights", name))
        model = model_of_size(name, len(task.labels) or 1, config.model.attention)
    return model, f"random, seed {config.seed}"


def training_subject(config: RunConfig) -> Subject:
    """A run's encoder, trained by this project's own step, that of the training loop.

    Raises: UserError: If the device or precision is not available, or the kernels do not cover the encoder.
    """
    encoder = load(config)[0]
    apply(encoder, config.method, config.seed)
    constant = dataclasses.replace(config, train=dataclasses.replace(config.train, warmup_steps=0))
    step = prepare_step(encoder, constant, TASKS[config.task], start_process(constant), ENDLESS)
    step.model.train()
    numbers = itertools.count()

    def whole(batch: Batch) -> tuple[MicroBatch, Batch]:
        return MicroBatch(np.arange(len(batch["labels"])), 1.0), dict(batch)  # the loss removes the labels

    def loss(batch: Batch) -> Tensor:
        return step.loss(next(numbers), *whole(batch), len(batch["labels"]))

    def take(batch: Batch) -> None:
        step.take(next(numbers), [whole(batch)], len(batch["labels"]))

    return Subject(step.model, step.optimizer, loss, take)


def serving_model(config: RunConfig, merged: bool) -> nn.Module:
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
def serve_batch(model: nn.Module, batch: Batch) -> Float[Tensor, "batch classes"]:
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


def event_seconds(action: Callable[[], object]) -> float:
    """The time between events in a GPU's stream, so that no launch is missed."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    action()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


# Their bytes.

T = TypeVar("T")
PEAK_STEPS = 3  # from the second on, the optimizer has its state


def counts(subject: Subject, batches: Mapping[str, Batch]) -> dict[str, Any]:
    """The quantities that need no clock. Takes one step, so that the optimizer has a state to count."""
    parameters = count_parameters(subject.model)
    saved = {shape: saved_bytes(subject.model, partial(subject.loss, batch)) for shape, batch in batches.items()}
    subject.step(next(iter(batches.values())))
    return {
        "trainable": parameters["trainable_method"],
        "trainable_with_head": parameters["trainable_method"] + parameters["trainable_head"],
        "checkpoint_bytes": len(save({name: p.detach().cpu() for name, p in trainable(subject.model)})),
        "optimizer_bytes": optimizer_bytes(subject.optimizer),
        "saved_activation_bytes": saved,
    }


class _Casts(TorchDispatchMode):
    """Collects copies of the storages in `owned`: in another dtype or layout, or scaled."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.mul.Tensor)

    def __init__(self, owned: set[int]):
        super().__init__()
        self.owned = owned
        self.copies: dict[int, Tensor] = {}  # by address; kept alive, so that no other tensor gets the address

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if function in self.COPIES and not out.is_sparse:
            sources = [_address(argument) for argument in arguments if torch.is_tensor(argument)]
            if all(source in self.owned or source in self.copies for source in sources):
                self.copies[_address(out)] = out
        return out


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """The bytes that autograd keeps of one forward pass for the backward pass, counted by hooks on saved tensors.

    Parameters and buffers do not count, nor copies of them in another dtype or layout. Each other storage counts once
    and in full even if a saved view covers a part of it, since all of it stays in memory. Only tensors in the graph
    count; the fused kernels also keep keys of 8 bytes per example and dropout.
    """
    owned = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.extend((tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,))
        return tensor

    with _Casts(owned) as casts, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    storages = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in kept}
    del out
    return sum(size for address, size in storages.items() if address not in owned and address not in casts.copies)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # of the storage object: a fake storage has no data


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, whose memory and settings are independent of this one's.

    Raises: UserError: If the process is killed; any error that the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a process that measures was killed, probably because memory ran out") from error


def training_peak_mib(run: RunConfig, shape: str, threads: int) -> float | None:
    """The peak memory of this process while it trains, without that of loading the encoder.

    `getrusage` is unsuitable: its maximum starts at the memory that the parent process had when it started this one.

    Returns: The peak of the whole process on a CPU, of torch's allocator on a GPU. None if the system reports none.
    """
    torch.set_num_threads(threads)
    subject, device = training_subject(run), run.runtime.device
    batch = random_batch(subject.model.config, shape, device)
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak resident set size
        for _ in range(PEAK_STEPS):
            subject.step(batch)
        if device == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return round(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024, 1)
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
