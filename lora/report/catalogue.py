"""Which tables a profile has, with their titles and what a reader must know of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT
from lora.report.aggregate import KINDS, METHODS_BY_TASKS, Planned, in_order, kinds_of, lora_of, summarise
from lora.report.comparisons import against_reference, beside_paper, best_against_last, pairs_table, published
from lora.report.conditions import conditions, encoder_notes
from lora.report.learning_rate import LEARNING_RATE, TITLE
from lora.report.stats import ENOUGH_SEEDS, LEVEL, all_pairs, holm
from lora.report.tables import start_table, table2, table5, table6
from lora.table import Table

ROWS = ROOT / "experiments" / "glue_table2" / "rows.csv"
LORA_TABLES = {"lora_targets": table5, "lora_ranks": table6}
TITLES = {
    "glue_table2": ("table2", "Table 2: methods by tasks"),
    "adhoc": ("table2", "Methods by tasks"),
    "lora_targets": ("table5", "Table 5: which projections to adapt, at one number of parameters"),
    "lora_ranks": ("table6", "Table 6: how large the rank must be"),
    "mnli_start": ("mnli_start", "What an MNLI start gives (section 5.2)"),
    LEARNING_RATE: (LEARNING_RATE, TITLE),
    "own": ("own", "Other runs in this folder"),
}
NOT_GLUE = (
    "**Not GLUE.** The tasks and the encoder are the small embedded ones: these numbers show the methods at work "
    "and are not comparable with the paper's."
)
PART = "**Trained on a part of the official train rows**: not comparable with tables of the whole."
Examples = Mapping[tuple[str, str, str, str], Mapping[str, Any]]
HEAD = "Trainable excludes the classification head, which trains with every method."
SUFFIXES = {"whole": "", "embedded": "", "part": "_part"}


def paper_file(experiment: str) -> Path:
    """The published cells that it is compared with."""
    return ROOT / "experiments" / experiment / "paper.csv"


@dataclass(frozen=True)
class Sections:
    """The tables in reading order, and what else is made from the same frames.

    Args:
        pairs: `all_pairs` of the methods of Table 2, with model, kind and p_holm.
        summaries: Experiment and kind -> one row per cell.
    """

    tables: list[Table]
    pairs: pd.DataFrame
    summaries: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)

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
) -> Sections:
    """Every table that is made from runs. Tasks whose rows are of different kinds are never in one table.

    Args:
        name: The profile's folder, for the titles.
        examples: As in `lora.records.analysis.Analyses`.
    """
    kinds = kinds_of(TASKS, frame)
    tables, pairs, summaries = [], [], {}
    for experiment, every in planned.items():
        if experiment not in METHODS_BY_TASKS:
            refuse_mixed(experiment, every)
        for kind in KINDS:
            of_kind = [p for p in every if kinds[p.task] == kind]
            if not of_kind:
                continue
            summary = summarise(frame, of_kind)
            summaries[experiment, kind] = summary
            file, title = TITLES[experiment]
            maker = Maker(name, kind, summary)
            notes, above = caption(summary, kind), conditions(frame, curves, of_kind)
            if experiment == "mnli_start":
                cells = start_table(frame, summary, of_kind)
            elif experiment in LORA_TABLES:
                beside = kind != "embedded"
                cells = LORA_TABLES[experiment](summary, pd.read_csv(paper_file(experiment)) if beside else None)
                notes += [*ffn_notes(summary, experiment), *([GPT3] if beside else [])]
            else:
                cells = table2(summary)
            words = (
                2 if experiment == "lora_ranks" else list(cells.columns).index("Method") + 1 if "Method" in cells else 1
            )
            tables.append(dataclasses.replace(maker.table(file, title, cells, words, notes), above=above))
            if experiment in METHODS_BY_TASKS:
                found = method_pairs(frame, of_kind).assign(kind=kind)
                pairs.append(found)
                tables += maker.methods(found, examples)
            tables += maker.best_and_last(file, title, frame, curves, of_kind)
    columns = ["model", "one", "other", "task", "n", "mean", "low", "high", "p", "p_holm", "kind"]
    return Sections(tables, pd.concat(pairs) if pairs else pd.DataFrame(columns=columns), summaries)


def refuse_mixed(experiment: str, planned: Sequence[Planned]) -> None:
    """Tables 5 and 6 and that of the start have no column for the encoder or the protocol: one table is of one of each.

    Raises: UserError
    """
    for key in ("model", "protocol"):
        values = dict.fromkeys(getattr(p, key) for p in planned)
        if len(values) > 1:
            raise UserError(
                f"the table of {experiment} would mix the {key}s {', '.join(values)}: name one ({key}={min(values)})"
            )


@dataclass(frozen=True)
class Maker:
    """Tables of one profile, one experiment and one kind of rows."""

    name: str
    kind: str
    summary: pd.DataFrame

    def table(self, file: str, title: str, cells: pd.DataFrame, words: int, notes: Sequence[str]) -> Table:
        banner = {"embedded": NOT_GLUE, "part": PART, "whole": ""}[self.kind]
        return Table(f"{file}{SUFFIXES[self.kind]}", f"{title} ({self.name})", cells, words, tuple(notes), banner)

    def methods(self, pairs: pd.DataFrame, examples: Examples) -> list[Table]:
        """What goes with Table 2: the paper's cells, and every method against every other."""
        made = []
        if self.kind != "embedded":
            paper = pd.read_csv(paper_file("glue_table2"))
            beside = beside_paper(self.summary, paper, pd.read_csv(ROWS))
            words = list(beside.columns).index("Task") + 1 if len(beside) else 1
            if len(beside):
                notes = (STANDS_FOR, *([DIFFERENCE] if "Difference" in beside else []), AVERAGES)
                made.append(
                    self.table("table2_paper", "Table 2, cell by cell beside the paper's", beside, words, notes)
                )
            whole = published(paper, in_order(self.summary))
            made.append(self.table("table2_published", "The paper's Table 2, for these tasks", whole, 2, (SOURCE,)))
        if len(pairs):
            cells = pairs_table(pairs, examples)
            words = list(cells.columns).index("Task") + 1
            made.append(
                self.table("pairs", "Every method against every other, in pairs of one seed", cells, words, PAIRS)
            )
        return made

    def best_and_last(
        self, file: str, title: str, frame: pd.DataFrame, curves: pd.DataFrame, planned: Sequence[Planned]
    ) -> list[Table]:
        cells = best_against_last(frame, curves, planned)
        short = title.partition(":")[0]
        named = f"{short}: what choosing the best epoch on the reported split gives"
        return [self.table(f"{file}_best_last", named, cells, 2, BEST_LAST)] if len(cells) else []


