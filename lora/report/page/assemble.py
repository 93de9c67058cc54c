"""report.html: one self-contained page with a summary, verdicts, tables with figures, and every cell's runs."""

from collections.abc import Mapping, Sequence

from lora.report.build import Report
from lora.report.claims.shown import about_text, commit_text, finding_text, paper_text
from lora.report.claims.verdicts import Verdict
from lora.report.figures import Figure
from lora.report.notes import BANNERS
from lora.report.page.drawings import draw_interval
from lora.report.page.render import render
from lora.report.page.runs import HEADS, shown_cells
from lora.table import Table

SYMBOLS = {"supported": "✓", "not supported": "✗", "cannot tell": "?"}
PAPERS = ("Table 2", "Table 5", "Table 6", "Table 7", "Figure 3", "Figure 4")  # the titles that they are found by


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The HTML of the whole page. `pictures`: figure name -> SVG."""
    tables = [table for table in report.tables if table.name != "claims"]
    embedded = BANNERS["embedded"]
    main = next((table for table in tables if table.name in ("table2", "table2_part", "table2_own")), None)
    averages = main is not None and {"Method", "Avg."} <= set(main.cells.columns)
    return render(
        "report.html",
        report=report,
        heading="LoRA on your own tasks" if report.gathered.is_own else "LoRA on GLUE",
        banner=embedded if any(table.banner == embedded for table in tables) else "",
        contents=contents(tables, report),
        main=main,
        main_title=main and short_title(main, report.name),
        above=main.above if main is not None else "",
        averages=main.cells[["Method", "Avg."]].values.tolist() if averages else [],
        verdicts=report.verdicts,
        places={(each.claim.id, each.about): number for number, each in enumerate(report.verdicts, start=1)},
        symbols=SYMBOLS,
        tables=with_figures(tables, report.figures, pictures),
        cells=shown_cells(report.gathered.every, report.state.ok),
        run_heads=HEADS,
        about_text=about_text,
        commit_text=commit_text,
        draw_interval=draw_interval,
        finding_text=finding_text,
        paper_text=paper_text,
        records_of=records_of,
    )


def contents(tables: Sequence[Table], report: Report) -> list[tuple[str, str]]:
    """Anchor and text of each link. The paper's tables and figures that were not measured have no anchor."""
    own = report.gathered.is_own
    found = [("summary", "Summary"), *([] if own else [("verdicts", "Verdicts")])]
    found += [(table.name, short_title(table, report.name)) for table in tables if not table.folded]
    titles = {f"figure-{key}": figure["title"].partition(":")[0] for key, figure in report.figures.items()}
    found += [(place, title) for place, title in titles.items() if title in PAPERS and not title.startswith("Table")]
    named = {text for _, text in found}
    found += [("", f"{paper}: not measured here") for paper in PAPERS if paper not in named and not own]
    return [*found, ("runs", "Runs"), *([("left-out", "Not in the tables")] if report.status else [])]


def short_title(table: Table, name: str) -> str:
    """`Table 2`, of `Table 2: methods by tasks (reference/small)`."""
    return table.title.removesuffix(f" ({name})").partition(":")[0]


def with_figures(
    tables: Sequence[Table], figures: Mapping[str, Figure], pictures: Mapping[str, bytes]
) -> list[tuple[Table, list[tuple[str, Figure, bytes]]]]:
    """Each table with its figures: name, data and SVG."""
    return [(t, [(key, figures[key], pictures[key]) for key in t.figures if key in figures]) for t in tables]


def records_of(verdict: Verdict) -> list[str]:
    """The runs or files that a verdict is based on, each once."""
    return list(dict.fromkeys(run for found in verdict.findings for run in found.runs))
