"""TASKS: columns, labels, splits, headline metric, official sizes and file layout of each task. Torch is not loaded.

A user-defined task is made from its file (`lora.data.own_task`), and stands beside the settings of its runs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import lora.data.own_task

TARGET_SPAN = 5.0
KEYS = {"train": "train", "validation": "dev", "test": "test"}  # split -> its name in a user's file and in messages
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
MNLI_FILES = {"train": "train.tsv", "validation_matched": "dev_matched.tsv"}
MNLI_FILES |= {"validation_mismatched": "dev_mismatched.tsv"}
MNLI_FILES |= {"test_matched": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"}
Words = tuple[str, ...]


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
        own: The definition of a user-defined task; None for other tasks.
        folder: Base of its files' relative paths; None if it is not known, or not on this machine.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    official_rows: dict[str, int]
    tsv: TsvLayout | None = None
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    label_range: tuple[float, float] | None = None
    label_std: float | None = None
    own: "lora.data.own_task.Definition | None" = None
    folder: Path | None = None

    @property
    def family(self) -> Literal["glue", "embedded", "own"]:
        if self.own is not None:
            return "own"
        return "embedded" if self.tsv is None else "glue"

    @property
    def words(self) -> tuple[str, ...]:
        """What `task=` may call it: its name, of a user-defined one with the digits of its definition or without."""
        return self.name, self.name.rpartition("-")[0] or self.name

    @property
    def is_definition_only(self) -> bool:
        """Whether the location of the rows is unknown, as for a task of results from another machine."""
        return self.own is not None and self.folder is None

    @property
    def target_scale(self) -> tuple[float, float]:
        """Shift and factor that turn the model's output into a score: 0 and 1 if the output is the score.

        A user-defined regression is trained as if its range were STS-B's, 0 to 5, for which the learning rates were
        chosen: with squared errors of scores from 0 to 100, or from 1000 to 2000, the same rates learn nothing.
        """
        if self.own is None or self.label_range is None:
            return 0.0, 1.0
        low, high = self.label_range
        return low, (high - low) / TARGET_SPAN

    @property
    def score_type(self) -> str:
        """The dtype of scores, predicted ones too. Float32 has too few numbers in a range such as 1e9 to 1e9 + 1."""
        return "float32" if self.own is None else "float64"

    @property
    def metric(self) -> str:
        """The headline metric."""
        return self.metrics[0]

    @property
    def scoring_split(self) -> str:
        """The split that the scores of a run are of: of MNLI, the matched dev rows."""
        return self.validation_splits[0]

    @property
    def training_splits(self) -> tuple[str, ...]:
        """The splits that a run reads: train and validation."""
        return ("train", *self.validation_splits)


ONE = ("sentence",)
TWO = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
SIGNS, ACCEPTED = ("negative", "positive"), ("unacceptable", "acceptable")
ENTAILED, ZERO_ONE = ("entailment", "not_entailment"), ("0", "1")
ACCURACY = ("accuracy",)
F1 = ("accuracy", "f1")
MATTHEWS = ("matthews", "accuracy")
PEARSON = ("pearson", "spearman")
# The files that differ from the others.
MNLI = TsvLayout(TWO, "gold_label", files=MNLI_FILES)
MRPC = TsvLayout(("#1 String", "#2 String"), "Quality", ZERO_ONE)
COLA = TsvLayout(ONE, "label", ZERO_ONE, bare=("source", "label", "mark", "sentence"))
QNLI = TsvLayout(("question", "sentence"), "label")
QQP = TsvLayout(QUESTIONS, "is_duplicate", ZERO_ONE, broken=True)


def _glue(title: str, rows: Sequence[int], tsv: TsvLayout, columns: Words, labels: Words, metrics: Words, **facts: Any):
    sizes = dict(zip(tsv.files, rows, strict=True))
    return Task(title.lower().replace("-", ""), title, columns, labels, metrics, sizes, tsv, **facts)


def _embedded(name: str, train: int, validation: int, columns: Words, labels: Words, metrics: Words, **facts: Any):
    sizes = {"train": train, "validation": validation}
    return Task(name, name, columns, labels, metrics, sizes, test_splits=(), **facts)


# Order: the paper's Table 2, then WNLI, which the paper omits. Source of sizes and label orders: the data set's
# dataset_infos.json on the hub.
_GLUE = (
    _glue(
        *("MNLI", (392702, 9815, 9832, 9796, 9847), MNLI, ("premise", "hypothesis")),
        *(("entailment", "neutral", "contradiction"), ACCURACY),
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
    ),
    _glue("SST-2", (67349, 872, 1821), TsvLayout(ONE, "label", ZERO_ONE), ONE, SIGNS, ACCURACY),
    _glue("MRPC", (3668, 408, 1725), MRPC, TWO, ("not_equivalent", "equivalent"), F1),
    _glue("CoLA", (8551, 1043, 1063), COLA, ONE, ACCEPTED, MATTHEWS),
    _glue("QNLI", (104743, 5463, 5463), QNLI, ("question", "sentence"), ENTAILED, ACCURACY),
    _glue("QQP", (363846, 40430, 390965), QQP, QUESTIONS, ("not_duplicate", "duplicate"), F1),
    _glue("RTE", (2490, 277, 3000), TsvLayout(TWO, "label"), TWO, ENTAILED, ACCURACY),
    _glue(
        "STS-B", (5749, 1500, 1379), TsvLayout(TWO, "score"), TWO, (), PEARSON, label_range=(0.0, 5.0), label_std=1.5
    ),
    _glue("WNLI", (635, 71, 146), TsvLayout(TWO, "label", ZERO_ONE), TWO, ENTAILED[::-1], ACCURACY),
)

# Built by lora/data/embedded.py. None of them is a GLUE task, and none has a GLUE task's name.
_EMBEDDED = (
    _embedded("reviews", 3805, 422, ONE, SIGNS, ACCURACY),
    _embedded("ratings", 3989, 450, ONE, (), PEARSON, label_range=(-4.0, 4.0), label_std=1.9855),
    _embedded("clauses", 3647, 785, ("question", "clause"), ("not_answered", "answered"), ACCURACY),
    _embedded("scrambled", 3310, 359, ONE, ACCEPTED, MATTHEWS),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (*_GLUE, *_EMBEDDED)})
SOURCES_OF = {"glue": ("tsv", "parquet", "hub"), "embedded": ("embedded",), "own": ("own",)}  # by task family


def task_order(tasks: Collection[str]) -> list[str]:
    """The tasks, as `TASKS` lists them, then user-defined ones by name."""
    return [*(task for task in TASKS if task in tasks), *sorted(set(tasks) - set(TASKS))]
