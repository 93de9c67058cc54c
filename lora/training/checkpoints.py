"""Checkpoints: the state of an unfinished run in one file, from which another process resumes it bit for bit.

A checkpoint holds the trainable parameters and the optimizer state, not the frozen model. It is written atomically,
read without executing code, and used only by its run.
"""

import pickle
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lora.config.run import RunConfig
from lora.errors import UserError, first_line
from lora.files import written_whole
from lora.models.load import Encoder
from lora.records.provenance import code_digest
from lora.training import processes
from lora.training.device import Process, processor
from lora.training.step import Step

AGREE_STEPS = 16  # between two votes of a run's processes, since waiting would stall a GPU
CHECKPOINT_ERRORS = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


@dataclass
class TrainState:
    """Progress of a run. Its position in the data follows from these fields.

    Args:
        started_at: When the run first started.
        epochs: The finished epochs, in the record's form.
        losses: One per step of the current epoch.
        predictions: Epoch -> split -> predictions, as tensors, which torch loads without executing code.
        adapter: The adapter of the best epoch, as the files of its folder.
        step_seconds: One per step.
        earlier_seconds: Time spent before the run was last resumed.
        resumed: How many times the run was resumed from a checkpoint.
    """

    started_at: str
    epochs: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    predictions: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    adapter: dict[str, bytes] | None = None
    tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    earlier_seconds: float = 0.0
    resumed: int = 0

    @property
    def step(self) -> int:
        return (self.epochs[-1]["step"] if self.epochs else 0) + len(self.losses)


class Checkpointer:
    """Writes and restores the checkpoint of one run.

    Args:
        minutes: Minutes between checkpoints; None writes one only after a signal.
        made_from: The inputs that must be equal for a checkpoint to be used (`made_from`).
    """

    def __init__(self, path: Path, minutes: float | None, step: Step, made_from: dict[str, Any]):
        self.path, self.minutes, self.step, self.made_from = path, minutes, step, made_from
        # with those that AdaMSS freezes on the way
        self.parameters = {name: step.model.get_parameter(name) for name in step.model.applied.trained}
        self.began = self.written = time.monotonic()

    def resume(self, started_at: str) -> TrainState:
        """Restore the run from its checkpoint if a usable one exists. Otherwise, return the state of a new run.

        A checkpoint that is broken or was made from other inputs is reported on stderr, and changes nothing.
        """
        if not self.path.exists():
            return TrainState(started_at)
        try:
            return self._restore(torch.load(self.path, map_location="cpu", weights_only=True))
        except CHECKPOINT_ERRORS as error:
            if self.step.process.rank == 0:
                reason = f"{type(error).__name__}: {first_line(error)}"
                print(f"{self.path} is not used ({reason}): starting from the beginning", file=sys.stderr)
            return TrainState(started_at)

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> TrainState:
        differing = [key for key in self.made_from if saved["made_from"].get(key) != self.made_from[key]]
        if differing:
            raise ValueError(f"it was made from other {', '.join(differing)}")
        process = self.step.process
        parameters = self.parameters
        if {n: t.shape for n, t in saved["parameters"].items()} != {n: p.shape for n, p in parameters.items()}:
            raise ValueError("it holds other parameters")  # copying would stretch a smaller tensor
        schedule, random = saved["schedule"], saved["random"][process.rank]
        losses = saved["state"]["losses"].to(process.device)
        resumed = saved["state"]["resumed"] + 1
        state = TrainState(**saved["state"] | {"losses": list(losses.unbind()), "resumed": resumed})
        self.step.optimizer.load_state_dict(saved["optimizer"])
        self.step.schedule.load_state_dict(schedule)
        if self.step.ranks is not None:
            self.step.ranks.load_state_dict(tree_map_only(Tensor, lambda t: t.to(process.device), saved["ranks"]))
        for name, parameter in parameters.items():
            parameter.copy_(saved["parameters"][name]).requires_grad_(name in saved["trained"])
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], process.device)
        return state

    def pause(self, state: TrainState) -> None:
        """Write a checkpoint if one is due or a signal has arrived, then obey the signal.

        Called between two steps, or two batches of an evaluation. A failed write costs the checkpoint, not the run.
        """
        process = self.step.process
        due = self.minutes is not None and time.monotonic() - self.written >= 60 * self.minutes
        wanted = due or bool(processes.noted)
        if process.count > 1:  # all must write after the same step, so they vote
            if state.step % AGREE_STEPS or torch.is_inference_mode_enabled():  # numbers of evaluation batches differ
                return
            wanted = bool(process.sum(torch.tensor(float(wanted), device=process.device)))
        if not wanted:
            return
        random = {"cpu": torch.get_rng_state()}  # data order and fused dropout masks have no state
        if process.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(process.device)
        states = process.gather([random])
        if process.rank == 0:
            try:
                self._write(state, states)
            except UserError as error:
                print(f"continuing without a checkpoint: {error}", file=sys.stderr)
        self.written = time.monotonic()
        if processes.noted:
            processes.follow()

    def _write(self, state: TrainState, random: list[dict[str, Tensor]]) -> None:
        seconds = state.earlier_seconds + time.monotonic() - self.began
        content = {
            "made_from": self.made_from,
            "state": vars(state) | {"losses": torch.stack(state.losses), "earlier_seconds": seconds},
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "trained": [name for name, parameter in self.parameters.items() if parameter.requires_grad],
            "optimizer": self.step.optimizer.state_dict(),
            "schedule": self.step.schedule.state_dict(),
            "ranks": self.step.ranks and self.step.ranks.state_dict(),
            "random": random,
        }
        with written_whole(self.path) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # torch's own message gives no reason
                raise OSError("torch.save failed, as on a full disk") from error


def made_from(config: RunConfig, fingerprint: str, encoder: Encoder, process: Process) -> dict[str, Any]:
    """Everything that determines the bits of a run: settings, threads, data, encoder, code and processors."""
    return {
        "settings": config.settings() | {"train": config.for_record()["train"]},
        "runtime": (config.runtime.threads, config.runtime.device, process.count, config.runtime.save_adapter),
        "inputs": (fingerprint, encoder.weights, encoder.tokenizer_files),
        "code": code_digest(),
        # Every process lists the processors of all, so that all of them decide alike whether to use the checkpoint.
        "processors": process.gather([processor(process.device)]),
    }
