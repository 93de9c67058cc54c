"""The tables and figures of a report, with their titles and notes.

To show a new experiment, add an entry to `SHOWN`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_frame
from lora.report.cells import KINDS, kinds_of, summarise
from lora.report.compared import length_table
from lora.report.comparisons import beside_paper, method_pairs, pairs_table
from lora.report.conditions import conditions
from lora.report.figures import Figure, by_parameters, differences, forest, learning_curves
from lora.report.gather import Gathered
from lora.report.notes import BANNERS, caption, encoder_notes, ffn_notes, note
from lora.report.own_tasks import answers, rates_table, tuning_banner
from lora.report.runs import ADHOC, MAIN, OWN, OWN_TASK, Planned, labelled
from lora.report.tables import start_table, table2, table5, table6
from lora.table import Table

ROWS = ROOT / "experiments" / "glue_table2" / "rows.csv"
# text columns, which come first
WORDS = ("Model", "Protocol", "Method", "Minus", "Task", "Adapted", "Learning rate", "Chosen")
QV = ("Wq, Wv", 4)  # the set that Table 5 compares the others with
SUFFIXES = {"whole": "", "embedded": "", "part": "_part", "own": "_own"}
Examples = Mapping[tuple[str, str, str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Runs:
    """The runs of one experiment whose train rows are of one kind: the input of a table and its figures.

    Args:
        kind: One of `KINDS`.
        planned: The expected runs.
        curves: `load_curves` of all records.
        examples: See `lora.records.analysis.Analyses`.
    """

    gathered: Gathered
    experiment: str
    kind: str
    planned: Sequence[Planned]
    curves: pd.DataFrame
    examples: Examples

    @property
    def frame(self) -> pd.DataFrame:
        return self.gathered.frame

    @cached_property
    def summary(self) -> pd.DataFrame:
        return summarise(self.frame, self.planned)

    @cached_property
    def over_ranks(self) -> pd.DataFrame:
        """The same for a table with a column per rank."""
        return summarise(self.frame, labelled(self.planned, rank=False))

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every method compared with every other."""
        return method_pairs(self.frame, self.planned)

    @cached_property
    def paper(self) -> pd.DataFrame | None:
        """The published cells; None for tasks outside GLUE."""
        path = ROOT / "experiments" / ("glue_table2" if self.experiment in MAIN else self.experiment) / "paper.csv"
        return pd.read_csv(path) if self.kind in ("whole", "part") and path.exists() else None

    @cached_property
    def rates(self) -> pd.DataFrame:
        """How the learning rates of user-defined tasks were chosen."""
        return rates_table(self.planned, self.frame, load_frame(list(self.gathered.tuning)))

    @cached_property
    def above(self) -> dict[str, str]:
        """The notice above every table of these runs, and how they were trained."""
        banner = tuning_banner(self.rates) if self.kind == "own" else BANNERS[self.kind]
        return {"banner": banner, "above": conditions(self.frame, self.curves, self.planned)}

    def table(
        self, file: str, title: str, cells: pd.DataFrame, notes: Sequence[str], figures: Sequence[str] = (), **more: Any
    ) -> Table:
        """A table of these runs."""
        words = next((i for i, column in enumerate(cells.columns) if column not in WORDS), len(cells.columns))
        suffix = SUFFIXES[self.kind]
        names = tuple(f"{key}{suffix}" for key in figures)
        title = f"{title} ({self.gathered.name})"
        return Table(f"{file}{suffix}", title, cells, words, tuple(notes), figures=names, **self.above | more)


class Shown(NamedTuple):
    """How an experiment is shown.

    Args:
        file, title: File name and title of its table.
        cells: Makes the texts of its table.
        notes: Makes its table's notes; the first defines its numbers.
        more: Makes the tables that accompany it.
        figures: Name -> function that makes the plotted data, or None if there is nothing to plot.
        mixes: Whether its table has columns for encoder and protocol, and can hold several of each.
    """

    file: str
    title: str
    cells: Callable[[Runs], pd.DataFrame]
    figures: Mapping[str, Callable[[Runs], Figure | None]] = {}
    notes: Callable[[Runs], list[str]] = lambda runs: [caption(runs.summary)]
    more: Callable[[Runs], list[Table]] = lambda runs: []
    mixes: bool = False


def method_tables(runs: Runs) -> list[Table]:
    """The tables that accompany Table 2: the paper's cells, and every method compared with every other."""
    made = []
    if runs.paper is not None:
        beside = beside_paper(runs.summary, runs.paper, pd.read_csv(ROWS))
        if len(beside):
            keys = ("stands_for", *(["difference"] if "Difference" in beside else []), "averages")
            title = "Table 2, cell by cell next to the paper's"
            made.append(runs.table("table2_paper", title, beside, list(map(note, keys))))
    if len(runs.pairs):
        title = "Every method against every other, in pairs of one seed"
        command = runs.gathered.command("analyse intervals")
        notes = [
            note("pairs"),
            note("pairs_own").replace("COMMAND", command) if runs.kind == "own" else note("verdicts"),
        ]
        made.append(runs.table("pairs", title, pairs_table(runs.pairs, runs.examples), notes, figures=("forest",)))
    if runs.kind == "own" and len(runs.rates):
        one_model = ["Model"] if runs.rates["Model"].nunique() == 1 else []
        cells = runs.rates.drop(columns=["tried", "is_stated", *one_model])
        made.append(runs.table("rates", "How each learning rate was chosen", cells, [note("rates")], above=""))
    return made


