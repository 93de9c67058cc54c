"""The results for papers and other programs: LaTeX of the main tables, every run and cell as CSV, and W&B."""

from collections.abc import Collection

import pandas as pd

from lora.config.run import RuntimeConfig
from lora.data.metrics import better
from lora.report.build import Report
from lora.report.catalogue import ENDINGS
from lora.report.experiments import MAIN
from lora.report.runs import cell_key
from lora.sweep.tracking import log_tables
from lora.table import Cell, Value

ESCAPES = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | {"^": r"\textasciicircum{}"})
NONE = "--"


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
    r"""Methods by tasks for the package booktabs: median $\pm$ standard deviation over seeds.

    Bold: an encoder's best median of a task, and those that are worse by at most its standard deviation.

    Args:
        values: Those of the table of methods.
        cells: `lora.report.runs.summarise` of its runs.
    """
    cells = cells.assign(higher=cells["median"] * cells["metric"].map(better))
    keys = ["model", "task"]
    best = cells.sort_values("higher", na_position="first").drop_duplicates(keys, keep="last")
    cells = cells.merge(best.assign(floor=best["higher"] - best["std"].fillna(0))[[*keys, "floor"]], on=keys)
    bold = {cell_key(cell) for cell in cells[cells["higher"] >= cells["floor"]].to_dict("records")}
    lines = values.drop(columns="Head").map(lambda cell: cell_latex(cell, bold)).rename(columns=escape)
    return lines.to_latex(index=False, escape=False, column_format="l" + "r" * (len(lines.columns) - 1))


def cell_latex(cell: Cell, bold: Collection[str]) -> str:
    r"""`$80.6 \pm 1.2$` of a score, without its remarks; a dash if nothing was trained. `bold`: keys of cells."""
    if not isinstance(cell, Value):
        return NONE if cell == "-" else escape(cell)
    if not cell.cell:  # a count, an average or a baseline
        return cell.text
    median, _, spread = cell.text.partition(" ±")
    spread = rf" \pm {spread}" if spread else ""
    return rf"$\mathbf{{{median}}}{spread}$" if cell.cell in bold else f"${median}{spread}$"


def escape(text: object) -> str:
    return str(text).translate(ESCAPES)
