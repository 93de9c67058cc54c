"""TASKS: columns, labels, splits, headline metric, official sizes and file layout of each task. Torch is not loaded.

A user-defined task is added when its file is read (`lora.data.own_task`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora.errors import UserError

if TYPE_CHECKING:
    import lora.data.own_task

TARGET_SPAN = 5.0
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
MNLI_FILES = {
    "train": "train.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}


@dataclass(frozen=True)
class TsvLayout:
    """The official GLUE files of one task, in a folder that is named by the task's title.

    Args:
        texts: Header names of the text columns, in the order of `Task.columns`.
        label: Header name of the label column, which test files lack.
        words: Label words in the files, in the order of `Task.labels`; () if they are the same.
        files: Split -> file name.
        bare: Column names of train and dev files without a header (CoLA).
        broken: Whether some lines of train and dev are torn (QQP). Lines then end as in Python's text files, and lines
            with another number of columns are skipped, provided that the official number of rows remains.
    """

    texts: tuple[str, ...]
    label: str
    words: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=lambda: FILES)
    bare: tuple[str, ...] = ()
    broken: bool = False


@dataclass(frozen=True)
class OwnRows:
    """The location of a user-defined task's rows.

    Args:
        folder: Base of its files' relative paths; None if only the definition is known, as in a folder of results.
    """

    definition: "lora.data.own_task.Definition"
    folder: Path | None


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        title: Name in tables.
        columns: One or two text columns, named as in `nyu-mll/glue` on the hub.
        labels: Label words in the hub's index order; () for regression.
        metrics: The metrics to compute, the headline metric first.
        official_rows: Split -> number of rows of the whole split.
        tsv: Layout of the official files; None for other tasks.
        label_range: Lowest and highest score of a regression; None for classification.
        label_std: Standard deviation (ddof 0) of the official dev labels of a regression; None for classification.
        own: The location of a user-defined task's rows; None for other tasks.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    official_rows: dict[str, int]
    tsv: TsvLayout | None = None
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    label_range: tuple[float, float] | None = None
    label_std: float | None = None
    own: OwnRows | None = None

    @property
    def family(self) -> Literal["glue", "embedded", "own"]:
        if self.own is not None:
            return "own"
        return "embedded" if self.tsv is None else "glue"

    @property
    def is_definition_only(self) -> bool:
        """Whether the location of the rows is unknown, as for a task that a folder of results keeps."""
        return self.own is not None and self.own.folder is None

    @property
    def target_scale(self) -> tuple[float, float] | None:
        """Shift and factor that turn the model's output into a score; None if the output is the score.

        A user-defined regression is trained as if its range were STS-B's, 0 to 5, for which the learning rates were
        chosen: with squared errors of scores from 0 to 100, or from 1000 to 2000, the same rates learn nothing.
        """
        if self.own is None or self.label_range is None:
            return None
        low, high = self.label_range
        return low, (high - low) / TARGET_SPAN

    def to_targets(self, scores: Any) -> Any:
        """The outputs that a model is trained to give for these scores."""
        if self.target_scale is None:
            return scores
        shift, factor = self.target_scale
        return (scores - shift) / factor

    def to_scores(self, outputs: Any) -> Any:
        """The scores that a model's outputs stand for."""
        if self.target_scale is None:
            return outputs
        shift, factor = self.target_scale
        return outputs * factor + shift

    @property
    def metric(self) -> str:
        """The headline metric."""
        return self.metrics[0]

    @property
    def training_splits(self) -> tuple[str, ...]:
        """The splits that a run reads: train and validation."""
        return (self.train_split, *self.validation_splits)


SENTENCE, SENTENCES = ("sentence",), ("sentence1", "sentence2")
ENTAILED, DIGITS = ("entailment", "not_entailment"), ("0", "1")
SCORES = {"labels": (), "metrics": ("pearson", "spearman")}
MATTHEWS = ("matthews", "accuracy")


def _glue(title: str, rows: tuple[int, int, int], tsv: TsvLayout, **facts: Any) -> Task:
    shared = {"columns": SENTENCES, "metrics": ("accuracy",), "official_rows": dict(zip(FILES, rows, strict=True))}
    return Task(**{"name": title.lower().replace("-", ""), "title": title, "tsv": tsv} | shared | facts)


def _embedded(name: str, train: int, validation: int, **facts: Any) -> Task:
    rows = {"train": train, "validation": validation}
    shared = {"columns": SENTENCE, "metrics": ("accuracy",), "official_rows": rows, "test_splits": ()}
    return Task(**{"name": name, "title": name} | shared | facts)


# Order: the paper's Table 2, then WNLI, which the paper omits. Source of sizes and label orders: the data set's
# dataset_infos.json on the hub.
_GLUE = (
    Task(
        name="mnli",
        title="MNLI",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        official_rows=dict(zip(MNLI_FILES, (392702, 9815, 9832, 9796, 9847), strict=True)),
        tsv=TsvLayout(SENTENCES, "gold_label", files=MNLI_FILES),
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
    ),
    _glue(
        "SST-2",
        (67349, 872, 1821),
        TsvLayout(SENTENCE, "label", DIGITS),
        columns=SENTENCE,
        labels=("negative", "positive"),
    ),
    _glue(
        "MRPC",
        (3668, 408, 1725),
        TsvLayout(("#1 String", "#2 String"), "Quality", DIGITS),
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
    ),
    _glue(
        "CoLA",
        (8551, 1043, 1063),
        TsvLayout(SENTENCE, "label", DIGITS, bare=("source", "label", "mark", "sentence")),
        columns=SENTENCE,
        labels=("unacceptable", "acceptable"),
        metrics=MATTHEWS,
    ),
    _glue(
        "QNLI",
        (104743, 5463, 5463),
        TsvLayout(("question", "sentence"), "label"),
        columns=("question", "sentence"),
        labels=ENTAILED,
    ),
    _glue(
        "QQP",
        (363846, 40430, 390965),
        TsvLayout(("question1", "question2"), "is_duplicate", DIGITS, broken=True),
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
    ),
    _glue("RTE", (2490, 277, 3000), TsvLayout(SENTENCES, "label"), labels=ENTAILED),
    _glue(
        "STS-B",
        (5749, 1500, 1379),
        TsvLayout(SENTENCES, "score"),
        **SCORES,
        label_range=(0.0, 5.0),
        label_std=1.5000,
    ),
    _glue("WNLI", (635, 71, 146), TsvLayout(SENTENCES, "label", DIGITS), labels=ENTAILED[::-1]),
)

# Built by lora/data/embedded.py. None of them is a GLUE task, and none has a GLUE task's name.
_EMBEDDED = (
    _embedded("reviews", 3805, 422, labels=("negative", "positive")),
    _embedded("ratings", 3989, 450, **SCORES, label_range=(-4.0, 4.0), label_std=1.9855),
    _embedded("clauses", 3647, 785, columns=("question", "clause"), labels=("not_answered", "answered")),
    _embedded("scrambled", 3310, 359, labels=("unacceptable", "acceptable"), metrics=MATTHEWS),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_GLUE, *_EMBEDDED)}
MIN_TRAIN_ROWS = 2  # in a subset of the train split
SOURCES_OF = {"glue": ("tsv", "parquet", "hub"), "embedded": ("embedded",), "own": ("own",)}  # by task family


def fitting_sources(task: Task) -> str:
    """The sources that a task's rows may come from, for a message."""
    *others, last = SOURCES_OF[task.family]
    return f"{', '.join(others)} or {last}" if others else last


def get_task(name: str) -> Task:
    """The task of this name. Raises: UserError: If there is none; the message lists the tasks that exist."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
