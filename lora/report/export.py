"""The results for papers and other programs: LaTeX of the main tables, every run and cell as CSV, and W&B."""

import pandas as pd

from lora.config.run import RuntimeConfig
from lora.data.metrics import better
from lora.report.build import Report
from lora.report.experiments import MAIN
from lora.report.runs import ROW, human_count, task_labels
from lora.report.tables import average
from lora.sweep.tracking import log_tables

ESCAPES = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | {"^": r"\textasciicircum{}"})
NONE = "--"


def latex_files(report: Report) -> dict[str, str]:
    """Name -> content of a file per main table."""
    cells = report.cells[report.cells["experiment"].isin(MAIN)]
    groups = cells.groupby(["experiment", "kind"], sort=False)
    return {f"{experiment}_{kind}.tex": latex(summary) for (experiment, kind), summary in groups}


def csv_files(report: Report) -> dict[str, str]:
    """Name -> content of a file with a row per run, and of one with a row per cell."""
    runs = report.gathered.every.drop(columns=["terms", "experiment"])  # a run may serve several experiments
    tables = {"runs.csv": runs, "cells.csv": report.cells}
    return {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


def log_report(report: Report, runtime: RuntimeConfig) -> None:
    """Log tables and figures in one W&B run, in the group of the first experiment."""
    from lora.report.plots import draw  # loads matplotlib

    tables = {table.name: table.cells for table in report.tables if len(table.cells) and not table.folded}
    pictures = {key: draw(figure)["png"] for key, figure in report.figures.items()}
    log_tables(runtime, report.gathered.runs["experiment"].iloc[0], f"tables of {report.name}", tables, pictures)


def latex(summary: pd.DataFrame) -> str:
    r"""Methods by tasks for the package booktabs: median $\pm$ standard deviation over seeds.

    Bold: the best median of a task, and those that are worse by at most its standard deviation.

    Args:
        summary: `lora.report.runs.summarise` of its cells.
    """
    tasks, lines = task_labels(summary), []
    summary = summary.assign(higher=summary["median"] * summary["metric"].map(better))
    best = summary.dropna(subset="higher").sort_values("higher").drop_duplicates("task", keep="last").set_index("task")
    floors = (best["higher"] - best["std"].fillna(0)).to_dict()
    shown = [column for column in ("model", "protocol") if summary[column].nunique() > 1]
    for (*_, label), cells in summary.groupby(ROW, sort=False):
        counts = cells["trainable_method"].dropna()
        trainable = human_count(float(counts.iloc[0])) if len(counts) else NONE
        line = {column.capitalize(): cells[column].iloc[0].translate(ESCAPES) for column in shown}
        line |= {"Method": str(label).translate(ESCAPES), "Trainable": trainable}
        for task, title in tasks.items():
            texts = [
                cell_latex(row, bool(row.higher >= floors[task])) for row in cells[cells["task"] == task].itertuples()
            ]
            line[title.translate(ESCAPES)] = "".join(texts) or NONE
        if len(tasks) > 1 and not summary["kind"].eq("own").any():
            mean = average(cells, [*tasks])
            line["Avg."] = NONE if pd.isna(mean) else f"{mean:.1f}"
        lines.append(line)
    return pd.DataFrame(lines).to_latex(index=False, escape=False, column_format="l" + "r" * (len(lines[0]) - 1))


def cell_latex(row, is_best: bool) -> str:
    """`$80.6 \\pm 1.2$` of a cell of the summary, bold if it is among the best; a dash if nothing was trained."""
    if pd.isna(row.median):
        return NONE
    spread = rf" \pm {row.std:.1f}" if row.n > 1 else ""
    return rf"$\mathbf{{{row.median:.1f}}}{spread}$" if is_best else f"${row.median:.1f}{spread}$"
