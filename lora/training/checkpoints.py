"""Checkpoints: the state of an unfinished run in one file, from which another process resumes it bit for bit.

A checkpoint holds the trainable parameters and the optimizer state, not the frozen model. It is a safetensors file with
all other state as JSON in the header. It is written atomically, read without executing code, and used only by its run.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora.config.run import RunConfig
from lora.errors import UserError, first_line
from lora.files import written_whole
from lora.models.load import Encoder
from lora.models.modules import trainable
from lora.records.provenance import code_digest
from lora.training import signals
from lora.training.processes import is_main_process
from lora.training.usage import processor

FORMAT = 1
AGREE_STEPS = 16


@dataclass
class Done:
    """Progress of a run. Its position in the data follows from these fields.

    Args:
        started_at: When the run first started.
        epochs: The finished epochs, in the record's form.
        losses: One per step of the current epoch.
        predictions: Epoch -> split -> predictions.
        adapter: The adapter of the best epoch, as the files of its folder.
        step_seconds: One per step.
        earlier_seconds: Time spent before the run was last resumed.
        resumed: How many times the run was resumed from a checkpoint.
    """

    started_at: str
    epochs: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    predictions: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    adapter: dict[str, bytes] | None = None
    tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    earlier_seconds: float = 0.0
    resumed: int = 0

    @property
    def step(self) -> int:
        return (self.epochs[-1]["step"] if self.epochs else 0) + len(self.losses)


@dataclass(frozen=True)
class Trained:
    """The objects of a run whose state a checkpoint saves.

    Args:
        model: The bare model, not wrapped for several processes.
        optimizer: A torch optimizer; its state is saved by parameter name.
        steps: Number of steps of the whole run.
        made_from: The inputs that must be equal for a checkpoint to be used (`made_from`).
        keeps_adapter: Whether the run saves the adapter of its best epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    steps: int
    made_from: dict[str, Any]
    keeps_adapter: bool


class Keeper:
    """Writes and restores the checkpoint of one run.

    Args:
        minutes: Minutes between checkpoints; None writes one only after a signal.
    """

    def __init__(self, path: Path, minutes: float | None, trained: Trained, accelerator: Accelerator):
        self.path, self.minutes, self.trained, self.accelerator = path, minutes, trained, accelerator
        self.began = self.written = time.monotonic()

    def resume(self, started_at: str) -> Done:
        """Restore the model, its optimizer and the random states from the checkpoint, if one exists."""
        device, rank = self.accelerator.device, self.accelerator.process_index
        return read_checkpoint(self.path, self.trained, device, rank) or Done(started_at)

    def pause(self, done: Done) -> None:
        """Write a checkpoint if one is due or a signal has arrived, then obey the signal.

        Called between two steps, or two batches of an evaluation. A failed write costs the checkpoint, not the run.
        """
        due = self.minutes is not None and time.monotonic() - self.written >= 60 * self.minutes
        if not agreed(due or bool(signals.noted), done.step, self.accelerator):
            return
        states = gather_object([random_states(self.accelerator.device)])
        if self.accelerator.is_main_process:
            try:
                write_checkpoint(self.path, self.trained, done, time.monotonic() - self.began, states)
            except UserError as error:
                print(f"continuing without a checkpoint: {error}", file=sys.stderr)
        self.written = time.monotonic()
        if signals.noted:
            signals.follow()


def agreed(wanted: bool, step: int, accelerator: Accelerator) -> bool:
    """Whether to write now. All processes of a run must write after the same step, so they vote.

    They vote only every `AGREE_STEPS` steps, because waiting for the result would stall a GPU, and never during an
    evaluation, in which they have different numbers of batches.
    """
    if accelerator.num_processes == 1:
        return wanted
    if step % AGREE_STEPS or torch.is_inference_mode_enabled():
        return False
    return bool(accelerator.reduce(torch.tensor(float(wanted), device=accelerator.device), "sum"))


