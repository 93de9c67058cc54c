"""The tables and figures that are made from runs, experiment by experiment.

To show a new experiment, add a function to `SHOWN`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from lora.config.plan import ADHOC, OWN_TASK
from lora.data.facts import facts_text
from lora.data.metrics import METRICS
from lora.errors import UserError
from lora.files import ROOT
from lora.methods.configs import TARGET_TITLES
from lora.records.analysis import ERRORS, Analyses
from lora.report.comparisons import (
    change_table,
    method_pairs,
    minus,
    pairs_table,
    rates_table,
    successors_table,
    tuning_banner,
)
from lora.report.figures import Figure, beside_lora, by_parameters, differences, figure, forest, learning_curves, slopes
from lora.report.gather import Gathered
from lora.report.notes import BANNERS, caption, conditions, encoder_notes, note
from lora.report.own import (
    SHOWN_ROWS,
    classes_table,
    confusion_figure,
    costs_table,
    errors_table,
    scatter_figure,
    test_table,
    with_baselines,
)
from lora.report.placements import head_rule, head_table, layers_figure, layers_table
from lora.report.runs import (
    HEAD_RATE,
    KINDS,
    LAYERS,
    MAIN,
    OWN,
    START_TITLES,
    SUCCESSORS,
    adapted,
    labelled,
    slug_label,
    summarise,
    task_title,
    task_units,
)
from lora.report.tables import table2, table5, table6, with_paper
from lora.table import Cell, Table, Value, number

PAPER = ROOT / "experiments"  # its folders hold the paper's cells
ROWS = PAPER / "glue_table2" / "rows.csv"
# text columns, which come first
WORDS = ("Model", "Protocol", "Method", "Minus", "Task", "Adapted", "Learning rate", "Chosen", "Head's rate", "Class")
SUFFIXES = {"whole": "", "embedded": "", "part": "_part", "own": "_own"}


@dataclass(frozen=True)
class Section:
    """The runs of one experiment whose train rows are of one of `KINDS`, with the curves of all records."""

    gathered: Gathered
    experiment: str
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
        path = PAPER / ("glue_table2" if self.experiment in MAIN else self.experiment) / "paper.csv"
        return pd.read_csv(path) if self.kind in ("whole", "part") and path.exists() else None

    @cached_property
    def above(self) -> str:
        return conditions(self.runs, self.curves)

    @property
    def own_rows(self) -> dict[str, Mapping[str, Any]]:
        """Task -> what its rows say, of those that were analysed."""
        return {task: entry for task, entry in self.analyses.own_rows.items() if task in set(self.runs["task"])}

    @property
    def notes(self) -> list[str]:
        """What the numbers of a table of cells are, notes on its encoders, and what the rows of own tasks are like."""
        about = [
            f"{name}, {entry['rows'][1]:,} dev rows: {'; '.join(lines)}."
            for name, entry in self.own_rows.items()
            if (lines := facts_text(entry))
        ]
        return [caption(self.summary), *encoder_notes(self.runs["model"], self.kind), *about]

    @property
    def of_gpt3(self) -> list[str]:
        """The note on the paper's cells in Tables 5 and 6."""
        return [] if self.paper is None else [note("gpt3")]

    def table(
        self, file: str, title: str, cells: pd.DataFrame, notes: Sequence[str], **figures: Figure | None
    ) -> Table:
        words = next((i for i, column in enumerate(cells.columns) if column not in WORDS), len(cells.columns))
        suffix, banner = SUFFIXES[self.kind], tuning_banner(self.runs) if self.kind == "own" else BANNERS[self.kind]
        drawn = {f"{key}{suffix}": figure for key, figure in figures.items() if figure is not None}
        title = f"{title} ({self.gathered.name})"
        about = (tuple(notes), banner, self.above, drawn)
        units = task_units(self.runs)
        return Table(f"{file}{suffix}", title, cells, words, *about, experiment=self.experiment, units=units)


def methods(section: Section) -> list[Table]:
    """Table 2, next to the paper's cells, and every method compared with every other."""
    summary, pairs, gathered = section.summary, section.pairs, section.gathered
    figures = {"parameters": by_parameters(section.runs), "curves": learning_curves(section.runs, section.curves)}
    title = f"{'Table 2: m' if section.experiment == 'glue_table2' else 'M'}ethods by tasks"
    cells = with_baselines(table2(summary), summary, section.own_rows) if section.kind == "own" else table2(summary)
    made = [section.table("table2", title, cells, section.notes, **figures)]
    if section.paper is not None:
        title, notes = "Table 2 with the paper's rows", [note("stands_for"), note("averages")]
        cells = with_paper(summary, section.paper, pd.read_csv(ROWS))
        made += [section.table("table2_paper", title, cells, notes)] * (len(cells) > len(made[0].cells))
    is_own = section.kind == "own"
    if len(pairs):
        of_rows = is_own and section.runs["metric"].isin(METRICS).any()
        last = note("pairs_own" if of_rows else "verdicts").replace("COMMAND", gathered.command("analyse intervals"))
        title, cells = "Every method against every other, in pairs of one seed", pairs_table(pairs, section.analyses)
        made.append(section.table("pairs", title, cells, [note("pairs"), last], forest=forest(pairs)))
    if is_own:
        cells = rates_table(section.runs, gathered.rates)
        made.append(section.table("rates", "How each learning rate was chosen", cells, [note("rates")]))
        costs = section.table("costs", "What each method costs", costs_table(section.runs), [note("costs")])
        made.append(replace(costs, banner="", above=""))
        tested = section.table("test", "Test rows, not used to choose", test_table(section.runs), [note("test")])
        made += [replace(tested, banner="", above="")] * (len(tested.cells) > 0)
        made += errors(section)
    return made


