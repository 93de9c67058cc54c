"""The results for papers and other programs: LaTeX of the main tables, every run and cell as CSV, and W&B."""

import math

import pandas as pd

from lora.config.run import RuntimeConfig
from lora.data.metrics import better
from lora.report.build import Report
from lora.report.catalogue import ENDINGS
from lora.report.experiments import MAIN
from lora.report.runs import cell_key, task_labels
from lora.sweep.tracking import log_tables
from lora.table import Cell, Value

ESCAPES = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | {"^": r"\textasciicircum{}"})
NONE = "--"
RULE = "% bold: the best of a task, and what is worse by at most one standard deviation of the best\n"


def latex_files(report: Report) -> dict[str, str]:
    """Name -> content of a file per table of methods."""
    cells = report.cells[report.cells["experiment"].isin(MAIN)]
    tables = {f"table2{ENDINGS[kind]}": of_kind for kind, of_kind in cells.groupby("kind")}
    return {f"{t.name}.tex": latex(t.values, tables[t.name]) for t in report.tables if t.name in tables}


def csv_files(report: Report) -> dict[str, str]:
    """Name -> content of a file with a row per run, and of one with a row per cell."""
    runs = report.gathered.every.drop(columns=["terms", "stated", "experiment"])  # a run may serve several experiments
    tables = {"runs.csv": runs, "cells.csv": report.cells}
    return {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


def log_report(report: Report, runtime: RuntimeConfig) -> None:
    """Log tables and figures in one W&B run, in the group of the first experiment."""
    from lora.report.plots import draw  # loads matplotlib

    tables = {table.name: table.cells for table in report.tables if len(table.cells) and not table.folded}
    pictures = {key: draw(figure)["png"] for key, figure in report.figures.items()}
    log_tables(runtime, report.gathered.runs["experiment"].iloc[0], f"tables of {report.name}", tables, pictures)


def latex(values: pd.DataFrame, cells: pd.DataFrame) -> str:
    r"""Methods by tasks for the package booktabs: median $\pm$ standard deviation over seeds, with remarks in brackets.

    Bold: the best of a task among an encoder's methods and the baselines, and what is worse by at most its standard
    deviation.

    Args:
        values: Those of the table of methods.
        cells: `lora.report.runs.summarise` of its runs.
    """
    bold: set[tuple[int, str]] = set()  # line and column
    shown = values.drop(columns="Head")
    for task, title in task_labels(cells).items():
        for _, of_model in cells[cells["task"] == task].groupby("model"):
            spreads = {cell_key(row): row["std"] for row in of_model.fillna({"std": 0.0}).to_dict("records")}
            sign = better(of_model["metric"].iloc[0])
            rivals = [
                (sign * cell.number, spreads.get(cell.cell, 0.0), line)
                for line, cell in enumerate(shown[title])
                if isinstance(cell, Value) and not math.isnan(cell.number) and (not cell.cell or cell.cell in spreads)
            ]
            best, spread, _ = max(rivals, default=(math.inf, 0.0, 0))
            bold |= {(line, title) for score, _, line in rivals if score >= best - spread}
    lines = pd.DataFrame(
        {escape(name): [cell_latex(cell, (i, name) in bold) for i, cell in enumerate(shown[name])] for name in shown}
    )
    return RULE + lines.to_latex(index=False, escape=False, column_format="l" + "r" * (len(lines.columns) - 1))


def cell_latex(cell: Cell, is_bold: bool) -> str:
    r"""`$80.6 \pm 1.2$ (4/5)` of a score; a dash if nothing was trained."""
    if not isinstance(cell, Value):
        return NONE if cell == "-" else escape(cell)
    median, _, spread = cell.text.partition(" ±")
    text = cell.text
    if spread or is_bold:
        number = rf"\mathbf{{{median}}}" if is_bold else median
        text = f"${number} \\pm {spread}$" if spread else f"${number}$"
    return f"{text} {cell.bracketed}".rstrip()


def escape(text: object) -> str:
    return str(text).translate(ESCAPES)
