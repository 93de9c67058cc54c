"""The tables and figures that are made from runs, experiment by experiment (`lora.report.experiments`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from lora.config.run import EPOCHS
from lora.data.facts import facts_text
from lora.data.metrics import METRICS
from lora.errors import UserError
from lora.records.analysis import ERRORS, Analyses
from lora.report import own
from lora.report.comparisons import change_table, method_pairs, minus, pairs_table, successors_table
from lora.report.experiments import ADHOC, EXPERIMENTS, FOLDERS, LAYERS, MAIN, OWN, OWN_TASK, ROWS, Experiment
from lora.report.figures import Figure, by_parameters, forest, learning_curves, minus_base, minus_lora, slopes
from lora.report.gather import Gathered
from lora.report.labels import setting
from lora.report.notes import BANNERS, NOTES, caption, conditions, encoder_notes, note
from lora.report.placements import head_rule, head_table, layers_figure, layers_table
from lora.report.rates import origins_of, rates_table, tuned_rate
from lora.report.runs import KINDS, START_TITLES, method_label, summarise, targets_and_ranks, task_units, with_labels
from lora.report.tables import table2, table5, table6, with_paper
from lora.report.train_rows import sizes_figure, sizes_table, with_sizes
from lora.table import Table

PAPER_ROWS = FOLDERS / "glue_table2" / "rows.csv"
# text columns, which come first
WORDS = ("Model", "Protocol", "Method", "Minus", "Task", "Adapted", "Learning rate", "Chosen", "Head's rate", "Class")
TEST_TITLE = "Test rows, not used to choose"
ENDINGS = {"whole": "", "embedded": "", "part": "_part", "own": "_own"}


@dataclass(frozen=True)
class Section:
    """The runs of one experiment whose train rows are of one of `KINDS`, with the curves of all records."""

    gathered: Gathered
    experiment: Experiment
    kind: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    analyses: Analyses

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
        path = FOLDERS / ("glue_table2" if self.experiment.name in MAIN else self.experiment.name) / "paper.csv"
        return pd.read_csv(path) if self.kind in ("whole", "part") and path.exists() else None

    @cached_property
    def above(self) -> str:
        return conditions(self.runs, self.curves)

    @cached_property
    def origins(self) -> dict[str, str]:
        """run_id -> how its learning rate was chosen."""
        return origins_of(self.runs, self.gathered.rates)

    @property
    def own_rows(self) -> dict[str, Mapping[str, Any]]:
        """Task -> what its rows say, of those that were analysed."""
        return {task: entry for task, entry in self.analyses.own_rows.items() if task in set(self.runs["task"])}

    @property
    def notes(self) -> list[str]:
        """What the numbers of a table of cells are, notes on its encoders, and what the rows of own tasks are like."""
        about = [
            f"{name}, {entry['rows'][1]:,} dev rows{entry['on']}: {'; '.join(lines)}."
            for name, entry in self.own_rows.items()
            if (lines := facts_text(entry))
        ]
        chosen = [note("rows_chosen")] if setting(self.runs, "train.selection").eq("train_rows").any() else []
        return [caption(self.summary), *chosen, *encoder_notes(self.runs["model"], self.kind), *about]

    def table(
        self, cells: pd.DataFrame, notes: Sequence[str], file: str = "", title: str = "", **figures: Figure | None
    ) -> Table:
        """A table; the experiment's own by default."""
        words = next((i for i, column in enumerate(cells.columns) if column not in WORDS), len(cells.columns))
        ending, banner = ENDINGS[self.kind], BANNERS[self.kind]
        if self.kind == "own" and self.experiment.name != OWN and {*self.origins.values()} == {"untuned"}:
            banner = NOTES["untuned"]
        file = file or self.experiment.tables[0]
        title = f"{title or self.experiment.title} ({self.gathered.name})"
        drawn = {f"{key}{ending}": figure for key, figure in figures.items() if figure is not None}
        table = Table(f"{file}{ending}", title, cells, words, tuple(notes), banner, self.above, drawn)
        return replace(table, experiment=self.experiment.name, units=task_units(self.runs))

    def detail(self, cells: pd.DataFrame, key: str, file: str, title: str, **figures: Figure | None) -> list[Table]:
        """A table of details with the note `key`, without what stands above the experiment's own; [] if it is empty."""
        table = self.table(cells, [note(key)], file, title, **figures)
        return [replace(table, banner="", above="")] if len(cells) else []


