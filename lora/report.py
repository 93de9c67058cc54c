"""`python -m lora.report PROFILE`: from the records of a profile to its tables, and what is missing."""

import argparse
import sys
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


def report(name: str, overrides: list[str]) -> tuple[str, State]:
    """Build and write everything below results/<name>/tables.

    Args:
        name: A profile, or `reference/<profile>`; the folder below results/.
        overrides: Those that the sweep was launched with, so that the same cells are expected.
    Returns: The text of the main table, and the state of the sweep.
    """
    profile = Path(name).name
    cells = requested(profile, overrides)
    results = ROOT / "results" / name
    now = state(cells, results)
    frame = load_frame(list(now.ok.values()))
    text, summary = main_table(profile, name, cells, frame, now)
    write_atomically(results / "tables" / "table2.md", text.encode())
    write_atomically(results / "tables" / "table2.csv", summary.to_csv(index=False, float_format="%.6g").encode())
    return text, now


def main_table(profile: str, name: str, cells: list[Cell], frame: pd.DataFrame, now: State) -> tuple[str, pd.DataFrame]:
    shown = [cell for cell in cells if {"glue_table2", "adhoc"} & set(cell.experiments)]
    summary = summarise(frame, in_table_order(shown))
    tasks = [task for task in TASKS if task in set(summary["task"])]
    embedded = all(TASKS[task].family == "embedded" for task in tasks)
    lines = [f"# Table 2: methods by tasks ({name})", ""]
    if embedded:
        lines += [NOT_GLUE, ""]
    lines += [markdown(table2(summary)), caption(summary, shown), ""]
    if embedded:
        reference = reference_summary(profile, shown) if name == profile else None
        if reference is not None:
            compared = against_reference(summary, reference)
            agree, total = (compared["Agrees"] == "yes").sum(), (compared["Agrees"] != "-").sum()
            lines += ["## Against the reference run", "", markdown(compared)]
            lines += [f"{agree} of {total} cells agree: the ranges of their seeds overlap.", ""]
    else:
        paper = pd.read_csv(ROOT / "experiments" / "glue_table2" / "paper.csv")
        lines += ["## The paper's cells for these tasks", "", markdown(published(paper, tasks))]
        lines += ["Other encoders, other budgets: beside ours for orientation. Source: Hu et al. 2021, Table 2.", ""]
    lines += status_lines(now)
    return "\n".join(lines).rstrip() + "\n", summary


def in_table_order(cells: list[Cell]) -> list[Planned]:
    """Methods as the experiment lists them, whatever order the cells run in."""
    methods, tasks = list(METHOD_TITLES), list(TASKS)
    planned = [Planned(c.model, c.protocol, c.slug, c.method, c.task, c.seed) for c in cells]
    return sorted(
        planned,
        key=lambda p: (p.model, methods.index(p.method), p.protocol, p.slug, tasks.index(p.task), p.seed),
    )


def caption(summary: pd.DataFrame, cells: list[Cell]) -> str:
    protocols = sorted({cell.protocol for cell in cells})
    parts = sorted(
        {
            f"{TASKS[t].title}: {rows:.0f} train rows"
            for t, rows, part in summary[["task", "train_rows", "is_part"]].dropna().itertuples(index=False)
            if part
        }
    )
    text = (
        f"Median over seeds of each run's best epoch on the dev set, ± the standard deviation over seeds; "
        f"protocol {', '.join(protocols)}; Trainable leaves the head out."
    )
    return text + (f"\nA part of the train split: {'; '.join(parts)}." if parts else "")


def reference_summary(profile: str, cells: list[Cell]) -> pd.DataFrame | None:
    folder = ROOT / "results" / "reference" / profile
    records, _ = load_records(folder)
    frame = load_frame(records)
    return summarise(frame, in_table_order(cells)) if len(frame) else None


def status_lines(now: State) -> list[str]:
    lines = [f"- failed: `{run_id}`: {record.error}" for run_id, record in sorted(now.failed.items())]
    lines += [f"- missing: `{cell.run_id}`" for cell in sorted(now.missing, key=lambda cell: cell.run_id)]
    lines += [f"- extra, not used: `{run_id}`" for run_id in now.extra]
    lines += [f"- left out: {problem}" for problem in now.problems]
    return ["## Not in the table", "", *lines] if lines else []


def update_readme(name: str, text: str) -> None:
    """Put the table between its marks in README.md, where the README has them."""
    path = ROOT / "README.md"
    readme = path.read_text() if path.exists() else ""
    begin, end = (README_MARK.format(name=name, edge=edge) for edge in ("begin", "end"))
    if begin in readme and end in readme:
        head, tail = readme.split(begin)[0], readme.split(end)[1]
        body = text.split("\n", 2)[2].split("\n## ")[0].rstrip()
        write_atomically(path, f"{head}{begin}\n{body}\n{end}{tail}".encode())


def main() -> None:
    """Exit codes: 0 complete; 1 a cell is missing or failed, or runs/ holds a file that is no record; 2 a bad call."""
    parser = argparse.ArgumentParser(prog="python -m lora.report", description=__doc__)
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")
    arguments = parser.parse_args()
    try:
        text, now = report(arguments.profile, arguments.overrides)
        update_readme(arguments.profile, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    incomplete = len(now.failed) + len(now.missing) + len(now.problems)
    if incomplete:
        print(
            f"incomplete: {len(now.failed)} failed, {len(now.missing)} missing, {len(now.problems)} files left out",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
