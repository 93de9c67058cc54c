"""report.html: one self-contained page with a summary, the verdicts, the tables with their figures, and all runs.

Every value is escaped except the markup that is made here.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lora.report.build import Report
from lora.report.claims import shown
from lora.report.notes import BANNERS, encoder_notes
from lora.report.runs import cell_key, encoder_title, task_title
from lora.table import Table, Value, number, rows

SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
IDS = re.compile(r' id="[\w.]+_\d+"')  # matplotlib's ids of groups, which nothing refers to
SVG_WIDTH = re.compile(r'<svg [^>]*?width="([\d.]+)pt"')


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The HTML of the whole page. `pictures`: figure name -> SVG."""
    tables = [table for table in report.tables if table.name != "claims"]
    runs = runs_table(report)
    places = {verdict.claim.id: place for place, verdict in reversed(list(enumerate(report.verdicts, start=1)))}
    words = Counter[str](verdict.word for verdict in report.verdicts)
    return ENVIRONMENT.get_template("report.html").render(
        report=report,
        trained=len(report.expected & report.state.ok.keys()),
        heading="LoRA on your own tasks" if report.gathered.is_own else "LoRA on GLUE",
        banner=BANNERS["embedded"] if any(table.banner == BANNERS["embedded"] for table in tables) else "",
        encoders=encoder_notes(report.gathered.every["model"], "own" if report.gathered.is_own else "whole"),
        contents=[(t.name, t.title.removesuffix(f" ({report.name})").partition(":")[0]) for t in tables],
        findings=[(places.get(row.line["claim"], 0), row) for row in report.headlines if not row.is_aside],
        counts=", ".join(f"{words[word]} {word}" for word in SYMBOLS if words[word]),
        verdicts=list(enumerate(report.verdicts, start=1)),
        symbols=SYMBOLS,
        shown=shown,
        tables=tables,
        pictures=pictures,
        notes=footnotes([*tables, runs]),
        runs=runs,
        curves=curves_of(report, tables),
    )


def curves_of(report: Report, tables: Sequence[Table]) -> dict[str, dict[int, list[float | None]]]:
    """Cell -> seed -> the metric of each epoch, in percent, of every cell whose score a table shows."""
    cells = {value.cell for table in tables for row in rows(table.values) for value in row if isinstance(value, Value)}
    curves: dict[str, dict[int, list[float | None]]] = {}
    for row in report.gathered.runs.to_dict("records"):
        record = report.state.ok.get(row["run_id"])
        if record is not None and (key := cell_key(row)) in cells:
            split, metric = record.selected["split"], record.selected["metric"]
            values = [epoch["metrics"][split][metric] for epoch in record.epochs]
            curves.setdefault(key, {})[row["seed"]] = [None if v is None else round(100 * v, 2) for v in values]
    return curves


def footnotes(tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """Table -> `first`: its notes that no table above has, with their numbers; `again`: the numbers of the others."""
    numbers: dict[str, int] = {}
    notes = {}
    for table in tables:
        texts = [text for text in (table.above, *table.notes) if text]
        again = [numbers[text] for text in texts if text in numbers]
        first = [(numbers.setdefault(text, len(numbers) + 1), text) for text in texts if text not in numbers]
        notes[table.name] = {"first": first, "again": again}
    return notes


def runs_table(report: Report) -> Table:
    """Every run of the tables, with the code and the device that made it."""
    lines = []
    for run in report.gathered.every.itertuples():
        if (record := report.state.ok.get(run.run_id)) is None:
            continue
        code = (record.provenance.get("code") or {}).get("commit") or "-"
        line = {"Method": run.label, "Task": task_title(run.task), "Encoder": encoder_title(run.model)}
        line |= {"Start": run.start, "Device": run.device, "Code": code[: shown.SHORT], "Run": run.run_id}
        line |= {"Seed": run.seed, "Best": number(100 * run.best), "Epoch": int(run.best_epoch)}
        lines.append(line | {"Last": number(100 * run.last), "Minutes": number(run.seconds / 60)})
    note = "The configuration, every epoch and the provenance of a run are in `runs/<run>.json`."
    return Table("every_run", "Every run", pd.DataFrame(lines), 7, (note,), folded=True)


def marked(text: str) -> Markup:
    """HTML of a text with Markdown's **bold** and `code`, and no other markup."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", bold))


def inline_svg(picture: bytes) -> Markup:
    """A picture of matplotlib's as an element of the page, without prolog, metadata and ids of groups.

    The remaining ids are hashes of the content that they name, so two pictures on a page share only equal elements.
    """
    svg = picture.decode()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[max(0, svg.find("<svg")) :], flags=re.DOTALL)
    return Markup(IDS.sub("", svg).strip())


def natural_width(picture: bytes) -> float:
    """The width of an SVG in CSS pixels; 0 if it states none."""
    size = SVG_WIDTH.search(picture.decode())
    return float(size[1]) * 96 / 72 if size else 0.0


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
ENVIRONMENT.filters |= {"marked": marked, "rows": rows, "inline_svg": inline_svg, "natural_width": natural_width}
ENVIRONMENT.tests["value"] = lambda cell: isinstance(cell, Value)