def methods(section: Section) -> list[Table]:
    """Table 2, next to the paper's cells, and every method compared with every other."""
    summary = section.summary
    pairs = section.pairs
    is_own = section.kind == "own"
    figures = {"parameters": by_parameters(section.runs), "curves": learning_curves(section.runs, section.curves)}
    cells = own.with_baselines(table2(summary), summary, section.own_rows) if is_own else table2(summary)
    made = [section.table(cells, section.notes, **figures)]
    if section.paper is not None:
        printed = with_paper(summary, section.paper, pd.read_csv(PAPER_ROWS))
        if len(printed) > len(cells):
            notes = [note("stands_for"), note("averages")]
            made.append(section.table(printed, notes, "table2_paper", "Table 2 with the paper's rows"))
    if len(pairs):
        of_rows = is_own and section.runs["metric"].isin(METRICS).any()
        command = section.gathered.command("analyse intervals")
        notes = [note("pairs"), note("pairs_own" if of_rows else "verdicts").replace("COMMAND", command)]
        cells = pairs_table(pairs, section.analyses)
        title = "Every method against every other, in pairs of one seed"
        made.append(section.table(cells, notes, "pairs", title, forest=forest(pairs)))
    if is_own:
        cells = rates_table(section.runs, section.gathered.rates)
        made.append(section.table(cells, [note("rates")], "rates", "How each learning rate was chosen"))
        made += section.detail(own.costs_table(section.runs), "costs", "costs", "What each method costs")
        made += section.detail(own.test_table(section.runs), "test", "test", TEST_TITLE)
        made += errors(section)
    return made


def errors(section: Section) -> list[Table]:
    """Where the methods err, for the tasks whose rows were analysed."""
    tasks = section.gathered.tasks
    cells = own.classes_table(section.own_rows, {name: tasks[name].labels for name in section.own_rows})
    drawn = {f"confusion_{name}": own.confusion_figure(entry, tasks[name]) for name, entry in section.own_rows.items()}
    made = section.detail(cells, "classes", "classes", "Each class", **drawn)
    for name, entry in section.own_rows.items():
        path = section.gathered.folder / "analysis" / ERRORS.format(task=name)
        if len(cells := own.errors_table(path)):
            title = "Dev rows that most runs get wrong" if tasks[name].labels else "Largest mean residuals"
            notes = [note("errors").replace("FILE", f"analysis/{path.name}")]
            scatter = None if tasks[name].labels else own.scatter_figure(cells, tasks[name], entry["runs"])
            drawn = {f"scatter_{name}": scatter}
            table = section.table(cells[: own.SHOWN_ROWS], notes, f"errors_{name}", f"{title}: {name}", **drawn)
            made.append(replace(table, banner="", above="", folded=True, words=len(cells.columns)))
    return made


def against(section: Section, title: str, base: Callable[[str, int], tuple[str, int]], bound: float) -> Figure | None:
    """Each row minus the one of another target set and rank. `base`: the row's set and rank -> the other's."""
    rows = {key: label for label, key in targets_and_ranks(section.runs).items()}
    compared = {rows[key]: (key, base(*key)) for key in rows if key != base(*key) in rows}
    pairs = minus(section.runs, {label: rows[other] for label, (_, other) in compared.items()})
    return minus_base(title, pairs, compared, section.paper, bound)


def targets(section: Section) -> list[Table]:
    drawn = against(section, "Table 5: each set minus Wq, Wv (r = 4)", lambda *_: ("Wq, Wv", 4), bound=0.0)
    shown = {"ffn": section.runs["targets"].str.contains("[if]").any(), "gpt3": section.paper is not None}
    notes = [*section.notes, *(note(key) for key, is_shown in shown.items() if is_shown)]
    return [section.table(table5(section.runs, section.summary, section.paper), notes, targets=drawn)]


