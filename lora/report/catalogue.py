"""The tables and figures that are made from runs, experiment by experiment.

To show a new experiment, add a function to `SHOWN`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from lora.errors import UserError
from lora.files import ROOT
from lora.records.record import load_frame
from lora.report.comparisons import change_table, method_pairs, pairs_table
from lora.report.conditions import conditions
from lora.report.figures import Figure, by_parameters, differences, forest, learning_curves, slopes
from lora.report.gather import Gathered
from lora.report.notes import BANNERS, caption, encoder_notes, note
from lora.report.own_tasks import rates_table, tuning_banner
from lora.report.runs import ADHOC, KINDS, MAIN, OWN, OWN_TASK, labelled, summarise
from lora.report.tables import beside_paper, table2, table5, table6
from lora.report.titles import START_TITLES
from lora.table import Table

ROWS = ROOT / "experiments" / "glue_table2" / "rows.csv"
# text columns, which come first
WORDS = ("Model", "Protocol", "Method", "Minus", "Task", "Adapted", "Learning rate", "Chosen")
SUFFIXES = {"whole": "", "embedded": "", "part": "_part", "own": "_own"}
Examples = Mapping[tuple[str, str, str, str], Mapping[str, Any]]
Figures = dict[str, Figure | None]


@dataclass(frozen=True)
class Section:
    """The runs of one experiment whose train rows are of one kind.

    Args:
        kind: One of `KINDS`.
        curves: `load_curves` of all records.
        examples: See `lora.records.analysis.Analyses`.
    """

    gathered: Gathered
    experiment: str
    kind: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    examples: Examples

    @cached_property
    def summary(self) -> pd.DataFrame:
        return summarise(self.runs)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every method compared with every other."""
        return method_pairs(self.runs)

    @cached_property
    def paper(self) -> pd.DataFrame | None:
        """The published cells; None for tasks outside GLUE."""
        path = ROOT / "experiments" / ("glue_table2" if self.experiment in MAIN else self.experiment) / "paper.csv"
        return pd.read_csv(path) if self.kind in ("whole", "part") and path.exists() else None

    @cached_property
    def above(self) -> dict[str, str]:
        """The notice above every table of these runs, and how they were trained."""
        banner = tuning_banner(self.runs) if self.kind == "own" else BANNERS[self.kind]
        return {"banner": banner, "above": conditions(self.runs, self.curves)}

    @property
    def notes(self) -> list[str]:
        """What the numbers of a table of cells are, and notes on its encoders."""
        return [caption(self.summary), *encoder_notes(self.runs["model"], self.kind)]

    def table(
        self, file: str, title: str, cells: pd.DataFrame, notes: Sequence[str], figures: Sequence[str] = ()
    ) -> Table:
        words = next((i for i, column in enumerate(cells.columns) if column not in WORDS), len(cells.columns))
        suffix = SUFFIXES[self.kind]
        names = tuple(f"{key}{suffix}" for key in figures)
        title = f"{title} ({self.gathered.name})"
        return Table(f"{file}{suffix}", title, cells, words, tuple(notes), figures=names, **self.above)


def methods(section: Section) -> tuple[list[Table], Figures]:
    """Table 2, next to the paper's cells, and every method compared with every other."""
    summary, is_own, pairs = section.summary, section.kind == "own", section.pairs
    figures = {
        "parameters": by_parameters(section.runs),
        "curves": learning_curves(section.runs, section.curves),
        "forest": forest(pairs),
    }
    title = f"{'Table 2: m' if section.experiment == 'glue_table2' else 'M'}ethods by tasks"
    made = [section.table("table2", title, table2(summary), section.notes, ("parameters", "curves"))]
    if section.paper is not None and len(beside := beside_paper(summary, section.paper, pd.read_csv(ROWS))):
        keys = ("stands_for", *(["difference"] if "Difference" in beside else []), "averages")
        title = "Table 2, cell by cell next to the paper's"
        made.append(section.table("table2_paper", title, beside, list(map(note, keys))))
    if len(pairs):
        title, command = "Every method against every other, in pairs of one seed", "analyse intervals"
        last = note("pairs_own").replace("COMMAND", section.gathered.command(command)) if is_own else note("verdicts")
        cells = pairs_table(pairs, section.examples)
        made.append(section.table("pairs", title, cells, [note("pairs"), last], ("forest",)))
    if is_own:
        made.append(
            section.table(
                "rates",
                "How each learning rate was chosen",
                rates_table(section.runs, load_frame(list(section.gathered.tuning))),
                [note("rates")],
            )
        )
    return made, figures


