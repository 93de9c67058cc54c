"""The paper's sentences as testable statements: experiments/<name>/claims.yaml, read strictly."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from lora.checks import Problems, SettingsError, build
from lora.config.labels import plain
from lora.config.options import describe_group
from lora.config.run import PROTOCOLS
from lora.config.sections import DataConfig, TrainConfig
from lora.data.tasks import TASKS
from lora.errors import UserError, first_line
from lora.files import ROOT
from lora.methods import METHODS
from lora.report.titles import START_TITLES

TIMES = ("step_ms", "latency_ms")  # measured; the other measures are exact counts
MEASURED = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "lora_merged")
BASES = ("full", "base")  # denominators of the summary's ratios: full fine-tuning, and the untouched encoder
FIRST = ("glue_table2",)  # experiments whose claims come first: the subject of the paper
SELECTORS = ("method", "slug", "task", "start", "protocol")
SECTIONS: dict[str, list[type]] = {
    "method": [method.config for method in METHODS.values()],
    "data": [DataConfig],
    "train": [TrainConfig],
}
SETTINGS = tuple(  # a side may name these too
    dict.fromkeys(f"{name}.{one.name}" for name, kinds in SECTIONS.items() for kind in kinds for one in fields(kind))
)
# the valid slugs, so that a claim can be stated before a profile has its runs
SLUG = re.compile(r"full|bitfit|(houlsby|pfeiffer)-m\d+|adapterdrop-m\d+-d\d+|lora-(?=\w)q?k?v?o?i?f?-r\d+")
SLUGS = "full, bitfit, houlsby-m8, pfeiffer-m16, adapterdrop-m8-d4, lora-qv-r8, of any targets and sizes"
KINDS = ("metric", "measure", "count", "check")
Side = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Bound:
    """The bound of a difference (in points), a ratio or a count: above a value, below it, near it, or exactly it."""

    kind: Literal["above", "below", "within", "exactly"]
    value: float
    of: float = 0.0

    @property
    def text(self) -> str:
        return f"within {self.value:g} of {self.of:g}" if self.kind == "within" else f"{self.kind} {self.value:g}"

    @property
    def edges(self) -> tuple[tuple[float, Literal["less", "greater"]], ...]:
        """The ends of the bound, each with the side on which the bound is broken; none for `exactly`."""
        if self.kind == "exactly":
            return ()
        if self.kind == "within":
            return (self.of - self.value, "less"), (self.of + self.value, "greater")
        return ((self.value, "less" if self.kind == "above" else "greater"),)

    def holds(self, low: float, high: float) -> bool | None:
        """True if all of an interval keeps the bound, False if none of it does, None in between."""
        if self.kind == "exactly":
            return low == high == self.value
        if all(low > edge if side == "less" else high < edge for edge, side in self.edges):
            return True
        broken = any(high <= edge if side == "less" else low >= edge for edge, side in self.edges)
        return False if broken else None


@dataclass(frozen=True)
class Compare:
    """A comparison of two sides with its bound: one of `above`, `below`, and `within` a distance `of` a value.

    Args:
        one, other: For metrics, conditions on cells: selector or setting -> the permitted values, and `experiment` ->
            the experiments that the cells are taken from, by default the claim's own. With several values of `start`,
            each task uses the first one that it has cells of. For measures, a measured method; for counts, a slug.
    """

    one: str | Side
    other: str | Side
    above: float | None = None
    below: float | None = None
    within: float | None = None
    of: float = 0.0

    def __post_init__(self):
        problems = Problems()
        given = [key for key in ("above", "below", "within") if getattr(self, key) is not None]
        problems.check(len(given) == 1, "bound", "one of above, below and within", given)
        problems.done()

    @property
    def bound(self) -> Bound:
        (kind,) = (key for key in ("above", "below", "within") if getattr(self, key) is not None)
        return Bound(kind, getattr(self, kind), self.of)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper. It holds if every comparison does.

    Args:
        experiment: The experiment whose cells it is about: the folder of its file.
        margin: The reason for the bounds.
        stated: The commit in which the claim last changed; empty until it is committed.
        ours: Whether the sentence is this project's, not the paper's.
        metric: For differences of cells, the headline metric of each run's best or last epoch, in points.
        measure: For ratios, a cost in results/efficiency/<device>/summary.json.
        count: For ratios of trainable parameters: GPT-3 175B by closed form, or the encoders of the records.
        check: An exact property that an analysis tested.
        tasks: `average` over the tasks that both sides have, or the tasks to judge one by one.
        paper: The corresponding published cells: rows of the experiment's paper.csv, as texts.
    """

    id: str
    experiment: str
    sentence: str
    source: str
    margin: str
    stated: str = ""
    ours: bool = False
    metric: Literal["best", "last"] | None = None
    measure: (
        Literal["trainable", "checkpoint_bytes", "optimizer_bytes", "saved_activation_bytes", "step_ms", "latency_ms"]
        | None
    ) = None
    count: Literal["gpt3", "encoder"] | None = None
    check: Literal["swap"] | None = None
    tasks: Literal["average"] | tuple[str, ...] = "average"
    compare: tuple[Compare, ...] = ()
    paper: tuple[dict[str, str], ...] = ()

    def __post_init__(self):
        problems = Problems()
        given = [key for key in KINDS if getattr(self, key) is not None]
        problems.check(len(given) == 1, "kind", f"one of {', '.join(KINDS)}", given)
        problems.check(bool(self.compare) != (self.check is not None), "compare", "given unless check is", self.compare)
        problems.check(self.ours or bool(self.paper), "paper", "the published cells, unless ours is true", self.paper)
        sides = [side for compare in self.compare for side in (compare.one, compare.other)]
        known: dict[str, list[str]] = {"method": [*METHODS], "task": [*TASKS], "start": [*START_TITLES]}
        known |= {"protocol": [*PROTOCOLS], "experiment": describe_group("experiment")}
        named = [] if self.tasks == "average" else [{"task": self.tasks}]
        for side in [{"experiment": (self.experiment,)}, *named, *sides] if self.metric else ():
            cells = isinstance(side, dict) and set(side) <= {*SELECTORS, "experiment", *SETTINGS}
            if not cells or (side in sides and not set(side) - {"experiment"}):
                rule = f"cells by {', '.join(SELECTORS)} or a setting such as train.lr, and experiment"
                problems.check(False, "a side", rule, side)
                continue
            for key in known.keys() & side.keys():  # a mistyped name would never be judged
                for value in set(side[key]) - set(known[key]):
                    problems.check(False, key, f"one of {', '.join(known[key])}", value)
            for slug in side.get("slug", ()):
                problems.check(bool(SLUG.fullmatch(slug)), "slug", f"one that a cell can have ({SLUGS})", slug)
        for side in sides if self.count else ():
            forms = SLUG if self.count == "encoder" else re.compile(r"full|lora-[qkvo]+-r\d+")
            fits = isinstance(side, str) and SLUG.fullmatch(side) and forms.fullmatch(side)
            problems.check(bool(fits), "a side", "a slug such as lora-qv-r4 or full", side)
        bases = (*BASES, *MEASURED) if self.measure in TIMES else BASES
        for compare in self.compare if self.measure else ():
            problems.check(compare.one in MEASURED, "one", f"one of {', '.join(MEASURED)}", compare.one)
            problems.check(compare.other in bases, "other", f"one of {', '.join(bases)}", compare.other)
        problems.done()

    @property
    def headline(self) -> str:
        """The sentence, marked if it is ours."""
        return f"{self.sentence} (ours, not the paper's)" if self.ours else self.sentence