def ranks(section: Section) -> list[Table]:
    drawn = against(section, "Table 6: each rank minus r = 64", lambda name, _: (name, 64), bound=-1.0)
    notes = [*section.notes, note("doubling"), *([] if section.paper is None else [note("gpt3")])]
    return [section.table(table6(section.runs, section.summary, section.paper), notes, ranks=drawn)]


def successors(section: Section) -> list[Table]:
    """Each method minus LoRA, here and in later papers."""
    from_lora = minus(section.runs, method_label("lora-qv-r8"))
    cells = successors_table(section.runs, section.summary, from_lora, section.paper)
    notes = [*section.notes, note("successors")]
    return [section.table(cells, notes, successors=minus_lora(section.runs, from_lora))]


def layers(section: Section) -> list[Table]:
    cells, drawn = (make(section.runs, section.analyses) for make in (layers_table, layers_figure))
    curves = learning_curves(section.runs, section.curves)
    return [section.table(cells, [note(LAYERS), *section.notes[1:]], layers=drawn, layers_curves=curves)]


def head_rates(section: Section) -> list[Table]:
    return [section.table(head_table(section.runs), [head_rule(section.runs), note("head_rate")])]


def starts(section: Section) -> list[Table]:
    cells = change_table(section.runs, "start", START_TITLES)
    start = slopes(section.runs, section.paper)
    curves = learning_curves(section.runs, section.curves, " by start")
    return [section.table(cells, [*section.notes, note("change")], start=start, start_curves=curves)]


def lengths(section: Section) -> list[Table]:
    titles = {value: f"{value} epochs" for value in sorted(section.runs[EPOCHS].unique(), key=float)}
    cells = change_table(with_labels(section.runs, without=(EPOCHS,)), EPOCHS, titles)
    curves = learning_curves(section.runs, section.curves, " by length")
    return [section.table(cells, [*section.notes, note("change")], length_curves=curves)]


def sizes(section: Section) -> list[Table]:
    cells = sizes_table(section.runs, section.summary)
    made = section.table(cells, [*section.notes, note(ROWS)], rows=sizes_figure(section.runs))
    cells = rates_table(section.runs, section.gathered.rates)
    rates = section.detail(cells, "rates", f"{ROWS}_rates", "How each learning rate was chosen, by train rows")
    return [made, *rates, *section.detail(own.test_table(section.runs), "test", f"{ROWS}_test", TEST_TITLE)]


def others(section: Section) -> list[Table]:
    chosen = ((run.seed, tuned_rate(run, section.gathered.rates)) for run in section.runs.itertuples())
    is_flattered = any(rate is not None and seed in rate.seeds for seed, rate in chosen)
    notes = [*section.notes, *([note("others")] if is_flattered else [])]
    return [section.table(table2(section.summary), notes)]


TABLES: dict[str, Callable[[Section], list[Table]]] = {  # the function of each experiment
    "glue_table2": methods,
    OWN_TASK: methods,
    ADHOC: methods,
    LAYERS: layers,
    "head_rate": head_rates,
    "lora_targets": targets,
    "lora_ranks": ranks,
    "successors": successors,
    "mnli_start": starts,
    "length": lengths,
    ROWS: sizes,
    OWN: others,
}


def sections_of(gathered: Gathered, curves: pd.DataFrame, analyses: Analyses) -> Iterator[Section]:
    """The sections in reading order.

    Raises: UserError: If a table without columns for encoder and protocol would hold several.
    """
    for name, every in gathered.runs.groupby("experiment", sort=False):
        experiment = EXPERIMENTS[name]
        for key in () if name in (*MAIN, ROWS, OWN) else ("model", "protocol"):
            if len(values := every[key].unique()) > 1:
                mixed = f"the table of {name} would mix the {key}s {', '.join(values)}"
                raise UserError(f"{mixed}: name one ({key}={min(values)})")
        every = with_sizes(every) if name == ROWS else every
        for kind, of_kind in sorted(every.groupby("kind"), key=lambda group: KINDS.index(group[0])):
            yield Section(gathered, experiment, kind, of_kind, curves, analyses)