def targets(section: Section) -> tuple[list[Table], Figures]:
    """Table 5, and each set minus q, v at the rank of the same number of parameters."""
    title, cells = "Table 5: which projections to adapt, at one number of parameters", section.summary
    qv = ("Wq, Wv", 4)
    pairs, heading = section.pairs, "Table 5: each set minus Wq, Wv (r = 4)"
    figure = differences(heading, cells, pairs, section.paper, lambda *_: qv, 0.0)
    notes = lora_notes(section)
    return [section.table("table5", title, table5(cells, section.paper), notes, ["targets"])], {"targets": figure}


def ranks(section: Section) -> tuple[list[Table], Figures]:
    """Table 6, and each rank minus that of 64."""
    title, cells = "Table 6: how large the rank must be", section.summary
    pairs, heading = section.pairs, "Table 6: each rank minus r = 64"
    figure = differences(heading, cells, pairs, section.paper, lambda targets, _: (targets, 64), -1.0)
    notes = lora_notes(section)
    return [section.table("table6", title, table6(cells, section.paper), notes, ["ranks"])], {"ranks": figure}


def lora_notes(section: Section) -> list[str]:
    ffn = [note("ffn")] if section.runs["slug"].str.match(r"lora-[qkvo]*[if]").any() else []
    return [*section.notes, *ffn, *([note("gpt3")] if section.paper is not None else [])]


def starts(section: Section) -> tuple[list[Table], Figures]:
    cells = change_table(section.runs, "start", START_TITLES)
    figures = {
        "start": slopes(section.runs, section.paper),
        "start_curves": learning_curves(section.runs, section.curves, " by start"),
    }
    title, notes = "What an MNLI start gives (section 5.2)", [*section.notes, note("change")]
    return [section.table("mnli_start", title, cells, notes, [*figures])], figures


def lengths(section: Section) -> tuple[list[Table], Figures]:
    epochs = section.runs["columns"].map(lambda columns: columns["train.epochs"])
    runs = labelled(section.runs, without=("train.epochs",)).assign(epochs=epochs)
    titles = {value: f"{value} epochs" for value in sorted(set(epochs), key=float)}
    notes, figure = [*section.notes, note("change")], learning_curves(section.runs, section.curves, " by length")
    title, cells = "How long to train: one length and twice that", change_table(runs, "epochs", titles)
    return [section.table("length", title, cells, notes, ["length_curves"])], {"length_curves": figure}


def others(section: Section) -> tuple[list[Table], Figures]:
    return [section.table("own", "Other runs in this folder", table2(section.summary), section.notes)], {}


SHOWN: dict[str, Callable[[Section], tuple[list[Table], Figures]]] = {  # in the report's order
    "glue_table2": methods,
    OWN_TASK: methods,
    ADHOC: methods,
    "lora_targets": targets,
    "lora_ranks": ranks,
    "mnli_start": starts,
    "length": lengths,
    OWN: others,
}


def sections_of(gathered: Gathered, curves: pd.DataFrame, examples: Examples) -> Iterator[Section]:
    """The sections in reading order.

    Args:
        curves, examples: See `Section`.
    Raises: UserError: If a table without columns for encoder and protocol would hold several.
    """
    for experiment, every in gathered.runs.groupby("experiment", sort=False):
        for key in () if SHOWN[experiment] in (methods, others) else ("model", "protocol"):
            if len(values := every[key].unique()) > 1:
                raise UserError(
                    f"the table of {experiment} would mix the {key}s {', '.join(values)}: name one "
                    f"({key}={min(values)})"
                )
        for kind, of_kind in sorted(every.groupby("kind"), key=lambda group: KINDS.index(group[0])):
            yield Section(gathered, experiment, kind, of_kind, curves, examples)
