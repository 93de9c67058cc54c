"""Write a report: its files, its page, and its blocks in the README and the pages of experiments/."""

import json
from pathlib import Path

import pandas as pd

from lora.files import ROOT, write_atomically
from lora.report.build import Report
from lora.report.claims.shown import to_json, verdict_table
from lora.report.claims.summary import findings_block
from lora.report.comparisons import REPEATED
from lora.report.figures import Figure
from lora.report.page import page
from lora.sweep.request import LEARNING_RATE
from lora.table import in_page, markdown, rows

FOUND = "reference/long"  # whose verdicts are the README's findings
# folder of experiments/ -> the tables on its page
PAGES = {
    "glue_table2": ("table2",),
    "lora_targets": ("table5",),
    "lora_ranks": ("table6", REPEATED),
    "mnli_start": ("mnli_start",),
    "length": ("length",),
    LEARNING_RATE: (LEARNING_RATE,),
    "base_size": (LEARNING_RATE, "table2", "pairs"),
}


def files(report: Report) -> dict[str, bytes]:
    """Path below results/<name>/ -> content, for all files except the pictures and the page that shows them."""
    found = {path: content for table in report.tables for path, content in table.files().items()}
    found["tables/cells.csv"] = report.cells.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    found["claims/verdicts.json"] = to_json(report.verdicts)
    return found | {f"figures/{key}.json": figure_json(figure) for key, figure in report.figures.items()}


def pages(report: Report) -> dict[Path, str]:
    """Path -> text of the README and the experiments' pages, with this report's numbers between their marks."""
    gathered, mark, experiments, verdicts = (
        report.gathered,
        f"results:{report.name}",
        ROOT / "experiments",
        report.verdicts,
    )
    reasons = dict.fromkeys(f"- *{each.claim.sentence}* {each.claim.margin}" for each in verdicts)
    with_bounds = "\n".join([markdown(verdict_table(verdicts), 3), "The bounds:", "", *reasons])
    blocks = [(ROOT / "README.md", mark, main_block(report)), (experiments / "VERDICTS.md", mark, with_bounds)]
    for folder, names in PAGES.items():
        tables = [table for table in report.tables if table.name.removesuffix("_part") in names]
        texts = [f"**{table.title}**\n\n" * (len(tables) > 1) + table.untitled() for table in tables]
        runs = gathered.tried if folder == LEARNING_RATE else gathered.runs
        if tables and (progress := report.progress(set(runs.loc[runs["experiment"] == folder, "run_id"]))):
            texts.insert(0, f"{progress}\n")
        blocks.append((experiments / folder / "README.md", mark, "\n".join(texts)))
    if report.name == FOUND:
        blocks.append((ROOT / "README.md", "findings", findings_block(verdicts)))
    written: dict[Path, str] = {}
    for path, name, text in blocks:
        if path.exists():
            written[path] = in_page(written.get(path) or path.read_text(), name, f"\n{text.rstrip()}\n")
    return written


def main_block(report: Report) -> str:
    """The main table with the paper's rows, the figure of parameters for real GLUE, and the path of the full report."""
    tables = {table.name: table for table in report.tables}
    main = tables.get("table2") or tables.get("table2_part")
    if main is None:
        return ""
    above = (main.banner, main.above, report.progress(report.expected))
    lines = [line for text in above if text for line in (text, "")]
    cells = with_paper(main.cells, tables["table2_paper"].cells) if "table2_paper" in tables else main.cells
    lines += [markdown(cells, main.words), main.notes[0], ""]
    figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
    if figure in main.figures and not any(each.not_glue for each in report.verdicts):
        path = f"results/{report.name}/figures/{figure}.png"
        lines += [f"![Trainable parameters against the average score]({path})", ""]
    lines.append(f"All tables, figures and runs: `results/{report.name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def with_paper(cells: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """The table, with the published row of each method under ours.

    Args:
        beside: `lora.report.tables.beside_paper`.
    """
    lines = []
    for ours in rows(cells):
        lines.append(dict(zip(cells.columns, ours, strict=True)))
        printed = beside[beside["Method"] == lines[-1]["Method"]]
        if len(printed):
            values = printed.set_index("Task")["Published"].to_dict()
            row, _, trainable = printed["Published row"].iloc[0].rpartition(" ")
            values |= {"Method": f"the paper: {row}", "Trainable": trainable}
            lines.append({name: values.get(name, "") for name in cells.columns})
    return pd.DataFrame(lines)


def figure_json(figure: Figure) -> bytes:
    return (json.dumps(figure, allow_nan=False, ensure_ascii=False) + "\n").encode()


def draw_changed(stem: Path, figure: Figure) -> None:
    """Write a figure's data and pictures next to each other, unless they are there already.

    A picture of unchanged data is kept, because another release of matplotlib would write other bytes.

    Args:
        stem: Path of the files without their endings.
    """
    data, content = stem.with_suffix(".json"), figure_json(figure)
    drawn = {form: stem.with_suffix(f".{form}") for form in ("png", "svg")}
    same = data.exists() and data.read_bytes() == content
    if not same or not all(path.exists() for path in drawn.values()):
        from lora.report.plots import draw  # loads matplotlib

        for form, picture in draw(figure).items():
            write_atomically(drawn[form], picture)
        write_atomically(data, content)


def write(report: Report, folder: Path) -> None:
    """Write every file of a report below `folder`, and draw the figures whose data changed."""
    content, pictures = files(report), {}
    for key, figure in report.figures.items():
        draw_changed(folder / "figures" / key, figure)
        pictures[key] = (folder / "figures" / f"{key}.svg").read_bytes()
    for name, written in (content | {"report.html": page(report, pictures).encode()}).items():
        write_atomically(folder / name, written)
    kept = {*content, *(f"figures/{key}.{form}" for key in pictures for form in ("png", "svg"))}
    for part in ("tables", "claims", "figures"):
        for path in (folder / part).glob("*"):
            if f"{part}/{path.name}" not in kept:  # made from records that no longer exist
                path.unlink()
