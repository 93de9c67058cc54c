"""What a peer's process is asked to do and what it answers, as JSON files. Nothing else is loaded here."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora.errors import UserError


@dataclass(frozen=True)
class PeerCell:
    """One cell as a script around Trainer and PEFT takes it.

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
    """How a peer trains its cells.

    Args:
        padding: `max_length`, or `longest` of the batch, whose rows are then of similar length.
        attention: The implementation in transformers.
        max_steps: Stop a cell after so many steps, without evaluation: for a warm-up; None trains it whole.
    """

    padding: Literal["max_length", "longest"]
    precision: Literal["fp32", "bf16"]
    threads: int
    attention: Literal["eager", "sdpa"]
    max_steps: int | None = None


@dataclass(frozen=True)
class Job:
    """Cells for one process.

    Args:
        started: `time.monotonic()` of the process that asks, when it asks.
        folder: For caches of datasets and for what is saved.
    """

    cells: tuple[PeerCell, ...]
    settings: PeerSettings
    folder: str
    started: float


@dataclass(frozen=True)
class CellCost:
    """One trained cell.

    Args:
        metric: The headline after the last epoch; None if it is undefined or the cell was stopped early.
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
    cells: tuple[CellCost, ...] = field(default_factory=tuple)


def write(path: Path, content: Job | Answer) -> None:
    path.write_text(json.dumps(dataclasses.asdict(content), allow_nan=False))


def read_job(path: Path) -> Job:
    """Raises: UserError: If the file is not a job."""
    try:
        content = json.loads(path.read_text())
        cells = tuple(
            PeerCell(**{key: tuple(value) if isinstance(value, list) else value for key, value in cell.items()})
            for cell in content.pop("cells")
        )
        return Job(cells, PeerSettings(**content.pop("settings")), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a job of the benchmark: {error}") from error


def read_answer(path: Path) -> Answer:
    content = json.loads(path.read_text())
    return Answer(content["startup_seconds"], tuple(CellCost(**cell) for cell in content["cells"]))