def errors(section: Section) -> list[Table]:
    """Where the methods err, for the tasks whose rows were analysed."""
    tasks, made = section.gathered.tasks, []
    if any(entry["methods"] for entry in section.own_rows.values()):
        cells = classes_table(section.own_rows, {name: tasks[name].labels for name in section.own_rows})
        drawn = {f"confusion_{name}": confusion_figure(entry, tasks[name]) for name, entry in section.own_rows.items()}
        table = section.table("classes", "Each class", cells, [note("classes")], **drawn)
        made.append(replace(table, banner="", above=""))
    for name in section.own_rows:
        path = section.gathered.folder / "analysis" / ERRORS.format(task=name)
        if len(cells := errors_table(path)):
            title = "Dev rows that most runs get wrong" if tasks[name].labels else "Largest mean residuals"
            notes = [note("errors").replace("FILE", f"analysis/{path.name}")]
            drawn = {} if tasks[name].labels else {f"scatter_{name}": scatter_figure(cells, tasks[name])}
            table = section.table(f"errors_{name}", f"{title}: {name}", cells[:SHOWN_ROWS], notes, **drawn)
            made.append(replace(table, banner="", above="", folded=True, words=len(cells.columns)))
    return made


def against(section: Section, title: str, base: Callable[[str, int], tuple[str, int]], bound: float) -> Figure | None:
    """Each row minus the one of another target set and rank. `base`: the row's set and rank -> the other's."""
    rows = {adapted(row): row.label for row in section.summary.drop_duplicates("label").itertuples()}
    compared = {rows[key]: (key, base(*key)) for key in rows if key != base(*key) in rows}
    pairs = minus(section.runs, {label: rows[other] for label, (_, other) in compared.items()})
    return differences(title, pairs, compared, section.paper, bound)


def targets(section: Section) -> list[Table]:
    drawn = against(section, "Table 5: each set minus Wq, Wv (r = 4)", lambda *_: ("Wq, Wv", 4), bound=0.0)
    ffn = [note("ffn")] if section.runs["slug"].str.match(r"lora-[qkvo]*[if]").any() else []
    title, notes = "Table 5: which projections to adapt, at one number of parameters", [*section.notes, *ffn]
    cells = table5(section.summary, section.paper)
    return [section.table("table5", title, cells, [*notes, *section.of_gpt3], targets=drawn)]


def ranks(section: Section) -> list[Table]:
    drawn = against(section, "Table 6: each rank minus r = 64", lambda name, _: (name, 64), bound=-1.0)
    title, notes = "Table 6: how large the rank must be", [*section.notes, note("doubling")]
    cells = table6(section.runs, section.summary, section.paper)
    return [section.table("table6", title, cells, [*notes, *section.of_gpt3], ranks=drawn)]


def successors(section: Section) -> list[Table]:
    """Each method minus LoRA, here and in later papers."""
    from_lora = minus(section.runs, slug_label("lora-qv-r8"))
    cells = successors_table(section.runs, section.summary, from_lora, section.paper)
    title, notes = "LoRA's successors, each at a learning rate of its own", [*section.notes, note(SUCCESSORS)]
    return [section.table(SUCCESSORS, title, cells, notes, successors=beside_lora(section.runs, from_lora))]


def layers(section: Section) -> list[Table]:
    cells, drawn = (make(section.runs, section.analyses) for make in (layers_table, layers_figure))
    curves = learning_curves(section.runs, section.curves)
    title, notes = "Which layers to adapt, each arm at its own rate on each task", [note(LAYERS), *section.notes[1:]]
    return [section.table(LAYERS, title, cells, notes, layers=drawn, layers_curves=curves)]


def head_rates(section: Section) -> list[Table]:
    notes = [head_rule(section.runs), note(HEAD_RATE)]
    return [section.table(HEAD_RATE, "The head's learning rate apart from the body's", head_table(section.runs), notes)]


def starts(section: Section) -> list[Table]:
    cells, notes = change_table(section.runs, "start", START_TITLES), [*section.notes, note("change")]
    title, figure = "What an MNLI start gives (section 5.2)", slopes(section.runs, section.paper)
    drawn = learning_curves(section.runs, section.curves, " by start")
    return [section.table("mnli_start", title, cells, notes, start=figure, start_curves=drawn)]