def made_from(config: RunConfig, fingerprint: str, encoder: Encoder, accelerator: Accelerator) -> dict[str, Any]:
    """Everything that determines the bits of a run: settings, threads, data, encoder, code and processors."""
    settings = config.settings() | {"train": config.for_record()["train"]}
    processes = accelerator.num_processes
    runtime = {"threads": config.runtime.threads, "device": config.runtime.device, "processes": processes}
    inputs = {"rows": fingerprint, "weights": encoder.weights, "tokenizer": encoder.tokenizer_files}
    named = {"format": FORMAT, "settings": settings, "runtime": runtime, "inputs": inputs, "code": code_digest()}
    # Every process lists the processors of all, so that all of them decide alike whether to use the checkpoint.
    named["processors"] = gather_object([processor(accelerator.device)])
    return json.loads(json.dumps(named))  # in the form that a checkpoint returns: tuples become lists


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's random generators. Data order and fused dropout masks have no state."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def write_checkpoint(path: Path, trained: Trained, done: Done, seconds: float, states: list[dict[str, Tensor]]) -> None:
    """Replace the run's checkpoint.

    Args:
        seconds: Time since the run started or was last resumed.
        states: `random_states` of every process.
    Raises: UserError: If it cannot be written. The previous checkpoint is kept.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, int]] = {}
    for name, p in trainable(trained.model):
        tensors[f"parameter.{name}"] = p.detach()
        for key, value in trained.optimizer.state.get(p, {}).items():
            if torch.is_tensor(value):
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    for rank, state in enumerate(states):
        tensors |= {f"random.{rank}.{kind}": value for kind, value in state.items()}
    for epoch, splits in done.predictions.items():
        tensors |= {f"predictions.{epoch}.{split}": torch.from_numpy(values) for split, values in splits.items()}
    tensors["losses"] = torch.stack(done.losses)
    tensors["step_seconds"] = torch.tensor(done.step_seconds, dtype=torch.float64)
    for name, content in (done.adapter or {}).items():
        tensors[f"adapter.{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    run = {
        "made_from": trained.made_from,
        "step": done.step,
        "steps": trained.steps,
        "epochs": done.epochs,
        "tokens": done.tokens,
        "seconds": done.earlier_seconds + seconds,
        "started_at": done.started_at,
        "resumed": done.resumed,
        "optimizer": numbers,
        "rates": [group["lr"] for group in trained.optimizer.param_groups],
        "schedule": trained.schedule.state_dict(),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, {"run": json.dumps(run)})


def read_checkpoint(path: Path, trained: Trained, device: torch.device, rank: int) -> Done | None:
    """Restore a run from its checkpoint.

    Returns: None, with nothing changed, if no usable checkpoint exists. One that is broken, was made from other
        settings, data, code or processors, or lacks the adapter that the run must save is reported on stderr.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            run = json.loads(file.metadata()["run"])
            differing = [key for key in trained.made_from if run["made_from"].get(key) != trained.made_from[key]]
            if differing:
                raise ValueError(f"it was made from other {', '.join(differing)}{of_processors(run, trained)}")
            # Copied, because training would otherwise write to the mapped file, which may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        done = _done(run, tensors, trained, device)
        _restore(run, tensors, trained, device, rank)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if is_main_process():
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"{path} is not used ({reason}): starting from the beginning", file=sys.stderr)
        return None
    return done


def of_processors(run: dict[str, Any], trained: Trained) -> str:
    """The processors of the checkpoint and of this run, in words, if they differ; else ""."""
    then, now = run["made_from"].get("processors"), trained.made_from["processors"]
    return (
        "" if then in (None, now) else f": {', '.join(dict.fromkeys(then))} then, {', '.join(dict.fromkeys(now))} now"
    )


def _done(run: dict[str, Any], tensors: dict[str, Tensor], trained: Trained, device: torch.device) -> Done:
    predictions: dict[int, dict[str, np.ndarray]] = {}
    for name, values in _below(tensors, "predictions."):
        epoch, split = name.split(".", 1)
        predictions.setdefault(int(epoch), {})[split] = values.numpy()
    adapter = {name: content.numpy().tobytes() for name, content in _below(tensors, "adapter.")}
    if trained.keeps_adapter and run["epochs"] and not adapter:
        raise ValueError("it lacks the adapter of its best epoch, which runtime.save_adapter=true asks for")
    return Done(
        started_at=run["started_at"],
        epochs=run["epochs"],
        losses=list(tensors["losses"].to(device).unbind()),
        predictions=predictions,
        adapter=adapter if adapter and trained.keeps_adapter else None,  # else an earlier epoch's would remain
        tokens=run["tokens"],
        step_seconds=tensors["step_seconds"].tolist(),
        earlier_seconds=run["seconds"],
        resumed=run["resumed"] + 1,
    )


@torch.no_grad()
def _restore(
    run: dict[str, Any], tensors: dict[str, Tensor], trained: Trained, device: torch.device, rank: int
) -> None:
    """Check all of the checkpoint, then restore it."""
    parameters = dict(trainable(trained.model))
    saved = dict(_below(tensors, "parameter."))
    if {n: (t.shape, t.dtype) for n, t in saved.items()} != {n: (p.shape, p.dtype) for n, p in parameters.items()}:
        raise ValueError("it holds other parameters")
    states: dict[str, dict[str, Any]] = {name: dict(run["optimizer"].get(name, {})) for name in parameters}
    for name, tensor in _below(tensors, "optimizer."):
        key, parameter = name.split(".", 1)
        if tensor.dim() and tensor.shape != parameters[parameter].shape:
            raise ValueError(f"the optimizer's {key} of {parameter} has another shape")
        states[parameter][key] = tensor.to(parameters[parameter].device)
    if len(run["rates"]) != len(trained.optimizer.param_groups) or set(run["schedule"]) != set(
        trained.schedule.state_dict()
    ):
        raise ValueError("it is of another optimizer")
    random = dict(_below(tensors, f"random.{rank}."))
    torch.Generator().set_state(random["cpu"])  # raises if it is not a generator's state
    if device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], device)
    torch.set_rng_state(random["cpu"])
    for name, p in parameters.items():
        p.copy_(saved[name])
        if states[name]:
            trained.optimizer.state[p] = states[name]
    for group, rate in zip(trained.optimizer.param_groups, run["rates"], strict=True):
        group["lr"] = rate
    trained.schedule.load_state_dict(run["schedule"])


def _below(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))
