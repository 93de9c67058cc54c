"""Build a profile's report from its records: tables, verdicts and figures. `lora.report.command` writes its files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lora.config.select import PLACES
from lora.cost.efficiency.summary import read_summaries
from lora.errors import listed
from lora.files import REFERENCE
from lora.records.analysis import OWN_ROWS, Analyses, read_analyses
from lora.records.record import load_curves
from lora.report.adapter_tables import subtraction_table, table7
from lora.report.catalogue import TABLES, sections_of
from lora.report.claims.headlines import Headline, findings_figure, headlines, read_findings
from lora.report.claims.shown import verdict_table
from lora.report.claims.statements import read_claims
from lora.report.claims.verdicts import Verdict, judge
from lora.report.comparisons import answers, reference_table, repeated_table
from lora.report.experiments import EXPERIMENTS, FOLDERS, MAIN, ROWS
from lora.report.figures import Figure, latencies
from lora.report.gather import Gathered, gather
from lora.report.notes import encoder_notes
from lora.report.own import lacking, not_above
from lora.report.rates import learning_rate_table
from lora.report.runs import with_others_epoch
from lora.report.train_rows import size_sentences
from lora.sweep.progress import count_of
from lora.table import Table

TABLE_1 = FOLDERS / "efficiency" / "paper.csv"
FOUND = "reference/long"  # whose findings are the README's


@dataclass(frozen=True)
class Report:
    """The report of a profile.

    Args:
        tables: In reading order.
        headlines: The rows of the README's table that these verdicts give.
        answers: Which method is better on the user-defined tasks, a line per pair.
    """

    gathered: Gathered
    analyses: Analyses
    tables: tuple[Table, ...]
    cells: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    figures: dict[str, Figure]
    headlines: tuple[Headline, ...] = ()
    answers: tuple[str, ...] = ()

    name = property(lambda self: self.gathered.name)
    state = property(lambda self: self.gathered.state)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per excluded file."""
        return (*self.state.problems, *self.analyses.problems)

    @property
    def expected(self) -> set[str]:
        """The run_ids of all expected runs, with those that chose the learning rates."""
        return {*self.gathered.runs["run_id"], *self.gathered.tried["run_id"]}

    def progress(self, *experiments: str) -> str:
        """How many of the runs of these experiments are trained; empty if all are."""
        every = pd.concat([self.gathered.runs, self.gathered.tried])
        expected = set(every.loc[every["experiment"].isin(experiments), "run_id"])
        trained, asked = len(expected & self.state.ok.keys()), len(expected)
        where = f"`results/{self.name}/report.html`"
        names = f"**Not complete:** {trained} of {asked} runs are trained; {where} names the others."
        return names if trained < asked else ""

    @property
    def status(self) -> list[str]:
        """Lines in Markdown about the runs and files that no table contains."""
        lines = [f"failed: `{run_id}`: {record.error}" for run_id, record in sorted(self.state.failed.items())]
        if missing := sorted(f"`{run.run_id}`" for run in self.state.missing):
            lines.append(f"missing: {listed(missing)}")
        lines += [f"extra, not used: `{run_id}`" for run_id in self.state.extra]
        if count := len(self.gathered.tuning):
            lines.append(f"{count_of(count, 'run')} of `python -m lora tune`")
        return lines + [f"left out: {problem}" for problem in self.problems]


def read_more(gathered: Gathered) -> tuple[pd.DataFrame, Analyses]:
    """The curves of its records, and the analyses that were made from them."""
    curves = load_curves(list(gathered.state.ok.values()))
    analyses = read_analyses(gathered.folder / "analysis", gathered.every_ok, gathered.command)
    older = []
    whole = all(word.startswith((*PLACES, "task=")) for word in gathered.overrides)  # else a table lacks runs itself
    if whole and not any(OWN_ROWS in problem for problem in analyses.problems):
        for task in gathered.own_runs["task"].unique():
            if count := len(lacking(task, analyses.own_rows, gathered.own_runs)):
                what = f"analysis/{OWN_ROWS} lacks {count} of the runs of {task}"
                older.append(f"{what}: rebuild it with {gathered.command('analyse rows')}")
    return curves, replace(analyses, problems=(*analyses.problems, *older))


def verdicts_of(gathered: Gathered, curves: pd.DataFrame, analyses: Analyses) -> list[Verdict]:
    """The verdicts on the paper's claims, and on those of later papers."""
    runs = with_others_epoch(gathered.runs, curves)
    measured = gathered.frame, gathered.tried, gathered.efficiency, analyses, gathered.state.ok
    return judge(read_claims(), runs, *measured)


def build_report(name: str, overrides: Sequence[str] = (), results: Path | None = None) -> Report:
    """Build a profile's report, except the pictures, from what `gather` reads. Writes nothing.

    Raises: UserError: If the profile does not exist, its records were made from different rows, or a claims file or an
        analysis is invalid.
    """
    gathered = gather(name, overrides, results)
    name, frame = gathered.name, gathered.frame
    curves, analyses = read_more(gathered)
    judged: list[Verdict] = []
    findings: list[Headline] = []
    figures: dict[str, Figure] = {}
    tables: list[Table | None] = []
    lines: list[str] = []
    cells = [pd.DataFrame()]
    if not gathered.is_own:
        judged = verdicts_of(gathered, curves, analyses)
        named = {line["profile"] for line in read_findings() if "profile" in line} if name == FOUND else ()
        others = {one: gather(f"{REFERENCE}/{one}", (), results) for one in named}
        findings = headlines(judged, {one: verdicts_of(of_one, *read_more(of_one)) for one, of_one in others.items()})
        notes = tuple(encoder_notes(frame["model"]))
        tables.append(Table("claims", f"The paper's sentences ({name})", verdict_table(judged), words=3, notes=notes))
        more = {
            "findings": findings_figure(findings),
            "latency": latencies(read_summaries(gathered.efficiency).values(), pd.read_csv(TABLE_1)),
        }
        figures = {key: figure for key, figure in more.items() if figure is not None}
    for section in sections_of(gathered, curves, analyses):
        tables += TABLES[section.experiment.name](section)
        cells.append(section.summary.assign(experiment=section.experiment.name))
        if section.kind == "own" and section.experiment.name in MAIN:
            lines += answers(section.pairs, analyses, section.origins, section.runs)
            lines += not_above(section.summary, section.own_rows)
        if section.experiment.name == ROWS:
            lines += size_sentences(section.runs, section.origins)
    scores = (EXPERIMENTS[experiment].rate_score for experiment in gathered.runs["experiment"].unique())
    by_task = next(filter(None, scores), None)
    tables.append(learning_rate_table(name, gathered.tried, curves, by_task))
    tables.append(repeated_table(name, gathered.folder, gathered.every))
    tables += [table7(name, analyses.subspaces), subtraction_table(name, analyses.subtraction)]
    tables.append(reference_table(gathered))
    shown = tuple(table for table in tables if table is not None)
    figures |= {key: figure for table in shown for key, figure in table.figures.items()}
    return Report(gathered, analyses, shown, pd.concat(cells), tuple(judged), figures, tuple(findings), tuple(lines))
