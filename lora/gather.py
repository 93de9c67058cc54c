"""What a profile's records amount to: the runs that its experiments expect, as one frame. From here on, no settings."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import yaml

from lora.claims.statements import SELECTORS
from lora.compose import CONF, describe_group
from lora.dev_predictions import with_collapsed
from lora.errors import UserError
from lora.learning_rate import LEARNING_RATE
from lora.provenance import ROOT
from lora.results import load_frame, load_records
from lora.summary import LORA_SLUG, METHOD_TITLES, TARGET_TITLES, Planned
from lora.sweep import Cell, State, requested, state_of
from lora.tasks import TASKS

EXPERIMENTS = (
    "glue_table2",
    "adhoc",
    "lora_targets",
    "lora_ranks",
    "mnli_start",
    LEARNING_RATE,
)  # in the report's order


@dataclass(frozen=True)
class Gathered:
    """The records of a profile that an experiment expects.

    Args:
        name: The folder below results/: a profile, or `reference/<profile>`.
        overrides: With which its cells are expected.
        planned: Experiment -> the runs that it expects, in the tables' order; only experiments that are shown.
        tried: The runs that the learning rates were chosen by, which no table of results has.
        frame: `load_frame` of those that are there and `ok`, with the column `collapsed` (`lora.dev_predictions`).
        state: What is missing, failed, extra or broken; the records themselves are in `state.ok`.
    """

    name: str
    overrides: tuple[str, ...]
    planned: dict[str, list[Planned]]
    tried: list[Planned]
    frame: pd.DataFrame
    state: State

    @property
    def profile(self) -> str:
        return Path(self.name).name

    @property
    def every(self) -> list[Planned]:
        """Each expected run once, in the tables' order."""
        return in_table_order({p.run_id: p for planned in self.planned.values() for p in planned}.values())


def gather(name: str, overrides: Sequence[str] = (), results: Path = ROOT / "results") -> Gathered:
    """Read a profile's records.

    Args:
        overrides: Those that the sweep was launched with, so that the same cells are expected.
    Raises: UserError: If the profile does not exist, or its records are of different rows.
    """
    records, problems = load_records(results / name)
    if name != Path(name).name:  # the precision may follow the machine that made them
        precisions = {record.config["train"]["precision"] for record in records}
        overrides = [*overrides, *(f"train.precision={precision}" for precision in sorted(precisions))]
    sections = experiments_shown(Path(name).name, overrides, {record.run_id for record in records})
    cells = list({cell.run_id: cell for found in sections.values() for cell in found}.values())
    now = state_of(cells, records, problems)
    frame, broken = with_collapsed(load_frame(list(now.ok.values())), now.ok.values(), results / name)
    now = replace(now, problems=(*now.problems, *broken))
    refuse_mixed_rows(frame)
    planned = {
        experiment: in_table_order(map(as_planned, without_parents(experiment, found)))
        for experiment, found in sections.items()
    }
    tried = planned.pop(LEARNING_RATE, [])
    return Gathered(name, tuple(overrides), planned, tried, frame, now)


def experiments_shown(profile: str, overrides: Sequence[str], present: set[str]) -> dict[str, list[Cell]]:
    """Experiment -> its cells: what was asked for, then what else was run.

    An experiment that nobody asked for is shown if a record is there that only it expects.
    """
    asked = requested(profile, overrides)
    shown = {name: [c for c in asked if name in c.experiments] for name in EXPERIMENTS}
    known = {cell.run_id for cell in asked}
    if not any(override.startswith("experiment=") for override in overrides) and not shown["adhoc"]:
        for name in described(profile):
            if not shown[name]:
                cells = requested(profile, [*overrides, f"experiment={name}"])
                shown[name] = cells if (present - known) & {cell.run_id for cell in cells} else []
    return {name: cells for name, cells in shown.items() if cells}


def every_cell(gathered: Gathered) -> Iterable[Cell]:
    """The cells of the experiments at hand, with what composes them."""
    if "adhoc" in gathered.planned or any(o.startswith("experiment=") for o in gathered.overrides):
        return requested(gathered.profile, gathered.overrides)
    names = ",".join(gathered.planned)
    return requested(gathered.profile, [*gathered.overrides, f"experiment={names}"])


def without_parents(experiment: str, cells: Sequence[Cell]) -> list[Cell]:
    """What the experiment's table shows: in `mnli_start`, not the MNLI runs that others start from."""
    parents = {cell.parent for cell in cells} if experiment == "mnli_start" else set()
    return [cell for cell in cells if cell.run_id not in parents]


def described(profile: str) -> list[str]:
    """The experiments that have a grid of this profile's size."""
    return [name for name in EXPERIMENTS if name != "adhoc" and profile in profiles_of(name)]


@functools.cache
def profiles_of(experiment: str) -> tuple[str, ...]:
    return tuple(yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_bytes())["grid"])


def known_cells() -> dict[str, dict[str, set[str]]]:
    """Experiment -> what its cells are called, over all profiles: the values of method, slug, task, start, protocol."""
    known: dict[str, dict[str, set[str]]] = {}
    for profile in describe_group("profile"):
        for experiment in described(profile):
            values = known.setdefault(experiment, {key: set() for key in SELECTORS})
            for cell in requested(profile, [f"experiment={experiment}", "seed=1"]):  # no name depends on the seed
                for key in SELECTORS:
                    values[key].add(getattr(cell, key))
    return known


def refuse_mixed_rows(frame: pd.DataFrame) -> None:
    """A column of a table is one data set."""
    for task, runs in frame.groupby("task") if len(frame) else ():
        if runs["fingerprint"].nunique() > 1:
            by_rows = runs.drop_duplicates("fingerprint")["run_id"]
            raise UserError(
                f"records of {task} were made from different rows, so they share no table: {', '.join(by_rows)}"
            )


def as_planned(cell: Cell) -> Planned:
    return Planned(cell.run_id, cell.model, cell.protocol, cell.start, cell.slug, cell.method, cell.task, cell.seed)


def in_table_order(planned: Iterable[Planned]) -> list[Planned]:
    """Methods and tasks as the tables list them, whatever order the cells run in."""
    methods, tasks = list(METHOD_TITLES), list(TASKS)

    def place(p: Planned) -> tuple:
        lora = LORA_SLUG.fullmatch(p.slug)
        size = (len(lora[1]), [*TARGET_TITLES].index(lora[1][0]), lora[1], int(lora[2])) if lora else ()
        return p.model, methods.index(p.method), p.protocol, size, p.slug, tasks.index(p.task), p.seed

    return sorted(planned, key=place)
