"""Tasks of one's own that the tiny encoders learn, as a user has them: a definition and its files."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

import tiny
import yaml

STATED = {"columns": ["text"], "label": "mood", "labels": ["bad", "good"], "metric": "accuracy"}
STATED |= {"train": "train.csv", "dev": "dev.csv"}
ROWS = [("the film was good", "good"), ("the film was bad", "bad"), ("a good story", "good"), ("a dull story", "bad")]


def write_csv(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("text", "mood")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_task(folder: Path, name: str = "moods", **changes: object) -> Path:
    """Write a definition, and its two CSV files unless they exist. A value of None omits the key."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        if not (folder / f"{split}.csv").exists():
            write_csv(folder / f"{split}.csv", ROWS)
    stated = {key: value for key, value in (STATED | changes).items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(stated))
    return path


def learnable(rows: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of the tiny tokenizers' words. The label says whether a sentence has a good word or a bad one."""
    source, found = random.Random(seed), []
    plain = [word for word in tiny.WORDS if word not in ("good", "bright", "well", "bad", "dull", "badly")]
    for _ in range(rows):
        good = source.random() < 0.5
        words = [*source.choices(plain, k=4), source.choice(("good", "bright", "well") if good else ("bad", "dull"))]
        source.shuffle(words)
        found.append((" ".join(words), "good" if good else "bad"))
    return found


def write(folder: Path, rows: int, dev_rows: int) -> Path:
    """Write a task of `learnable` sentences. The last five of dev are in train too."""
    train = learnable(rows, 1)
    write_csv(folder / "train.csv", train)
    write_csv(folder / "dev.csv", [*learnable(dev_rows - 5, 2), *train[:5]])
    return write_task(folder)


def settings(model_dir: Path) -> list[str]:
    """Overrides that turn the runs of the profile `own` into runs of a second or two."""
    model = ["model=local", f"model.path={model_dir}", "data.max_length=32", "train.epochs=3", "train.batch=4"]
    return [*model, "train.precision=fp32", "train.kernels=stock", "runtime.device=cpu"]


def folders(folder: Path) -> list[str]:
    return [f"runtime.{name}={folder}/{name}" for name in ("results", "outputs")]