def read_claims(folder: Path = ROOT / "experiments") -> list[Claim]:
    """All claims: those of Table 2 first, the others by experiment and position in their file.

    Raises: UserError: With the file and the claim, if one is invalid or names a cell that no run can have.
    """
    paths = sorted(folder.glob("*/claims.yaml"), key=lambda path: (path.parent.name not in FIRST, path))
    claims = [claim for path in paths for claim in read_file(path)]
    ids = [claim.id for claim in claims]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise UserError(f"claims need different ids, found twice: {', '.join(sorted(twice))}")
    return claims


def read_file(path: Path) -> list[Claim]:
    name = f"{path.parent.name}/{path.name}"
    try:
        entries = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{name} is not readable as YAML: {first_line(error)}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{name} must be a list of claims that is not empty")
    claims = []
    for number, entry in enumerate(entries, 1):
        try:
            claim = build(Claim, {"experiment": path.parent.name, **normalised(entry)})
            claims.append(replace(claim, paper=published(claim, path.with_name("paper.csv"))))
        except SettingsError as error:
            problems = "; ".join(error.problems)
            raise UserError(f"{name}, claim {number} ({entry.get('id', '-')}): {problems}") from error
    return claims


def normalised(entry: dict[str, Any]) -> dict[str, Any]:
    """A claim's entry with texts on single lines, and the values of sides and published cells as texts."""

    def side(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {str(k): [plain(one) for one in (v if isinstance(v, list) else [v])] for k, v in value.items()}

    found = {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in entry.items()}
    for key in ("compare", "paper"):
        if isinstance(found.get(key), list):
            found[key] = [dict(one) if isinstance(one, dict) else one for one in found[key]]
    for one in found.get("compare") or ():
        if isinstance(one, dict):
            one |= {key: side(one[key]) for key in ("one", "other") if key in one}
    for row in found.get("paper") or ():
        if isinstance(row, dict):
            row |= {key: str(value) for key, value in row.items()}
    return found


def published(claim: Claim, path: Path) -> tuple[dict[str, str], ...]:
    """The rows of the experiment's paper.csv that a claim names. Raises: SettingsError: If a name is not of one row."""
    if not claim.paper:
        return ()
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SettingsError([f"paper.csv beside it is not readable: {first_line(error)}"]) from error
    rows: list[dict[str, str]] = []
    for cell in claim.paper:
        found = [row for row in table.to_dict("records") if cell.items() <= row.items()]
        if len(found) != 1:
            raise SettingsError([f"paper: {cell} must be one row of paper.csv beside it, found {len(found)}"])
        rows += found
    return tuple(rows)