STANDS_FOR = (
    "Published: the row of the paper's Table 2 that each of ours stands for, of a larger encoder where the paper has "
    "none of this one, and trained longer."
)
DIFFERENCE = "Difference: ours minus published."
AVERAGES = "Averages are over the tasks shown."
GPT3 = (
    "(paper): GPT-3 175B, on other tasks and rows, for the order of the cells. Source: Hu et al. 2021, the same table."
)
SOURCE = "Larger encoders, longer runs: beside ours for orientation. Source: Hu et al. 2021, Table 2."
PAIRS = (
    "Difference: mean paired difference, in points. Avg.: of each seed's mean over the tasks; only seeds that have "
    f"every task count. Intervals ({LEVEL:.0%}): over seeds, with these dev sets, by Student's t; over dev examples, "
    "with these runs; over both (lora/report/stats.py says what each answers). p: paired t-test over seeds; Holm: "
    "corrected for all tests of this table, those of the averages included.",
    f"Verdicts take at least {ENOUGH_SEEDS} pairs of seeds: a convention of this project.",
)
BEST_LAST = (
    "Medians over seeds. Best epoch: each run's own, on the split that is reported, as in the paper. Other seeds' "
    "epoch: the one that is best on the mean of the cell's other seeds, so that a run does not profit from its own "
    "luck; `-` for one seed. Flatters: mean of best minus that, an estimate from below, since the dev examples are "
    "still the same.",
)


