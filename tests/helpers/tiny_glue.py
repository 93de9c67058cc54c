"""Small GLUE folders in the official TSV layout, with random sentences of the tiny tokenizers' words."""

from pathlib import Path

import tiny
from glue_files import header_of

from lora.data.tasks import TASKS


def write(folder: Path, rows: int = 40, dev_rows: int = 20) -> Path:
    """Write CoLA, MRPC, STS-B, RTE and MNLI. The label depends on the first word, so there is something to learn."""
    for name, line in (("cola", cola), ("mrpc", mrpc), ("stsb", stsb), ("rte", rte), ("mnli", mnli)):
        task = TASKS[name]
        for seed, split in enumerate(task.training_splits, start=1):
            count = rows if split == task.train_split else dev_rows
            path = folder / task.title / task.tsv.files[split]
            path.parent.mkdir(parents=True, exist_ok=True)
            pairs = zip(tiny.sentences(count, seed), tiny.sentences(count, seed + 100), strict=True)
            header = [] if name == "cola" else ["\t".join(header_of(task, split))]
            lines = [*header, *(line(i, *pair) for i, pair in enumerate(pairs))]
            path.write_text("".join(f"{one}\n" for one in lines))
    return folder


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


def first_word(sentence: str) -> int:
    return tiny.WORDS.index(sentence.split()[0])


def cola(i: int, first: str, second: str) -> str:
    return f"src\t{first_word(first) % 2}\t\t{first}"


def mrpc(i: int, first: str, second: str) -> str:
    return f"{first_word(first) % 2}\t{i}\t{i}\t{first}\t{second}"


def stsb(i: int, first: str, second: str) -> str:
    return f"{i}\tg\tf\ty\t{i}\ta\tb\t{first}\t{second}\t{first_word(first) / 4:.3f}"


def rte(i: int, first: str, second: str) -> str:
    return f"{i}\t{first}\t{second}\t{('entailment', 'not_entailment')[first_word(first) % 2]}"


def mnli(i: int, first: str, second: str) -> str:
    label = ("entailment", "neutral", "contradiction")[first_word(first) % 3]
    return "\t".join([str(i), "p", "q", "g", "b", "b", "s", "s", first, second, label, label])
