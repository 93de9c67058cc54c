"""The paper's sentences as testable statements: experiments/<name>/claims.yaml, read strictly."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import yaml

from lora.checks import SettingsError, build
from lora.errors import UserError
from lora.report.experiments import FOLDERS
from lora.report.labels import setting_text

FIRST = "glue_table2"  # the experiment whose claims come first: the subject of the paper
Side = dict[str, tuple[str, ...]]
MeasuredCost = Literal[
    "trainable", "checkpoint_bytes", "optimizer_bytes", "saved_activation_bytes", "step_ms", "latency_ms"
]


class Bound(NamedTuple):
    """An open interval that a difference (in points), a ratio or a count must lie in."""

    low: float
    high: float
    text: str

    @property
    def edges(self) -> list[tuple[float, Literal["less", "greater"]]]:
        """The finite ends, each with the side on which the bound is broken."""
        ends: tuple[tuple[float, Literal["less", "greater"]], ...] = ((self.low, "less"), (self.high, "greater"))
        return [(edge, side) for edge, side in ends if math.isfinite(edge)]

    def holds(self, low: float, high: float) -> bool | None:
        """True if all of an interval is within the bound, False if none of it is, None in between."""
        if self.low < low and high < self.high:
            return True
        return False if high <= self.low or low >= self.high else None


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

    @property
    def bound(self) -> Bound:
        if self.above is not None:
            return Bound(self.above, math.inf, f"above {self.above:g}")
        if self.below is not None:
            return Bound(-math.inf, self.below, f"below {self.below:g}")
        return Bound(self.of - self.within, self.of + self.within, f"within {self.within:g} of {self.of:g}")


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper. It holds if every comparison does.

    Args:
        experiment: The experiment whose cells it is about: the folder of its file.
        margin: The reason for the bounds.
        stated, stated_at: The commit in which the claim last changed, and its time; empty until it is committed.
        ours: Whether the sentence is this project's, not the paper's.
        metric: For differences of cells, in points: the headline metric of each run's best epoch, or `unselected`, its
            score without the gain from choosing an epoch (`lora.report.claims.findings.compare_sides`).
        measure: For ratios, a cost in results/efficiency/<device>/summary.json.
        count: For ratios of trainable parameters: GPT-3 175B by closed form, or the encoders of the records. `rate`:
            of the best of the learning rates that were tried.
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
    stated_at: str = ""
    ours: bool = False
    metric: Literal["best", "unselected"] | None = None
    measure: MeasuredCost | None = None
    count: Literal["gpt3", "encoder", "rate"] | None = None
    check: Literal["swap"] | None = None
    tasks: Literal["average"] | tuple[str, ...] = "average"
    compare: tuple[Compare, ...] = ()
    paper: tuple[dict[str, str], ...] = ()

    @property
    def headline(self) -> str:
        """The sentence, marked if it is ours."""
        return f"{self.sentence} (ours, not the paper's)" if self.ours else self.sentence


def read_claims(folder: Path = FOLDERS) -> list[Claim]:
    """All claims: those of Table 2 first, the others by experiment and position in their file.

    Raises: UserError: With the file and the claim, if one is invalid.
    """
    paths = sorted(folder.glob("*/claims.yaml"), key=lambda path: (path.parent.name != FIRST, path))
    return [claim for path in paths for claim in read_file(path)]


def read_file(path: Path) -> list[Claim]:
    name = f"{path.parent.name}/{path.name}"
    claims = []
    cells = pd.read_csv(path.with_name("paper.csv"), dtype=str, keep_default_na=False).to_dict("records")
    for entry in yaml.safe_load(path.read_bytes()):
        try:
            compare = [{key: texts(value) for key, value in one.items()} for one in entry.get("compare", ())]
            claim = build(Claim, {"experiment": path.parent.name, **entry, "compare": compare})
            claims.append(replace(claim, paper=tuple(published_cell(named, cells) for named in claim.paper)))
        except SettingsError as error:
            raise UserError(f"{name}, claim {entry.get('id', '-')}: {'; '.join(error.problems)}") from error
    return claims


def texts(value: Any) -> Any:
    """A side of cells with a list of texts per selector; any other value as it is."""
    if not isinstance(value, dict):
        return value
    return {key: [setting_text(one) for one in (v if isinstance(v, list) else [v])] for key, v in value.items()}


def published_cell(named: dict[str, str], cells: list[dict[str, str]]) -> dict[str, str]:
    """The published cell that a claim names. Raises: SettingsError: If it is not one row."""
    fits = [row for row in cells if named.items() <= row.items()]
    if len(fits) != 1:
        raise SettingsError([f"paper: {named} must be one row of paper.csv beside it, found {len(fits)}"])
    return fits[0]
