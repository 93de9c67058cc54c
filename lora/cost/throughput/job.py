"""What a peer's process is asked to do and what it answers, as JSON files. Nothing large is loaded here."""

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
    """One run as a script around Trainer and PEFT takes it.

    Args:
        model: Folder of the encoder.
        rows: Folder with train.json and validation.json, a JSON object per line.
        columns: The text columns.
        outputs: Of the head; 1 is a regression.
        metric: The headline; one of `metrics`.
        targets, head: Names of the modules that LoRA adapts, and of those that train whole.
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
        padding: `max_length`, or `longest` of the batch, whose rows are then of similar length.
        attention: The implementation in transformers.
        max_steps: Stop a run after so many steps, without evaluation: for a warm-up; None trains it whole.
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
        started: `time.monotonic()` of the process that asks, when it asks.
        folder: For caches of datasets and for what is saved.
    """

    runs: tuple[PeerRun, ...]
    settings: PeerSettings
    folder: str
    started: float


@dataclass(frozen=True)
class RunCost:
    """One finished run.

    Args:
        metric: The headline after the last epoch; None if it is undefined or the run was stopped early.
        trainable: Values that train, the head's among them.
        parts: Seconds by what they went into; what they leave of `seconds` went elsewhere.
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
    """What a process did. `startup_seconds`: from the asking until its libraries were loaded."""

    startup_seconds: float
    runs: tuple[RunCost, ...]


def write(path: Path, content: Job | Answer) -> None:
    path.write_text(json.dumps(dataclasses.asdict(content), allow_nan=False))


def read(path: Path, kind: type[T]) -> T:
    """Raises: UserError: If the file is not a `kind`."""
    try:
        return build(kind, read_object(path))
    except UserError as error:
        raise UserError(f"{path} is not a {kind.__name__.lower()} of the benchmark: {error}") from error


class Spent:
    """Seconds by part; a part within another counts for the outer one only."""

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