def lora_notes(runs: Runs) -> list[str]:
    """The notes of Tables 5 and 6."""
    more = ffn_notes(runs.summary), [note("gpt3")] if runs.paper is not None else []
    return [caption(runs.summary), *(text for notes in more for text in notes)]


METHODS: dict[str, Any] = {
    "cells": lambda runs: table2(runs.summary),
    "more": method_tables,
    "figures": {
        "parameters": lambda runs: by_parameters(runs.summary),
        "curves": lambda runs: learning_curves(runs.curves, runs.planned),
        "forest": lambda runs: forest(runs.pairs),
    },
    "mixes": True,
}
SHOWN = {  # in the report's order
    "glue_table2": Shown("table2", "Table 2: methods by tasks", **METHODS),
    OWN_TASK: Shown("table2", "Methods by tasks", **METHODS),
    ADHOC: Shown("table2", "Methods by tasks", **METHODS),
    "lora_targets": Shown(
        "table5",
        "Table 5: which projections to adapt, at one number of parameters",
        lambda runs: table5(runs.summary, runs.paper),
        {
            "targets": lambda runs: differences(
                "Table 5: each set minus Wq, Wv (r = 4)", runs.summary, runs.pairs, runs.paper, lambda *_: QV, 0.0
            )
        },
        lora_notes,
    ),
    "lora_ranks": Shown(
        "table6",
        "Table 6: how large the rank must be",
        lambda runs: table6(runs.over_ranks, runs.paper),
        {
            "ranks": lambda runs: differences(
                "Table 6: each rank minus r = 64",
                runs.summary,
                runs.pairs,
                runs.paper,
                lambda set_, _: (set_, 64),
                -1.0,
            )
        },
        lora_notes,
    ),
    "mnli_start": Shown(
        "mnli_start",
        "What an MNLI start gives (section 5.2)",
        lambda runs: start_table(runs.frame, runs.summary, runs.planned),
        {"start_curves": lambda runs: learning_curves(runs.curves, runs.planned, " by start")},
    ),
    "length": Shown(
        "length",
        "How long to train: one length and twice that",
        lambda runs: length_table(runs.frame, runs.planned),
        {"length_curves": lambda runs: learning_curves(runs.curves, runs.planned, " by length")},
        lambda runs: [note("length")],
    ),
    OWN: Shown("own", "Other runs in this folder", lambda runs: table2(runs.summary), mixes=True),
}


class Sections(NamedTuple):
    """What is made from runs, in reading order.

    Args:
        figures: Name -> the plotted data.
        cells: Every cell with its numbers, unrounded: one row per experiment and cell.
        answers: Which method is better on the user-defined tasks, a line per pair.
    """

    tables: list[Table]
    figures: dict[str, Figure]
    cells: pd.DataFrame
    answers: list[str]


def build_sections(gathered: Gathered, curves: pd.DataFrame, examples: Examples) -> Sections:
    """Build every table and figure that is made from runs. The tasks of one table have rows of one kind.

    Args:
        curves, examples: See `Runs`.
    Raises: UserError: If a table without columns for encoder and protocol would hold several.
    """
    kinds, cells = kinds_of(TASKS, gathered.frame), [pd.DataFrame()]
    made = Sections([], {}, pd.DataFrame(), [])
    for experiment, every in gathered.planned.items():
        shown = SHOWN[experiment]
        for key in () if shown.mixes else ("model", "protocol"):
            values = dict.fromkeys(getattr(p, key) for p in every)
            if len(values) > 1:
                found = ", ".join(values)
                raise UserError(
                    f"the table of {experiment} would mix the {key}s {found}: name one ({key}={min(values)})"
                )
        for kind in KINDS:
            if of_kind := [p for p in every if kinds[p.task] == kind]:
                runs = Runs(gathered, experiment, kind, of_kind, curves, examples)
                cells.append(runs.summary.assign(experiment=experiment))
                made.answers.extend(answers(runs.pairs) if kind == "own" and experiment in MAIN else [])
                figures = {f"{key}{SUFFIXES[kind]}": make(runs) for key, make in shown.figures.items()}
                made.figures.update({key: figure for key, figure in figures.items() if figure is not None})
                made.tables.extend(tables_of(shown, runs))
    return made._replace(cells=pd.concat(cells))


def tables_of(shown: Shown, runs: Runs) -> list[Table]:
    """The experiment's table, and those that accompany it."""
    defining, *others = shown.notes(runs)
    notes = [defining, *encoder_notes(runs.summary["model"], runs.kind), *others]
    own = [key for key in shown.figures if key != "forest"]
    return [runs.table(shown.file, shown.title, shown.cells(runs), notes, own), *shown.more(runs)]
