"""`python -m lora.report PROFILE`: from the records of a profile to its tables, and what is missing."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from lora.compose import CONF
from lora.errors import UserError
from lora.provenance import ROOT
from lora.results import load_frame, load_records, write_atomically
from lora.sweep import Cell, State, requested, state
from lora.tables import (
    LORA_SLUG,
    METHOD_TITLES,
    NOT_GLUE,
    TARGET_TITLES,
    Planned,
    against_reference,
    in_order,
    markdown,
    published,
    start_table,
    summarise,
    table2,
    table5,
    table6,
)
from lora.tasks import TASKS

README_MARK = "<!-- results:{name} {edge} -->"
PAPER = ROOT / "experiments" / "glue_table2" / "paper.csv"
SECTIONS = {  # experiment -> file, title, layout; the start's table is made from pairs of runs
    "glue_table2": ("table2", "Table 2: methods by tasks", table2),
    "adhoc": ("table2", "Methods by tasks", table2),
    "lora_targets": ("table5", "Table 5: which projections to adapt, at one number of parameters", table5),
    "lora_ranks": ("table6", "Table 6: how large the rank must be", table6),
    "mnli_start": ("mnli_start", "What an MNLI start gives (section 5.2)", None),
}


@dataclass(frozen=True)
class Report:
    """What a profile's records amount to.

    Args:
        text: The tables, in Markdown, and what is not in them.
        files: Path below results/<name>/ -> content.
        state: Of the sweep.
    """

    text: str
    files: dict[str, bytes]
    state: State


def build(name: str, overrides: Sequence[str] = (), results: Path = ROOT / "results") -> Report:
    """Build every table of a profile; nothing is written.

    Args:
        name: A profile, or `reference/<profile>`: a folder below `results`.
        overrides: Those that the sweep was launched with, so that the same cells are expected.
    Raises: UserError: If the profile does not exist, or its records are of different rows.
    """
    profile = Path(name).name
    records, _ = load_records(results / name)
    if name != profile:  # the precision may follow the machine that made them
        overrides = [*overrides, *(f"train.precision={p}" for p in {r.config["train"]["precision"] for r in records})]
    sections = experiments_shown(profile, overrides, {record.run_id for record in records})
    cells = list({cell.run_id: cell for found in sections.values() for cell in found}.values())
    now = state(cells, results / name)
    frame = load_frame(list(now.ok.values()))
    refuse_mixed_rows(frame)
    texts, files = [], {}
    for experiment, found in sections.items():
        file, title, layout = SECTIONS[experiment]
        planned = in_table_order(found)
        summary = summarise(frame, planned)
        table = start_table(frame, summary, planned) if layout is None else layout(summary)
        text = section(f"{title} ({name})", table, summary)
        if experiment in ("glue_table2", "adhoc"):
            text += beside_the_paper(summary)
        texts.append(text)
        csv = summary.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files |= {f"tables/{file}.md": text.encode(), f"tables/{file}.csv": csv.encode()}
    if name == profile:
        texts.append(beside_the_reference(profile, frame, in_table_order(cells), results))
    texts.append(status_text(now))
    text = "\n".join(part.rstrip() + "\n" for part in texts if part)
    return Report(text, files, now)


def experiments_shown(profile: str, overrides: Sequence[str], present: set[str]) -> dict[str, list[Cell]]:
    """Experiment -> its cells without the MNLI runs that others start from: what was asked for, then what else was run.

    An experiment that nobody asked for is shown if a record is there that only it expects.
    """
    asked = requested(profile, overrides)
    shown = {name: [c for c in asked if name in c.experiments] for name in SECTIONS}
    known = {cell.run_id for cell in asked}
    if not any(override.startswith("experiment=") for override in overrides) and not shown["adhoc"]:
        for name in described(profile):
            if not shown[name]:
                cells = requested(profile, [*overrides, f"experiment={name}"])
                shown[name] = cells if (present - known) & {cell.run_id for cell in cells} else []
    parents = {cell.parent for cells in shown.values() for cell in cells}
    return {
        name: [cell for cell in cells if name != "mnli_start" or cell.run_id not in parents]
        for name, cells in shown.items()
        if cells
    }


def described(profile: str) -> list[str]:
    """The experiments that have a grid of this profile's size."""
    names = [name for name in SECTIONS if name != "adhoc"]
    return [name for name in names if profile in OmegaConf.load(CONF / "experiment" / f"{name}.yaml").grid]


def refuse_mixed_rows(frame: pd.DataFrame) -> None:
    """A column of a table is one data set."""
    for task, runs in frame.groupby("task") if len(frame) else ():
        if runs["fingerprint"].nunique() > 1:
            by_rows = runs.drop_duplicates("fingerprint")["run_id"]
            raise UserError(
                f"records of {task} were made from different rows, so they share no table: {', '.join(by_rows)}"
            )