def lengths(section: Section) -> list[Table]:
    epochs = section.runs["columns"].map(lambda columns: columns["train.epochs"])
    runs = labelled(section.runs, without=("train.epochs",)).assign(epochs=epochs)
    titles = {value: f"{value} epochs" for value in sorted(set(epochs), key=float)}
    cells, notes = change_table(runs, "epochs", titles), [*section.notes, note("change")]
    figure = learning_curves(section.runs, section.curves, " by length")
    title = "How long to train: one length and twice that"
    return [section.table("length", title, cells, notes, length_curves=figure)]


def others(section: Section) -> list[Table]:
    return [section.table("own", "Other runs in this folder", table2(section.summary), section.notes)]


SHOWN: dict[str, Callable[[Section], list[Table]]] = {  # in the report's order
    "glue_table2": methods,
    OWN_TASK: methods,
    ADHOC: methods,
    LAYERS: layers,
    HEAD_RATE: head_rates,
    "lora_targets": targets,
    "lora_ranks": ranks,
    SUCCESSORS: successors,
    "mnli_start": starts,
    "length": lengths,
    OWN: others,
}


def sections_of(gathered: Gathered, curves: pd.DataFrame, analyses: Analyses) -> Iterator[Section]:
    """The sections in reading order.

    Raises: UserError: If a table without columns for encoder and protocol would hold several.
    """
    for experiment, every in gathered.runs.groupby("experiment", sort=False):
        for key in () if SHOWN[experiment] in (methods, others) else ("model", "protocol"):
            if len(values := every[key].unique()) > 1:
                mixed = f"the table of {experiment} would mix the {key}s {', '.join(values)}"
                raise UserError(f"{mixed}: name one ({key}={min(values)})")
        for kind, of_kind in sorted(every.groupby("kind"), key=lambda group: KINDS.index(group[0])):
            yield Section(gathered, experiment, kind, of_kind, curves, analyses)


FIGURES = {  # name -> the kind of its cases, its title and its note
    "figure3": (
        "ranks of two seeds",
        "Figure 3: subspaces of a small and a large rank",
        "phi(i, j): how much of the top i directions of A at the small rank lies in the top j of A at the large one, "
        "trained with another seed; and the same of both as they were drawn.",
    ),
    "figure4": (
        "seeds",
        "Figure 4: subspaces of two seeds",
        "phi(i, j) between two seeds at the large rank, and between two random Gaussian matrices of that size.",
    ),
}
NORMS = {
    "W by the update's U, V": "in_update",
    "by W's own": "in_weight",
    "by random ones": "in_random",
    "Norm of W": "weight",
    "Norm of the update": "update",
}


def table7(name: str, cases: Sequence[Mapping[str, Any]]) -> Table | None:
    """How much an update amplifies directions that W does not emphasise, and phi of all i and j in the middle layer."""
    lines = []
    for case in cases:
        if case["kind"] == "amplification":
            layers = case["layers"]
            middle = layers[len(layers) // 2]
            factors = pd.Series([layer["update"] / layer["in_update"] for layer in layers])
            line: dict[str, Cell] = {"Task": task_title(case["task"]), "Matrix": TARGET_TITLES[case["target"]]}
            place = middle["layer"] + 1
            line |= {"r": case["rank"], "Layer": Value(place, f"{place} of {len(layers)}")}
            line |= {title: number(middle[norm], ".2f") for title, norm in NORMS.items()}
            line |= {"Amplification": number(middle["update"] / middle["in_update"], ".2f")}
            lines.append(line | {"Median over layers": number(factors.median(), ".2f")})
    figures = {}
    for key, (kind, title, about) in FIGURES.items():
        panels = [
            {"title": f"{task_title(case['task'])}, {case['label']}", "x": f"j, {case['x']}", "y": f"i, {case['y']}"}
            | {"x_names": case["columns"], "y_names": case["rows"], "values": case["phi"]}
            for case in cases
            if case["kind"] == kind
        ]
        drawn = figure(title, f"{about} 1: contained, 0: orthogonal. Middle layer.", "heat", "", panels)
        figures |= {key: drawn} if drawn is not None else {}
    title = f"Table 7: amplification by the update ({name})"
    notes = (note("table7"), *encoder_notes(case["model"] for case in cases))
    cells = pd.concat([pd.DataFrame(lines), pd.read_csv(PAPER / "subspaces" / "paper.csv", dtype=str)])
    return Table("table7", title, cells, 2, notes, figures=figures) if lines else None


def subtraction_table(name: str, cases: Sequence[Mapping[str, Any]]) -> Table | None:
    """What swaps by the paper's own subtraction leave of W0, and what they change."""
    lines = []
    for case in cases:
        errors = {"Error / norm of W0": "of_weight", "Error / norm of BA": "of_update"}
        errors["Largest change of a logit"] = "logits"
        line: dict[str, Cell] = {"Dtype": case["label"], "Swaps": number(case["swaps"], ",")}
        line |= {title: number(case[key], ".1e") for title, key in errors.items()}
        title = f"Changed predictions ({task_title(case['task'])})"
        lines.append(line | {title: Value(case["changed"], f"{case['changed']} of {case['rows']:,}")})
    title = f"Swaps by subtracting BA and adding B'A', without a copy of W0 ({name})"
    return Table("subtraction", title, pd.DataFrame(lines), 1, (note("subtraction"),)) if lines else None
