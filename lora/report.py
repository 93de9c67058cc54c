"""`python -m lora.report PROFILE`: from the records of a profile to its tables, and what is missing."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lora.errors import UserError
from lora.provenance import ROOT
from lora.results import load_frame, load_records, write_atomically
from lora.sweep import Cell, State, requested, state
from lora.tables import (
    METHOD_TITLES,
    NOT_GLUE,
    Planned,
    against_reference,
    markdown,
    published,
    summarise,
    table2,
)
from lora.tasks import TASKS

README_MARK = "<!-- results:{name} {edge} -->"
PAPER = ROOT / "experiments" / "glue_table2" / "paper.csv"


@dataclass(frozen=True)
class Report:
    """What a profile's records amount to.

    Args:
        text: Of the main table, in Markdown.
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
    cells = requested(profile, overrides)
    now = state(cells, results / name)
    shown = [cell for cell in cells if {"glue_table2", "adhoc"} & set(cell.experiments)]
    frame = load_frame(list(now.ok.values()))
    refuse_mixed_rows(frame)
    summary = summarise(frame, in_table_order(shown))
    reference = reference_summary(profile, shown, results) if name == profile else None
    text = main_table(name, summary, reference, now)
    csv = summary.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return Report(text, {"tables/table2.md": text.encode(), "tables/table2.csv": csv.encode()}, now)


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
    planned = [Planned(c.model, c.protocol, c.slug, c.method, c.task, c.seed) for c in cells]
    return sorted(
        planned,
        key=lambda p: (p.model, methods.index(p.method), p.protocol, p.slug, tasks.index(p.task), p.seed),
    )


def reference_summary(profile: str, cells: Sequence[Cell], results: Path) -> pd.DataFrame | None:
    """The same table of the run that came with the clone; None where the profile has none."""
    records, _ = load_records(results / "reference" / profile)
    frame = load_frame(records)
    return summarise(frame, in_table_order(cells)) if len(frame) else None


def main_table(name: str, summary: pd.DataFrame, reference: pd.DataFrame | None, now: State) -> str:
    tasks = [task for task in TASKS if task in set(summary["task"])]
    embedded = all(TASKS[task].family == "embedded" for task in tasks)
    lines = [f"# Table 2: methods by tasks ({name})", ""]
    if embedded:
        lines += [NOT_GLUE, ""]
    lines += [markdown(table2(summary)), *caption(summary, embedded), ""]
    if reference is not None:
        compared = against_reference(summary, reference)
        agree, total = (compared["Agrees"] == "yes").sum(), (compared["Agrees"] != "-").sum()
        lines += ["## Against the reference run", "", markdown(compared)]
        lines += [f"{agree} of {total} cells agree: the ranges of their seeds overlap.", ""]
    if not embedded:
        lines += ["## The paper's cells for these tasks", "", markdown(published(pd.read_csv(PAPER), tasks))]
        lines += ["Larger encoders, longer runs: beside ours for orientation. Source: Hu et al. 2021, Table 2.", ""]
    return "\n".join([*lines, *status_lines(now)]).rstrip() + "\n"


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


def status_lines(now: State) -> list[str]:
    lines = [f"- failed: `{run_id}`: {record.error}" for run_id, record in sorted(now.failed.items())]
    lines += [f"- missing: `{cell.run_id}`" for cell in sorted(now.missing, key=lambda cell: cell.run_id)]
    lines += [f"- extra, not used: `{run_id}`" for run_id in now.extra]
    lines += [f"- left out: {problem}" for problem in now.problems]
    return ["## Not in the table", "", *lines] if lines else []


def in_readme(readme: str, name: str, text: str) -> str:
    """The README with the main table between its marks; unchanged where it has none for this profile."""
    begin, end = (README_MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    if begin not in readme or end not in readme:
        return readme
    table = text.partition("\n\n")[2].partition("\n## ")[0].rstrip()
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
