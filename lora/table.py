"""One table of texts in four formats: Markdown, CSV, LaTeX and HTML."""

import html
import re
from dataclasses import dataclass

import pandas as pd

NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
FACTORS = {"k": 1e3, "M": 1e6}
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Args:
        name: Of its files, below tables/.
        title: With the paper's name for it where it has one.
        cells: Texts; `-` where nothing was measured.
        words: How many of the first columns are words, which are aligned left.
        notes: Lines below it, in Markdown without links.
        banner: What a reader must know before the numbers; shown above it.
        above: A line below the banner: how the runs were trained.
    """

    name: str
    title: str
    cells: pd.DataFrame
    words: int = 1
    notes: tuple[str, ...] = ()
    banner: str = ""
    above: str = ""

    def files(self) -> dict[str, bytes]:
        """Path below results/<name>/ -> content."""
        return {
            f"tables/{self.name}.md": self.markdown().encode(),
            f"tables/{self.name}.csv": self.cells.to_csv(index=False, lineterminator="\n").encode(),
            f"tables/{self.name}.tex": latex(self).encode(),
            f"tables/{self.name}.html": html_table(self).encode(),
        }

    def markdown(self) -> str:
        above = [f"# {self.title}", "", *(line for text in (self.banner, self.above) if text for line in (text, ""))]
        return "\n".join([*above, markdown(self.cells, self.words), *self.notes]).rstrip() + "\n"


def markdown(cells: pd.DataFrame, words: int = 1) -> str:
    """GitHub's table syntax; every column after the first `words` is aligned right."""
    lines = ["| " + " | ".join(cells.columns) + " |"]
    lines.append("|" + "|".join(" --- " if i < words else " ---: " for i in range(len(cells.columns))) + "|")
    lines += ["| " + " | ".join(str(text).replace("|", "\\|") for text in row) + " |" for row in rows(cells)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A float with booktabs' rules."""
    count = len(table.cells.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * table.words}{'r' * (count - table.words)}}}", r"\toprule"]
    lines += [" & ".join(map(latex_text, table.cells.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(latex_text, row)) + r" \\" for row in rows(table.cells)]
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip"]
    notes = [note for note in (table.banner, table.above, *table.notes) if note]
    lines += [rf"{{\footnotesize {latex_text(plain(note))}\par}}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


def latex_text(text: object) -> str:
    return "".join(LATEX.get(character, character) for character in str(text))


def html_table(table: Table) -> str:
    """A figure with its caption; each cell holds what it sorts by, so that the page's script only compares."""
    heads = "".join(
        f'<th scope="col"{"" if i < table.words else " class=number"}>{html.escape(str(name))}</th>'
        for i, name in enumerate(table.cells.columns)
    )
    lines = [f'<figure class="table" id="{table.name}"><figcaption>{html.escape(table.title)}</figcaption>']
    if table.banner:
        lines.append(f'<p class="banner">{html_text(table.banner)}</p>')
    lines += [f"<p>{html_text(table.above)}</p>"] if table.above else []
    lines += ['<div class="scroll"><table class="sortable">', f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
    for row in rows(table.cells):
        lines.append(
            "<tr>"
            + "".join(
                f"<td>{html.escape(str(text))}</td>"
                if i < table.words
                else f'<td class="number" data-value="{sort_value(str(text))}">{html.escape(str(text))}</td>'
                for i, text in enumerate(row)
            )
            + "</tr>"
        )
    lines += ["</tbody></table></div>", *(f"<p>{html_text(note)}</p>" for note in table.notes), "</figure>", ""]
    return "\n".join(lines)


def html_text(text: str) -> str:
    """Markdown's **bold** and `code`, nothing else."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text, quote=False))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", bold)


def plain(text: str) -> str:
    return re.sub(r"\*\*|`", "", text)


def sort_value(text: str) -> str:
    """The number that a cell begins with (`83.4 ±0.5`: 83.4; `74k`: 74000); empty where there is none."""
    found = NUMBER.match(text)
    if found is None:
        return ""
    factor = FACTORS.get(text[found.end() : found.end() + 1], 1)
    return f"{float(found[0].replace(',', '')) * factor:g}"


def rows(cells: pd.DataFrame) -> list[tuple]:
    return list(cells.itertuples(index=False, name=None))