def in_table_order(cells: Sequence[Cell]) -> list[Planned]:
    """Methods and tasks as the tables list them, whatever order the cells run in."""
    methods, tasks = list(METHOD_TITLES), list(TASKS)
    planned = [Planned(c.run_id, c.model, c.protocol, c.start, c.slug, c.method, c.task, c.seed) for c in cells]

    def place(p: Planned) -> tuple:
        lora = LORA_SLUG.fullmatch(p.slug)
        size = (len(lora[1]), [*TARGET_TITLES].index(lora[1][0]), lora[1], int(lora[2])) if lora else ()
        return p.model, methods.index(p.method), p.protocol, size, p.slug, tasks.index(p.task), p.seed

    return sorted(planned, key=place)


def section(title: str, table: pd.DataFrame, summary: pd.DataFrame) -> str:
    embedded = all(TASKS[task].family == "embedded" for task in summary["task"])
    lines = [f"# {title}", ""]
    if embedded:
        lines += [NOT_GLUE, ""]
    return "\n".join([*lines, markdown(table), *caption(summary, embedded), ""])


def beside_the_paper(summary: pd.DataFrame) -> str:
    tasks = [task for task in in_order(summary) if TASKS[task].family != "embedded"]
    if not tasks:
        return ""
    table = markdown(published(pd.read_csv(PAPER), tasks))
    source = "Larger encoders, longer runs: beside ours for orientation. Source: Hu et al. 2021, Table 2."
    return f"\n## The paper's cells for these tasks\n\n{table}\n{source}\n"


def beside_the_reference(profile: str, frame: pd.DataFrame, planned: Sequence[Planned], results: Path) -> str:
    """Our cells beside those of the run that came with the clone; nothing where the profile has none."""
    reference = load_frame(load_records(results / "reference" / profile)[0])
    if not len(reference):
        return ""
    compared = against_reference(summarise(frame, planned), summarise(reference, planned))
    agree, total = (compared["Agrees"] == "yes").sum(), (compared["Agrees"] != "-").sum()
    verdict = f"{agree} of {total} cells agree: the ranges of their seeds overlap."
    return f"## Against the reference run\n\n{markdown(compared)}\n{verdict}\n"


def caption(summary: pd.DataFrame, embedded: bool) -> list[str]:
    seeds = set(summary["planned"])
    of_runs = "Each run's best epoch on the dev set, one seed"
    if seeds != {1}:
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        of_runs = (
            f"Median over {count} seeds of each run's best epoch on the dev set, ± the standard deviation over seeds"
        )
    lines = [f"{of_runs}; protocol {', '.join(sorted(set(summary['protocol'])))}; Trainable leaves the head out."]
    trained = summary.dropna(subset=["train_rows"]).drop_duplicates("task")
    rows = [f"{TASKS[row.task].title} {row.train_rows:,.0f}" for row in trained.itertuples() if embedded or row.is_part]
    if rows:
        lines.append(f"{'Train rows' if embedded else 'Only a part of the official train rows'}: {', '.join(rows)}.")
    return lines


def status_text(now: State) -> str:
    lines = [f"- failed: `{run_id}`: {record.error}" for run_id, record in sorted(now.failed.items())]
    lines += [f"- missing: `{cell.run_id}`" for cell in sorted(now.missing, key=lambda cell: cell.run_id)]
    lines += [f"- extra, not used: `{run_id}`" for run_id in now.extra]
    lines += [f"- left out: {problem}" for problem in now.problems]
    return "\n".join(["## Not in the tables", "", *lines]) if lines else ""


def in_readme(readme: str, name: str, text: str) -> str:
    """The README with the main table between its marks; unchanged where it has none for this profile."""
    begin, end = (README_MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    if begin not in readme or end not in readme:
        return readme
    table = re.split(r"\n##? ", text.partition("\n\n")[2])[0].rstrip()
    return f"{readme.partition(begin)[0]}{begin}\n{table}\n{end}{readme.partition(end)[2]}"


def main() -> None:
    """Exit codes: 0 complete; 1 a cell is missing or failed, or runs/ holds a file that is no record; 2 a bad call."""
    parser = argparse.ArgumentParser(prog="python -m lora.report", description=__doc__)
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    arguments = parser.parse_args()
    try:
        report = build(arguments.profile, arguments.overrides)
        for path, content in report.files.items():
            write_atomically(ROOT / "results" / arguments.profile / path, content)
        readme = ROOT / "README.md"
        before = readme.read_text()
        after = in_readme(before, arguments.profile, report.text)
        if after != before:
            write_atomically(readme, after.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(report.text)
    failed, missing, left_out = (
        len(part) for part in (report.state.failed, report.state.missing, report.state.problems)
    )
    if failed or missing or left_out:
        print(f"incomplete: {failed} failed, {missing} missing, {left_out} files left out", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
