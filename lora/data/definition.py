"""The definition of a user-defined task, read from YAML: columns, label, metric, and the location of its splits.

The file is the user's, so it may point anywhere on the disk. Its content is checked strictly.
"""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lora.checks import Problems, SettingsError, build
from lora.errors import UserError, first_line

OF_CLASSES, OF_SCORES = ("accuracy", "f1", "macro_f1", "matthews"), ("pearson", "spearman")
OF_TWO_CLASSES = ("f1", "matthews")
TAKEN = ("label", "idx")  # columns that every task's rows have in addition to texts
KEYS = {"train": "train", "validation": "dev", "test": "test"}  # split, as in `Task` -> its key in the file
NAME_LENGTH = 40  # characters of the file's name in a task's name, at most
DIGITS = 6  # digits of the definition's hash in a task's name
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
OWN_NAME = re.compile(rf"[A-Za-z0-9_]+-[0-9a-f]{{{DIGITS}}}")


@dataclass(frozen=True)
class HubRows:
    """A data set on the hub. The definition's train, dev and test are names of its splits.

    Args:
        id: Such as `user/data_set`.
        revision: Commit, tag or branch.
        config: The data set's configuration, if it has several.
    """

    id: str
    revision: str
    config: str | None = None

    def __post_init__(self):
        problems = Problems()
        problems.check(bool(HUB_ID.fullmatch(self.id)), "id", "of the form user/data_set", self.id)
        problems.check(bool(self.revision), "revision", "stated, so that the rows stay the same", self.revision)
        problems.done()


@dataclass(frozen=True)
class Definition:
    """The content of a task's file.

    Args:
        columns: One or two text columns.
        label: The column of labels or scores.
        metric: The metric in tables, which also selects the best epoch. f1 is that of the second label.
        train, dev, test: Files relative to the folder of the definition, or with `hub` names of splits.
        labels: Label words, in the order of the class indices; None for regression.
        range: Lowest and highest score of a regression; None for classification.
    """

    columns: tuple[str, ...]
    label: str
    metric: Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]
    train: str
    dev: str
    labels: tuple[str, ...] | None = None
    range: tuple[float, ...] | None = None
    test: str | None = None
    hub: HubRows | None = None

    def __post_init__(self):
        problems = Problems()
        problems += check_words(self.columns, self.labels or ())
        apart = self.label and self.label not in self.columns
        problems.check(apart, "label", "the name of a column that is no text column", self.label)
        if (self.labels is None) == (self.range is None):
            both = "neither" if self.labels is None else "both"
            problems.append(f"labels (of a classification) or range (of a regression) must be stated, got {both}")
        if self.labels is not None:
            self._check_metric(problems)
        elif self.range is not None:
            ordered = len(self.range) == 2 and -math.inf < self.range[0] < self.range[1] < math.inf
            problems.check(ordered, "range", "[lowest, highest], finite numbers", self.range)
            problems.check(self.metric in OF_SCORES, "metric", f"{' or '.join(OF_SCORES)} with a range", self.metric)
        for split, place in self.places.items():
            problems.check(bool(place) and "\0" not in place, KEYS[split], "a file or a split", place)
        places = list(self.places.values())
        problems.check(len(set(places)) == len(places), "train, dev, test", "different", places)
        problems.done()

    def _check_metric(self, problems: Problems) -> None:
        labels = self.labels
        problems.check(len(labels) >= 2, "labels", "two or more words", labels)
        problems.check(self.metric in OF_CLASSES, "metric", f"one of {', '.join(OF_CLASSES)} with labels", self.metric)
        if self.metric in OF_TWO_CLASSES:
            problems.check(len(labels) == 2, "metric", "accuracy or macro_f1 for more than two labels", self.metric)

    @property
    def places(self) -> dict[str, str]:
        """Split, as in `Task` -> file, or split on the hub."""
        found = {split: getattr(self, key) for split, key in KEYS.items()}
        return {split: place for split, place in found.items() if place is not None}

    @property
    def digits(self) -> str:
        """The first digits of the hash over everything that the definition states."""
        stated = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if self.range is not None:
            stated |= {"targets": "scaled"}  # earlier versions trained on the scores as they are
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def check_words(columns: tuple[str, ...], labels: tuple[str, ...]) -> list[str]:
    """The problems of a task's text columns and label words, one line each."""
    problems = Problems()
    problems.check(len(columns) in (1, 2), "columns", "a list of one or two text columns", columns)
    problems.check(all(columns) and len(set(columns)) == len(columns), "columns", "distinct names", columns)
    problems.check(not set(columns) & set(TAKEN), "columns", f"called other than {' or '.join(TAKEN)}", columns)
    problems.check(len(set(labels)) == len(labels), "labels", "distinct", labels)
    plain = all(word.strip() and not UNPRINTABLE.search(word) for word in (*columns, *labels))
    problems.check(plain, "columns and labels", "words without tabs, line ends or control characters", columns + labels)
    return list(problems)


def read_definition(path: Path) -> Definition:
    """Read a task's file.

    Raises: UserError: If it is absent, is not YAML (with the line), or breaks rules (with every broken rule).
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the task's file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason})") from error
    except (yaml.YAMLError, RecursionError, TypeError) as error:  # TypeError: a key that is a list
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark is not None else f"{path}"
        raise UserError(f"{line}: not YAML: {getattr(error, 'problem', None) or first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not define a task: it must state columns, label, metric, train and dev")
    return define(content, str(path))


def define(content: dict[Any, Any], where: str) -> Definition:
    """Check a definition. Raises: UserError: With every broken rule, and `where` the definition is from."""
    content = {str(key): value for key, value in content.items()}
    problems = []
    if isinstance(content.get("labels"), list):  # words that YAML reads as booleans or integers
        labels = content["labels"]
        switches = [label for label in labels if isinstance(label, bool)]
        if switches:
            problems.append(
                f"labels: YAML reads an unquoted yes, no, on, off, true or false as {switches[0]}; quote it"
            )
        content["labels"] = [str(label) if isinstance(label, int) else label for label in labels]
    try:
        definition = build(Definition, content)
    except SettingsError as error:
        problems += error.problems
    else:
        if not problems:
            return definition
    raise UserError(f"{where} does not define a task:\n" + "\n".join(f"  {problem}" for problem in problems))


def name_of(path: Path, definition: Definition) -> str:
    """The name of a task in run ids and tables: its file's name and digits of the definition's hash."""
    kept = re.sub(r"[^A-Za-z0-9]+", "_", path.stem).strip("_")[:NAME_LENGTH] or "task"
    return f"{kept}-{definition.digits}"
