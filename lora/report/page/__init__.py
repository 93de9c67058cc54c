"""report.html: one page that needs nothing but itself. Verdicts first, then tables, figures, and every cell's runs."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora.report.claims.shown import commit_text, finding_text, paper_text
from lora.report.claims.verdicts import Verdict
from lora.report.figures import Figure
from lora.table import Table, html_table, html_text

HERE = Path(__file__).parent
SYMBOLS = {"supported": "✓", "not supported": "✗", "cannot tell": "?"}
PAPERS = ("Table 2", "Table 5", "Table 6", "Table 7", "Figure 3", "Figure 4")  # found by these names


def page(
    name: str,
    banner: str,
    verdicts: Sequence[Verdict],
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    pictures: Mapping[str, bytes],
    cells: str,
    status: Sequence[str],
) -> str:
    """The whole page.

    Args:
        banner: What holds for all of it, or nothing.
        figures: Name -> what is plotted.
        pictures: Name -> the SVG drawn from it.
        cells: `lora.report.page.runs.cells_html`.
        status: What is not in the tables, in Markdown lines.
    """
    parts = [
        f"<h1>LoRA on GLUE: {html.escape(name)}</h1>",
        "<p>Hu et al. 2021, arXiv:2106.09685, beside what came out here. Made from the records of "
        f"<code>results/{html.escape(name)}/</code> by <code>python -m lora report {html.escape(name)}</code>.</p>",
        f'<p class="banner">{html_text(banner)}</p>' if banner else "",
        navigation(tables, figures),
        '<h2 id="verdicts">What the paper says, and whether it holds here</h2>',
        verdicts_html(verdicts),
        '<h2 id="tables">Tables</h2>',
        *(html_table(table) for table in tables if table.name != "claims"),
        '<h2 id="figures">Figures</h2>',
        *(figure_html(key, figure, pictures[key]) for key, figure in figures.items()),
        '<h2 id="runs">Every cell and its runs</h2>',
        cells,
        '<h2 id="left-out">Not in the tables</h2>' if status else "",
        "".join(f"<p>{html_text(line.removeprefix('- '))}</p>" for line in status),
    ]
    style, script = (HERE / file for file in ("style.css", "script.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>LoRA on GLUE: {html.escape(name)}</title>\n<style>\n{style.read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<script>\n{script.read_text()}</script>\n</body>\n</html>\n"
    )


def navigation(tables: Sequence[Table], figures: Mapping[str, Figure]) -> str:
    """The paper's tables and figures by their names, whether they were measured or not."""
    places = [(table.title, table.name) for table in reversed(tables)]
    places += [(figure["title"], f"figure-{key}") for key, figure in figures.items()]
    links = ['<a href="#verdicts">Verdicts</a>']
    for paper in PAPERS:
        found = [place for title, place in places if title.startswith(f"{paper}:")]
        links.append(f'<a href="#{found[0]}">{paper}</a>' if found else f"<span>{paper}: not measured here</span>")
    links += ['<a href="#figures">Figures</a>', '<a href="#runs">Runs</a>']
    return f"<nav>{''.join(links)}</nav>"


def verdicts_html(verdicts: Sequence[Verdict]) -> str:
    entries = []
    for each in verdicts:
        about = (
            f" <small>({html.escape(each.about)}{', not GLUE' if each.not_glue else ''})</small>" if each.about else ""
        )
        findings = "".join(f"<li>{html.escape(finding_text(found))}</li>" for found in each.findings)
        runs = dict.fromkeys(run for found in each.findings for run in found.runs)
        records = ", ".join(f"<code>{html.escape(run)}</code>" for run in runs) or "none"
        entries.append(
            f'<li class="{each.word.replace(" ", "-")}"><span class="word">{SYMBOLS[each.word]} {each.word}</span>'
            f"{' (stated later)' if each.stated_later else ''}: "
            f"{html.escape(each.claim.sentence)}{about}"
            + (f"<ul>{findings}</ul>" if findings else "")
            + (f"<p>Because: {html.escape(each.reason)}.</p>" if not each.findings else "")
            + (last_epoch_html(each.on_last) if each.on_last else "")
            + f'<p class="note">The paper: {html.escape(paper_text(each.claim))}.</p>'
            "<details><summary>Source, margin, records</summary>"
            f"<p>{html.escape(each.claim.source)}.</p><p>Margin: {html.escape(each.claim.margin)}</p>"
            f"<p>Claim of commit: {html.escape(commit_text(each))}.</p>"
            f"<p>Records: {records}</p></details></li>"
        )
    return f'<ul class="verdicts">\n{chr(10).join(entries)}\n</ul>'


def last_epoch_html(verdict: Verdict) -> str:
    """The verdict on each run's last epoch, its comparisons folded away."""
    findings = "".join(f"<li>{html.escape(finding_text(found))}</li>" for found in verdict.findings)
    word = f"On each run's last epoch: {verdict.word}"
    return f'<details class="last-epoch"><summary>{word}</summary><ul>{findings}</ul></details>'


def figure_html(key: str, figure: Figure, picture: bytes) -> str:
    """The picture inside the page, as an image: its ids then clash with no other's."""
    encoded = base64.b64encode(picture).decode()
    title, note = html.escape(figure["title"]), html.escape(figure["note"])
    return (
        f'<figure class="picture" id="figure-{key}"><figcaption>{title}</figcaption><div class="scroll">'
        f'<img alt="{title}. {note}" src="data:image/svg+xml;base64,{encoded}"></div>'
        f"<p>{note} Data: <code>figures/{key}.json</code>.</p></figure>"
    )