def method_pairs(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """Every method against every other of the same encoder. p_holm is corrected over all of them."""
    found = []
    for model in dict.fromkeys(p.model for p in planned):
        of_model = [p for p in planned if p.model == model]
        runs = {label: frame[frame["run_id"].isin(ids)] for label, ids in groups_of(of_model).items()}
        found.append(all_pairs(runs).assign(model=model))
    table = pd.concat(found) if found else all_pairs({}).assign(model="")
    places = [*TASKS, "Avg."]
    ordered = [
        group.sort_values("task", key=lambda tasks: tasks.map(places.index))
        for _, group in table.groupby(["model", "one", "other"], sort=False)
    ]
    table = pd.concat(ordered) if ordered else table
    return table.assign(p_holm=holm(table["p"].tolist())).reset_index(drop=True)


def groups_of(planned: Sequence[Planned]) -> dict[str, list[str]]:
    """The methods of one encoder, in the tables' order: label -> run_ids. Protocols are told apart."""
    protocols: dict[str, set[str]] = {}
    for p in planned:
        protocols.setdefault(p.label, set()).add(p.protocol)
    groups: dict[str, list[str]] = {}
    for p in planned:
        label = p.label + (f", {p.protocol}" if len(protocols[p.label]) > 1 else "")
        groups.setdefault(label, []).append(p.run_id)
    return groups


def reference_table(
    name: str, frame: pd.DataFrame, ours: Sequence[Planned], committed: pd.DataFrame, theirs: Sequence[Planned]
) -> Table | None:
    """The cells that the committed run has too, compared; None where there are none.

    Args:
        ours, theirs: Runs of both, in the same cells (`lora.report.select.reference_of`).
    """
    if not theirs:
        return None
    compared = against_reference(summarise(frame, ours), summarise(committed, theirs))
    agree, total = (compared["Agrees"] == "yes").sum(), (compared["Agrees"] != "-").sum()
    verdict = f"{agree} of {total} cells agree: the ranges of their seeds overlap."
    return Table("reference", f"Against the reference run ({name})", compared, 2, (verdict,))


def caption(summary: pd.DataFrame, kind: str) -> list[str]:
    seeds = set(summary["planned"])
    of_runs = "Each run's best epoch on the dev set, one seed"
    if seeds != {1}:
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        of_runs = (
            f"Median over {count} seeds of each run's best epoch on the dev set, ± the standard deviation over seeds"
        )
    lines = [f"{of_runs}; protocol {', '.join(sorted(set(summary['protocol'])))}; {HEAD}"]
    trained = summary.dropna(subset=["train_rows"]).drop_duplicates("task")
    rows = [f"{TASKS[row.task].title} {row.train_rows:,.0f}" for row in trained.itertuples() if kind != "whole"]
    if rows:
        lines.append(f"Train rows: {', '.join(rows)}.")
    return lines + encoder_notes(summary["model"])


def ffn_notes(summary: pd.DataFrame, experiment: str) -> list[str]:
    """What Tables 5 and 6 must say where LoRA is on the FFN too, which the paper's tables have not."""
    adapted = [lora_of(slug)[0] for slug in summary["slug"]]
    if not any("Wi" in targets or "Wf" in targets for targets in adapted):
        return []
    lines = ["Wi, Wf: the two linear layers of the FFN, which the paper does not adapt."]
    counts = summary["trainable_method"].dropna()
    if experiment == "lora_targets" and counts.nunique() > 1:
        usual = counts.mode().iloc[0]
        others = dict.fromkeys(
            f"{targets}: {row.trainable_method / usual - 1:+.1%}"
            for targets, row in zip(adapted, summary.itertuples(), strict=True)
            if pd.notna(row.trainable_method) and row.trainable_method != usual
        )
        lines.append(f"All sets have the same number of parameters but {'; '.join(others)}.")
    return lines
