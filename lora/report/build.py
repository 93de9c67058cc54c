"""Build a profile's report from its records (tables, verdicts, figures and a page), and write its files."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from lora.cost.efficiency.summary import read_devices
from lora.cost.efficiency.tables import tables as efficiency_tables
from lora.errors import UserError, as_command
from lora.files import RESULTS, ROOT, python_command, write_atomically
from lora.records.analysis import Analyses, read_analyses
from lora.records.record import load_curves
from lora.report.aggregate import Planned
from lora.report.catalogue import FILES, SUFFIXES, build_sections
from lora.report.claims.judging import verdicts
from lora.report.claims.shown import to_json, verdict_table
from lora.report.claims.verdicts import Verdict
from lora.report.figures import Figure
from lora.report.gap import RECORDS, gap_table
from lora.report.learning_rate import LEARNING_RATE, learning_rate_table
from lora.report.notes import encoder_notes, note
from lora.report.page import page
from lora.report.page.render import html_table
from lora.report.readme import block, in_readme
from lora.report.reference import reference_table
from lora.report.repeated import repeated_frame, repeated_table
from lora.report.select import Gathered, gather, reference_of
from lora.report.subspace_tables import amplification_table, figure3, figure4
from lora.sweep.request import requested
from lora.sweep.state import State
from lora.table import Table

MISSING_SHOWN = 20
AFTER_A_SWEEP = ("table7", "claims", "reference")  # the sweep has printed the other tables
OF_RUNS = [f"{file}{suffix}" for suffix in dict.fromkeys(SUFFIXES.values()) for file in dict.fromkeys(FILES.values())]
# the paper's claims are not judged on user-defined tasks, so the differences between methods are shown instead
PRINTED = (*OF_RUNS, "pairs_own", *AFTER_A_SWEEP)
# folder of experiments/ -> the tables on its page
PAGES = {experiment: (file,) for experiment, file in FILES.items()} | {
    "base_size": (LEARNING_RATE, "table2", "pairs"),
    "lora_ranks": ("table6", "repeated"),
}


@dataclass(frozen=True)
class Report:
    """The report of a profile.

    Args:
        gathered, analyses: The inputs of the report.
        tables: In reading order.
        cells: Every cell with its numbers.
        figures: Name -> the plotted data.
    """

    gathered: Gathered
    analyses: Analyses
    tables: tuple[Table, ...]
    cells: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    figures: dict[str, Figure]

    @property
    def name(self) -> str:
        return self.gathered.name

    @property
    def state(self) -> State:
        return self.gathered.state

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per excluded file."""
        return (*self.state.problems, *self.analyses.problems)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Path below results/<name>/ -> content, for all files except the pictures and the page that shows them."""
        files = {path: content for table in self.tables for path, content in table.files().items()}
        files |= {f"tables/{table.name}.html": html_table(table).encode() for table in self.tables}
        files["tables/cells.csv"] = self.cells.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
        files["claims/verdicts.json"] = to_json(self.verdicts)
        return files | {f"figures/{key}.json": figure_json(figure) for key, figure in self.figures.items()}

    def text(self, names: Sequence[str] = PRINTED) -> str:
        """The text that the command prints: tables, the claims that have a measured comparison, and `status`."""
        judged = [each for each in self.verdicts if any(found.n != 0 for found in each.findings)]
        tables = {table.name: table for table in self.tables}
        if "claims" in tables:
            tables["claims"] = dataclasses.replace(tables["claims"], cells=verdict_table(judged))
        shown = [tables[name].markdown() for name in names if name in tables and len(tables[name].cells)]
        left_out = [f"- {line}" for line in self.status]
        return "\n".join([*shown, *(["## Not in the tables\n", *left_out, ""] if left_out else [])])

    @property
    def readme(self) -> str:
        main = [table for table in self.tables if table.name in ("table2", "table2_part")]
        progress = self.progress(self.expected)
        return block(self.name, main[0], self.verdicts, list(self.figures), progress) if main else ""

    @property
    def expected(self) -> tuple[Planned, ...]:
        """All expected runs, with those that chose the learning rates."""
        return (*self.gathered.every, *self.gathered.tried)

    @property
    def counts(self) -> tuple[int, int]:
        """Number of trained runs and of expected runs."""
        return self.counts_of(self.expected)

    def counts_of(self, expected: Iterable[Planned]) -> tuple[int, int]:
        run_ids = {p.run_id for p in expected}
        return len(run_ids & self.state.ok.keys()), len(run_ids)

    def progress(self, expected: Iterable[Planned]) -> str:
        """How many of these runs are trained; empty if all are."""
        trained, asked = self.counts_of(expected)
        if trained == asked:
            return ""
        where = f"`results/{self.name}/report.html`"
        return f"**Not complete:** {trained} of {asked} runs are trained; {where} names the others."

    @property
    def status(self) -> list[str]:
        """Lines in Markdown about the runs and files that no table contains."""
        now = self.state
        lines = [f"failed: `{run_id}`: {record.error}" for run_id, record in sorted(now.failed.items())]
        missing = sorted(run.run_id for run in now.missing)
        lines += [f"missing: `{run_id}`" for run_id in missing[:MISSING_SHOWN]]
        if len(missing) > MISSING_SHOWN:
            lines.append(f"missing: {len(missing) - MISSING_SHOWN} more")
        lines += [f"extra, not used: `{run_id}`" for run_id in now.extra]
        if count := len(self.gathered.tuning):
            lines.append(
                f"{count} run{'s' * (count > 1)} of `python -m lora tune`, or on seeds that chose learning rates"
            )
        return lines + [f"left out: {problem}" for problem in self.problems]

    def html(self, pictures: Mapping[str, bytes]) -> bytes:
        """The HTML page. `pictures`: figure name -> SVG."""
        return page(self, pictures).encode()


def build(name: str, overrides: Sequence[str] = (), results: Path = RESULTS) -> Report:
    """Build a profile's report, except the pictures. Writes nothing.

    Args:
        name: A profile, or `reference/<profile>`: a folder below `results`.
        overrides: The sweep's overrides, so that the same runs are expected.
    Raises: UserError: If the profile does not exist, its records were made from different rows, or a claims file or an
        analysis is invalid.
    """
    gathered = gather(name, overrides, results)
    name, frame, curves = gathered.name, gathered.frame, load_curves(list(gathered.state.ok.values()))
    analyses = read_analyses(gathered.folder / "analysis", gathered.state.ok)
    sections = build_sections(name, gathered.planned, frame, curves, analyses.examples)
    judged, figures = [] if gathered.is_own else verdicts(gathered, analyses), sections.figures
    tables = []
    if not gathered.is_own:
        across = any(found.across for each in judged for found in each.findings)
        notes = (*encoder_notes(frame["model"]), *([note("across")] if across else []))
        tables = [Table("claims", f"The paper's sentences ({name})", verdict_table(judged), words=3, notes=notes)]
    tables += [*sections.tables, learning_rate_table(name, gathered.tried, frame, curves)]
    tables.append(repeated_table(name, gathered.every, frame, repeated_frame(gathered.folder)))
    if analyses.subspaces:
        tables.append(amplification_table(name, analyses.subspaces))
        found = {"figure3": figure3(analyses.subspaces), "figure4": figure4(analyses.subspaces)}
        figures |= {key: figure for key, figure in found.items() if figure is not None}
    if not gathered.is_reference:
        tables.append(reference_table(name, frame, *reference_of(gathered)))
    tables += efficiency_tables(read_devices(gathered.efficiency))
    shown = tuple(table for table in tables if table is not None)
    return Report(gathered, analyses, shown, sections.cells(), tuple(judged), figures)


def pages(report: Report) -> dict[Path, str]:
    """Path -> text of the README and the experiments' pages, with this report's numbers between their marks.

    The table of gaps compares several profiles' records, and any of their reports writes it.
    """
    shown = {ROOT / "README.md": report.readme}
    for folder, names in PAGES.items():
        own = [table for table in report.tables if table.name.removesuffix("_part") in names]
        texts = [f"**{table.title}**\n\n" * (len(own) > 1) + untitled(table) for table in own]
        expected = report.gathered.tried if folder == LEARNING_RATE else report.gathered.planned.get(folder, ())
        progress = report.progress(expected) if own else ""
        shown[ROOT / "experiments" / folder / "README.md"] = "\n".join([f"{progress}\n"] * bool(progress) + texts)
    found = {path: in_readme(path.read_text(), report.name, text) for path, text in shown.items() if path.exists()}
    path, own = ROOT / "experiments" / "README.md", report.gathered
    if report.name in RECORDS and path.exists():
        every = {name: own if name == report.name else gather(name, (), own.results) for name in RECORDS}
        found[path] = in_readme(path.read_text(), "gaps", gap_table(every))
    return found


def untitled(table: Table) -> str:
    """The table in Markdown without its title, for a page that has its own heading."""
    return table.markdown().partition("\n\n")[2]


def figure_json(figure: Figure) -> bytes:
    return (json.dumps(figure, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write(report: Report, folder: Path) -> None:
    """Write every file of a report below `folder`, and draw the figures whose data changed.

    A picture of unchanged data is kept, because another release of matplotlib would write other bytes.
    """
    files, pictures = report.files, {}
    for key, figure in report.figures.items():
        data = folder / "figures" / f"{key}.json"
        drawn = {form: folder / "figures" / f"{key}.{form}" for form in ("png", "svg")}
        same = data.exists() and data.read_bytes() == files[f"figures/{key}.json"]
        if not same or not all(path.exists() for path in drawn.values()):
            from lora.report.plots import draw  # loads matplotlib

            for form, content in draw(figure).items():
                write_atomically(drawn[form], content)
        pictures[key] = drawn["svg"].read_bytes()
    for path, content in (files | {"report.html": report.html(pictures)}).items():
        write_atomically(folder / path, content)
    kept = {*files, *(f"figures/{key}.{form}" for key in pictures for form in ("png", "svg"))}
    for part in ("tables", "claims", "figures"):
        for path in (folder / part).glob("*"):
            if f"{part}/{path.name}" not in kept:  # made from records that no longer exist
                path.unlink()


def print_sweep(profile: str, arguments: Sequence[str]) -> None:
    """Print a sweep's tables at its end, and the next command.

    Args:
        arguments: The sweep's arguments.
    """
    own = [argument for argument in arguments if not argument.startswith("profile=")]
    try:
        gathered = gather(profile, own)
        asked = {name for run in requested(profile, own) for name in run.experiments}
        planned = {name: runs for name, runs in gathered.planned.items() if name in asked}
        curves = load_curves(list(gathered.state.ok.values()))
        made = build_sections(gathered.name, planned, gathered.frame, curves, {})
        tables = [table for table in made.tables if table.name in PRINTED]
        if LEARNING_RATE in asked:
            rates = learning_rate_table(gathered.name, gathered.tried, gathered.frame, curves)
            tables += [rates] if rates is not None else []
    except UserError as error:  # the runs themselves have ended, and their records exist
        print(f"no table of this sweep: {error}", file=sys.stderr)
        return
    print("\n".join(table.markdown() for table in tables))
    command = as_command([python_command(), "-m", "lora", "report", profile, *own])
    print(f"next: {command}  # every table, figures and report.html")
