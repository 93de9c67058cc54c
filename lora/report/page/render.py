"""HTML from the templates next to this file. Every value is escaped except the markup that is made here."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lora.table import Table, rows

TEMPLATES = Path(__file__).parent / "templates"
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
FACTORS = {"k": 1e3, "M": 1e6}
IDS = re.compile(r' id="[\w.]+_\d+"')  # matplotlib's ids of groups, which nothing refers to
SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt"')


def marked(text: str) -> Markup:
    """HTML of a text with Markdown's **bold** and `code`, and no other markup."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", bold))


def sort_value(text: str) -> str:
    """The number that a cell begins with (`83.4 ±0.5`: 83.4; `74k`: 74000); empty if there is none."""
    found = NUMBER.match(text)
    if found is None:
        return ""
    factor = FACTORS.get(text[found.end() : found.end() + 1], 1)
    return f"{float(found[0].replace(',', '')) * factor:g}"


def with_remark(text: str) -> Markup:
    """A cell that shows its last brackets, such as `(2 of 3 collapsed)`, on a separate line."""
    value, bracket, remark = text.rpartition(" (")
    return Markup("{} <small>({}</small>").format(value, remark) if bracket and remark.endswith(")") else escape(text)


def inline_svg(picture: bytes) -> Markup:
    """A picture of matplotlib's as an element of the page, without prolog, metadata and ids of groups.

    The remaining ids are hashes of the content that they name, so two pictures on a page share only equal elements.
    """
    svg = picture.decode()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[max(0, svg.find("<svg")) :], flags=re.DOTALL)
    return Markup(IDS.sub("", svg).strip())


def natural_width(picture: bytes) -> float:
    """The width of an SVG in CSS pixels; 0 if it states none."""
    found = SIZE.search(picture.decode())
    return float(found[1]) * 96 / 72 if found else 0.0


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
ENVIRONMENT.filters |= {
    "marked": marked, "sort_value": sort_value, "with_remark": with_remark, "rows": rows,
    "inline_svg": inline_svg, "natural_width": natural_width,
}  # fmt: skip


def render(template: str, **values: object) -> str:
    return ENVIRONMENT.get_template(template).render(**values)


def html_table(table: Table) -> str:
    """The table as a figure with a caption. Each cell holds its sort value, so the page's script only compares."""
    return render("table.html", table=table)
