"""The tables and figures of a report, with their titles and notes.

To show a new experiment, add an entry to `SHOWN`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_frame
from lora.report.cells import KINDS, in_order, kinds_of, summarise
from lora.report.compared import length_table
from lora.report.comparisons import beside_paper, best_against_last, method_pairs, pairs_table, published
from lora.report.conditions import conditions
from lora.report.figures import Figure, by_parameters, by_rank, by_targets, forest, gaps_to_full, learning_curves
from lora.report.learning_rate import LEARNING_RATE
from lora.report.notes import BANNERS, caption, encoder_notes, ffn_notes, note
from lora.report.own_tasks import answers, rates_table, tuning_banner
from lora.report.runs import ADHOC, MAIN, OWN, OWN_TASK, Planned, labelled
from lora.report.tables import start_table, table2, table5, table6
from lora.table import Table

ROWS = ROOT / "experiments" / "glue_table2" / "rows.csv"
WORDS = (
    "Model",
    "Protocol",
    "Method",
    "Minus",
    "Task",
    "Adapted",
    "Learning rate",
    "Chosen",
)  # text columns, which come first
SUFFIXES = {"whole": "", "embedded": "", "part": "_part", "own": "_own"}
Examples = Mapping[tuple[str, str, str, str], Mapping[str, Any]]


def paper_file(experiment: str) -> Path:
    """The file of the published cells that an experiment is compared with."""
    return ROOT / "experiments" / experiment / "paper.csv"


@dataclass(frozen=True)
class Runs:
    """The runs of one experiment whose train rows are of one kind: the input of a table and its figures.

    Args:
        name: The profile's folder, for the titles.
        kind: One of `KINDS`.
        planned: The expected runs.
        frame, curves: `load_frame` and `load_curves` of all records.
        examples: See `lora.records.analysis.Analyses`.
        tuning: `load_frame` of the runs of `python -m lora tune`.
        command: The command that adds the intervals over dev examples.
    """

    name: str
    kind: str
    planned: Sequence[Planned]
    frame: pd.DataFrame
    curves: pd.DataFrame
    examples: Examples
    tuning: pd.DataFrame
    command: str

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

    def paper(self, experiment: str) -> pd.DataFrame | None:
        """The published cells; None for tasks outside GLUE."""
        return None if self.kind in ("embedded", "own") else pd.read_csv(paper_file(experiment))

    @cached_property
    def rates(self) -> pd.DataFrame:
        """How the learning rates of user-defined tasks were chosen."""
        return rates_table(self.planned, self.frame, self.tuning)

    @property
    def banner(self) -> str:
        """The notice above every table of these runs."""
        return tuning_banner(self.rates) if self.kind == "own" else BANNERS[self.kind]

    @cached_property
    def conditions(self) -> str:
        """How these runs were trained, above every table of them."""
        return conditions(self.frame, self.curves, self.planned)

    def table(
        self, file: str, title: str, cells: pd.DataFrame, notes: Sequence[str], figures: Sequence[str] = (), **more: Any
    ) -> Table:
        """A table of these runs, under the banner of their kind and their conditions unless `more` overrides them."""
        words = next((i for i, column in enumerate(cells.columns) if column not in WORDS), len(cells.columns))
        suffix, more = SUFFIXES[self.kind], {"banner": self.banner, "above": self.conditions} | more
        figures = tuple(f"{key}{suffix}" for key in figures)
        return Table(f"{file}{suffix}", f"{title} ({self.name})", cells, words, tuple(notes), figures=figures, **more)


@dataclass(frozen=True)
class Shown:
    """How an experiment is shown.

    Args:
        file, title: File name and title of its table.
        cells: Makes the texts of its table.
        notes: Makes its table's notes beyond those of every table.
        numbers: Makes the note that defines its numbers.
        more: Makes the tables that accompany it.
        figures: Name -> function that makes the plotted data, or None if there is nothing to plot.
        mixes: Whether its table has columns for encoder and protocol, and can hold several of each.
    """

    file: str
    title: str
    cells: Callable[[Runs], pd.DataFrame]
    notes: Callable[[Runs], list[str]] = lambda runs: []
    numbers: Callable[[Runs], str] = lambda runs: caption(runs.summary)
    more: Callable[[Runs], list[Table]] = lambda runs: []
    figures: Mapping[str, Callable[[Runs], Figure | None]] = field(default_factory=dict)
    mixes: bool = False


def method_tables(runs: Runs) -> list[Table]:
    """The tables that accompany Table 2: the paper's cells, and every method compared with every other."""
    made, paper = [], runs.paper("glue_table2")
    if paper is not None:
        beside = beside_paper(runs.summary, paper, pd.read_csv(ROWS))
        if len(beside):
            keys = ("stands_for", *(["difference"] if "Difference" in beside else []), "averages")
            title = "Table 2, cell by cell next to the paper's"
            made.append(runs.table("table2_paper", title, beside, list(map(note, keys))))
        whole, title = published(paper, in_order(runs.summary)), "The paper's Table 2, for these tasks"
        made.append(runs.table("table2_published", title, whole, (note("published"),), banner="", above=""))
    if len(runs.pairs):
        cells = pairs_table(runs.pairs, runs.examples)
        title = "Every method against every other, in pairs of one seed"
        own = note("pairs_own").replace("COMMAND", runs.command) if runs.kind == "own" else note("verdicts")
        notes = [note("pairs"), own]
        notes += [note("across")] if runs.pairs["across"].any() else []
        made.append(runs.table("pairs", title, cells, notes, figures=("forest",)))
    if runs.kind == "own" and len(runs.rates):
        cells = runs.rates.drop(
            columns=["tried", "is_stated", *(["Model"] if runs.rates["Model"].nunique() == 1 else [])]
        )
        made.append(runs.table("rates", "How each learning rate was chosen", cells, [note("rates")], above=""))
    return made


