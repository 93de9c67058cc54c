"""Small GLUE folders in the official TSV layout, with random sentences of the tiny tokenizers' words."""

from pathlib import Path

import tiny
from glue_files import cells, words_of, write_split

from lora.data.tasks import TASKS, Task


def write(folder: Path, rows: int = 40, dev_rows: int = 20) -> Path:
    """Write CoLA, MRPC, STS-B, RTE and MNLI. The label depends on the first word, so there is something to learn."""
    for task in (TASKS[name] for name in ("cola", "mrpc", "stsb", "rte", "mnli")):
        for seed, split in enumerate(task.training_splits, start=1):
            count = rows if split == "train" else dev_rows
            pairs = zip(tiny.sentences(count, seed), tiny.sentences(count, seed + 100), strict=True)
            made = [cells(task, split, i, pair, label_of(task, pair[0])) for i, pair in enumerate(pairs)]
            write_split(folder, task, split, made)
    return folder


def label_of(task: Task, sentence: str) -> str:
    first, words = tiny.WORDS.index(sentence.split()[0]), words_of(task)
    return words[first % len(words)] if words else f"{first / 4:.3f}"


def settings(glue: Path, model: Path, folder: Path) -> list[str]:
    """Overrides that turn the runs of the `small` profile into runs of one second, which write into `folder`."""
    return [
        "profile=small",
        "model=local",
        f"model.path={model}",
        f"data.path={glue}",
        "task=cola",
        "train.epochs=2",
        "train.batch=8",
        "train.lr=1e-3",
        "train.precision=fp32",
        "train.kernels=stock",
        "data.max_length=32",
        f"runtime.results={folder}/results",
        f"runtime.outputs={folder}/outputs",
        "runtime.device=cpu",
        "runtime.tracking=off",
    ]
