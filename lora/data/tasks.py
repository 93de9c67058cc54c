"""TASKS: columns, labels, splits, headline metric, official sizes and file layout of each task. Torch is not loaded.

A user-defined task is added when its file is read (`lora.data.own_task`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora.data.definition import Definition
from lora.errors import UserError

TARGET_SPAN = 5.0


@dataclass(frozen=True)
class TsvLayout:
    """The official GLUE files of one task.

    Args:
        folder: Name of the task's folder in the data folder.
        files: Split -> file name.
        texts: Header names of the text columns, in the order of `Task.columns`.
        label: Header name of the label column, which test files lack.
        words: Label words in the files, in the order of `Task.labels`; () if they are the same.
        bare: Column names of train and dev files without a header (CoLA).
        broken: Whether some lines of train and dev are torn (QQP). Lines then end as in Python's text files, and lines
            with another number of columns are skipped, provided that the official number of rows remains.
    """

    folder: str
    files: dict[str, str]
    texts: tuple[str, ...]
    label: str
    words: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    broken: bool = False


@dataclass(frozen=True)
class OwnRows:
    """The location of a user-defined task's rows.

    Args:
        folder: Base of its files' relative paths; None if only the definition is known, as in a folder of results.
    """

    definition: Definition
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
        return self.own is not None and self.own.definition.hub is None and self.own.folder is None

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


FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
MNLI_FILES = {
    "train": "train.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
SENTENCE, SENTENCES = ("sentence",), ("sentence1", "sentence2")
DIGITS = ("0", "1")


def _rows(train: int, validation: int, test: int | None = None) -> dict[str, int]:
    return {"train": train, "validation": validation} | ({} if test is None else {"test": test})


# Order: the paper's Table 2, then WNLI, which the paper omits. Source of sizes and label orders: the data set's
# dataset_infos.json on the hub.
_GLUE = (
    Task(
        name="mnli",
        title="MNLI",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        official_rows={
            "train": 392702,
            "validation_matched": 9815,
            "validation_mismatched": 9832,
            "test_matched": 9796,
            "test_mismatched": 9847,
        },
        tsv=TsvLayout("MNLI", MNLI_FILES, SENTENCES, "gold_label"),
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
    ),
    Task(
        name="sst2",
        title="SST-2",
        columns=SENTENCE,
        labels=("negative", "positive"),
        metrics=("accuracy",),
        official_rows=_rows(67349, 872, 1821),
        tsv=TsvLayout("SST-2", FILES, SENTENCE, "label", DIGITS),
    ),
    Task(
        name="mrpc",
        title="MRPC",
        columns=SENTENCES,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        official_rows=_rows(3668, 408, 1725),
        tsv=TsvLayout("MRPC", FILES, ("#1 String", "#2 String"), "Quality", DIGITS),
    ),
    Task(
        name="cola",
        title="CoLA",
        columns=SENTENCE,
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        official_rows=_rows(8551, 1043, 1063),
        tsv=TsvLayout("CoLA", FILES, SENTENCE, "label", DIGITS, bare=("source", "label", "mark", "sentence")),
    ),
    Task(
        name="qnli",
        title="QNLI",
        columns=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        official_rows=_rows(104743, 5463, 5463),
        tsv=TsvLayout("QNLI", FILES, ("question", "sentence"), "label"),
    ),
    Task(
        name="qqp",
        title="QQP",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        official_rows=_rows(363846, 40430, 390965),
        tsv=TsvLayout("QQP", FILES, ("question1", "question2"), "is_duplicate", DIGITS, broken=True),
    ),
    Task(
        name="rte",
        title="RTE",
        columns=SENTENCES,
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        official_rows=_rows(2490, 277, 3000),
        tsv=TsvLayout("RTE", FILES, SENTENCES, "label"),
    ),
    Task(
        name="stsb",
        title="STS-B",
        columns=SENTENCES,
        labels=(),
        label_range=(0.0, 5.0),
        metrics=("pearson", "spearman"),
        official_rows=_rows(5749, 1500, 1379),
        tsv=TsvLayout("STS-B", FILES, SENTENCES, "score"),
        label_std=1.5000,
    ),
    Task(
        name="wnli",
        title="WNLI",
        columns=SENTENCES,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        official_rows=_rows(635, 71, 146),
        tsv=TsvLayout("WNLI", FILES, SENTENCES, "label", DIGITS),
    ),
)

# Built by lora/data/embedded_tasks.py. None of them is a GLUE task, and none has a GLUE task's name.
_EMBEDDED = (
    Task(
        name="reviews",
        title="reviews",
        columns=SENTENCE,
        labels=("negative", "positive"),
        metrics=("accuracy",),
        official_rows=_rows(3805, 422),
        test_splits=(),
    ),
    Task(
        name="ratings",
        title="ratings",
        columns=SENTENCE,
        labels=(),
        label_range=(-4.0, 4.0),
        metrics=("pearson", "spearman"),
        official_rows=_rows(3989, 450),
        label_std=1.9855,
        test_splits=(),
    ),
    Task(
        name="clauses",
        title="clauses",
        columns=("question", "clause"),
        labels=("not_answered", "answered"),
        metrics=("accuracy",),
        official_rows=_rows(3647, 785),
        test_splits=(),
    ),
    Task(
        name="scrambled",
        title="scrambled",
        columns=SENTENCE,
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        official_rows=_rows(3310, 359),
        test_splits=(),
    ),
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
