"""A peer's job and its answer, as JSON files. Imports nothing large."""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from lora.checks import build
from lora.errors import UserError
from lora.files import read_object

T = TypeVar("T", "Job", "Answer")


@dataclass(frozen=True)
class PeerRun:
    """The settings of one run, for a script around Trainer and PEFT.

    Args:
        model: Folder of the encoder.
        rows: Folder of train.json and validation.json, which have one JSON object per line.
        columns: The text columns.
        outputs: Number of the head's outputs; 1 for regression.
        metric: The headline metric; one of `metrics`.
        targets, head: Names of the modules that LoRA adapts, and of those that train in full.
    """

    task: str
    seed: int
    model: str
    rows: str
    columns: tuple[str, ...]
    outputs: int
    metric: str
    metrics: tuple[str, ...]
    max_length: int
    epochs: int
    batch: int
    eval_batch: int
    lr: float
    warmup_frac: float
    weight_decay: float
    clip_norm: float
    rank: int
    alpha: float
    lora_dropout: float
    targets: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.task}.s{self.seed}"


@dataclass(frozen=True)
class PeerSettings:
    """How a peer trains its runs.

    Args:
        padding: `max_length`, or `longest` of the batch, whose examples are then of similar length.
        attention: The attention implementation in transformers.
        max_steps: Number of steps after which a run stops without evaluation; None trains it to the end.
    """

    padding: Literal["max_length", "longest"]
    precision: Literal["fp32", "bf16"]
    threads: int
    attention: Literal["eager", "sdpa"]
    max_steps: int | None = None


@dataclass(frozen=True)
class Job:
    """Runs for one process.

    Args:
        folder: Folder for dataset caches and saved adapters.
        started: `time.monotonic()` of the requesting process at the request.
    """

    runs: tuple[PeerRun, ...]
    settings: PeerSettings
    folder: str
    started: float


@dataclass(frozen=True)
class RunCost:
    """One finished run.

    Args:
        metric: The headline metric after the last epoch; None if it is undefined or the run stopped early.
        trainable: Number of trainable values, including the head's.
        parts: Seconds by activity; they need not add up to `seconds`.
    """

    name: str
    task: str
    seed: int
    metric: float | None
    trainable: int
    seconds: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """The results of a process. `startup_seconds`: from the request until its libraries were loaded."""

    startup_seconds: float
    runs: tuple[RunCost, ...]


def write(path: Path, content: Job | Answer) -> None:
    path.write_text(json.dumps(dataclasses.asdict(content), allow_nan=False))


def read(path: Path, kind: type[T]) -> T:
    """Read a job or an answer. Raises: UserError: If the file is not a `kind`."""
    try:
        return build(kind, read_object(path))
    except UserError as error:
        raise UserError(f"{path} is not a {kind.__name__.lower()} of the benchmark: {error}") from error


class Spent:
    """Seconds by activity. A nested activity counts for the outermost one only."""

    def __init__(self, parts: Iterable[str]):
        self.seconds = dict.fromkeys(parts, 0.0)
        self.depth = 0

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        self.depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.seconds[part] += time.perf_counter() - started