def lora_notes(experiment: str) -> Callable[[Runs], list[str]]:
    """The function that makes the notes of Table 5 or 6."""
    return lambda runs: [
        *ffn_notes(runs.summary, experiment),
        *([note("gpt3")] if runs.paper(experiment) is not None else []),
    ]


METHODS = {
    "cells": lambda runs: table2(runs.summary),
    "more": method_tables,
    "figures": {
        "parameters": lambda runs: by_parameters(runs.summary),
        "curves": lambda runs: learning_curves(runs.curves, runs.planned),
        "gaps": lambda runs: gaps_to_full(runs.curves, runs.planned),
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
        cells=lambda runs: table5(runs.summary, runs.paper("lora_targets")),
        notes=lora_notes("lora_targets"),
        figures={"targets": lambda runs: by_targets(runs.summary)},
    ),
    "lora_ranks": Shown(
        "table6",
        "Table 6: how large the rank must be",
        cells=lambda runs: table6(runs.over_ranks, runs.paper("lora_ranks")),
        notes=lora_notes("lora_ranks"),
        figures={"ranks": lambda runs: by_rank(runs.over_ranks)},
    ),
    "mnli_start": Shown(
        "mnli_start",
        "What an MNLI start gives (section 5.2)",
        cells=lambda runs: start_table(runs.frame, runs.summary, runs.planned),
        figures={
            "start_curves": lambda runs: learning_curves(runs.curves, runs.planned, " by start"),
            "start_gaps": lambda runs: gaps_to_full(runs.curves, runs.planned),
        },
    ),
    "length": Shown(
        "length",
        "How long to train: one length and twice that",
        cells=lambda runs: length_table(runs.frame, runs.planned),
        numbers=lambda runs: note("length"),
        figures={"length_curves": lambda runs: learning_curves(runs.curves, runs.planned, " by length")},
    ),
    OWN: Shown("own", "Other runs in this folder", cells=lambda runs: table2(runs.summary), mixes=True),
}
FILES = {name: shown.file for name, shown in SHOWN.items()} | {LEARNING_RATE: LEARNING_RATE}


@dataclass(frozen=True)
class Sections:
    """The tables and figures that are made from runs, in reading order.

    Args:
        figures: Name -> the plotted data.
        summaries: (experiment, kind) -> one row per cell.
        answers: Which method is better on the user-defined tasks, a line per pair.
    """

    tables: list[Table]
    figures: dict[str, Figure]
    summaries: dict[tuple[str, str], pd.DataFrame]
    answers: list[str]

    def cells(self) -> pd.DataFrame:
        """Every cell with its numbers, unrounded: one row per experiment and cell."""
        shown = [summary.assign(experiment=experiment) for (experiment, _), summary in self.summaries.items()]
        return pd.concat(shown) if shown else pd.DataFrame()


def build_sections(
    name: str,
    planned: Mapping[str, Sequence[Planned]],
    frame: pd.DataFrame,
    curves: pd.DataFrame,
    examples: Examples,
    tuning: pd.DataFrame | None = None,
    command: str = "",
) -> Sections:
    """Build every table and figure that is made from runs. The tasks of one table have rows of one kind.

    Args:
        name: The profile's folder, for the titles.
        examples, tuning, command: See `Runs`.
    """
    kinds, made = kinds_of(TASKS, frame), Sections([], {}, {}, [])
    tuned = load_frame([]) if tuning is None else tuning
    for experiment, every in planned.items():
        shown = SHOWN[experiment]
        if not shown.mixes:
            refuse_mixed(experiment, every)
        for kind in KINDS:
            if of_kind := [p for p in every if kinds[p.task] == kind]:
                runs = Runs(name, kind, of_kind, frame, curves, examples, tuned, command)
                made.summaries[experiment, kind] = runs.summary
                made.answers.extend(answers(runs.pairs) if kind == "own" and experiment in MAIN else [])
                figures = {f"{key}{SUFFIXES[kind]}": make(runs) for key, make in shown.figures.items()}
                made.figures.update({key: figure for key, figure in figures.items() if figure is not None})
                made.tables.extend(tables_of(shown, runs))
    return made


def tables_of(shown: Shown, runs: Runs) -> list[Table]:
    """The experiment's table, those that accompany it, and the comparison of best and last epoch."""
    notes = [shown.numbers(runs), *encoder_notes(runs.summary["model"], runs.kind), *shown.notes(runs)]
    own = tuple(key for key in shown.figures if key != "forest")
    main = runs.table(shown.file, shown.title, shown.cells(runs), notes, figures=own)
    made = [main, *shown.more(runs)]
    cells = best_against_last(runs.frame, runs.curves, runs.planned)
    if len(cells):
        title = f"{shown.title.partition(':')[0]}: best epoch against last, and the gain of the last third"
        made.append(runs.table(f"{shown.file}_best_last", title, cells, [note("best_last")], folded=True))
    return made


def refuse_mixed(experiment: str, planned: Sequence[Planned]) -> None:
    """Check that a table without columns for encoder and protocol holds one of each.

    Raises: UserError: If it holds several.
    """
    for key in ("model", "protocol"):
        values = dict.fromkeys(getattr(p, key) for p in planned)
        if len(values) > 1:
            raise UserError(
                f"the table of {experiment} would mix the {key}s {', '.join(values)}: name one ({key}={min(values)})"
            )
