"""Write a report: its files, its page, and its blocks in the README and the pages of experiments/."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lora.errors import UserError, as_command
from lora.files import ROOT, python_command, write_atomically
from lora.records.record import load_curves, load_frame
from lora.report.build import PRINTED, Report
from lora.report.catalogue import FILES, build_sections
from lora.report.claims.shown import to_json
from lora.report.figures import Figure
from lora.report.gap import RECORDS, gap_table
from lora.report.gather import gather
from lora.report.learning_rate import LEARNING_RATE, learning_rate_table
from lora.report.page import page
from lora.report.readme import findings_block, verdicts_block
from lora.sweep.request import select_runs
from lora.table import Table, in_page

FOUND = "reference/long"  # whose verdicts are the README's findings
# folder of experiments/ -> the tables on its page
PAGES = {experiment: (file,) for experiment, file in FILES.items()} | {
    "base_size": (LEARNING_RATE, "table2", "pairs"),
    "lora_ranks": ("table6", "repeated"),
}


def files(report: Report) -> dict[str, bytes]:
    """Path below results/<name>/ -> content, for all files except the pictures and the page that shows them."""
    found = {path: content for table in report.tables for path, content in table.files().items()}
    found["tables/cells.csv"] = report.cells.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    found["claims/verdicts.json"] = to_json(report.verdicts)
    return found | {f"figures/{key}.json": figure_json(figure) for key, figure in report.figures.items()}


def pages(report: Report) -> dict[Path, str]:
    """Path -> text of the README and the experiments' pages, with this report's numbers between their marks.

    The table of gaps compares several profiles' records, and any of their reports writes it.
    """
    gathered, blocks = report.gathered, {ROOT / "README.md": report.readme}
    blocks[ROOT / "experiments" / "VERDICTS.md"] = verdicts_block(report.verdicts)
    for folder, names in PAGES.items():
        tables = [table for table in report.tables if table.name.removesuffix("_part") in names]
        texts = [f"**{table.title}**\n\n" * (len(tables) > 1) + untitled(table) for table in tables]
        expected = gathered.tried if folder == LEARNING_RATE else gathered.planned.get(folder, ())
        progress = report.progress(expected) if tables else ""
        blocks[ROOT / "experiments" / folder / "README.md"] = "\n".join([f"{progress}\n"] * bool(progress) + texts)
    mark = f"results:{report.name}"
    written = {
        path: in_page(path.read_text(), mark, f"\n{text.rstrip()}\n") for path, text in blocks.items() if path.exists()
    }
    if report.name == FOUND:
        readme = ROOT / "README.md"
        written[readme] = in_page(written[readme], "findings", f"\n{findings_block(report.verdicts)}\n")
    gaps = ROOT / "experiments" / "README.md"
    if report.name in RECORDS and gaps.exists():
        results = gathered.reference.parent
        every = {name: gathered if name == report.name else gather(name, (), results) for name in RECORDS}
        written[gaps] = in_page(gaps.read_text(), "results:gaps", f"\n{gap_table(every).rstrip()}\n")
    return written


def untitled(table: Table) -> str:
    """The table in Markdown without its title, for a page that has its own heading."""
    return table.markdown().partition("\n\n")[2]


def figure_json(figure: Figure) -> bytes:
    return (json.dumps(figure, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write(report: Report, folder: Path) -> None:
    """Write every file of a report below `folder`, and draw the figures whose data changed.

    A picture of unchanged data is kept, because another release of matplotlib would write other bytes.
    """
    content, pictures = files(report), {}
    for key, figure in report.figures.items():
        data = folder / "figures" / f"{key}.json"
        drawn = {form: folder / "figures" / f"{key}.{form}" for form in ("png", "svg")}
        same = data.exists() and data.read_bytes() == content[f"figures/{key}.json"]
        if not same or not all(path.exists() for path in drawn.values()):
            from lora.report.plots import draw  # loads matplotlib

            for form, picture in draw(figure).items():
                write_atomically(drawn[form], picture)
        pictures[key] = drawn["svg"].read_bytes()
    for name, written in (content | {"report.html": page(report, pictures).encode()}).items():
        write_atomically(folder / name, written)
    kept = {*content, *(f"figures/{key}.{form}" for key in pictures for form in ("png", "svg"))}
    for part in ("tables", "claims", "figures"):
        for path in (folder / part).glob("*"):
            if f"{part}/{path.name}" not in kept:  # made from records that no longer exist
                path.unlink()


def print_sweep(profile: str, arguments: Sequence[str]) -> None:
    """Print a sweep's tables at its end, and the next command.

    Args:
        arguments: The sweep's arguments.
    """
    own = [argument for argument in arguments if not argument.startswith("profile=")]
    try:
        gathered = gather(profile, own)
        asked = {name for run in select_runs(profile, own) for name in run.experiments}
        planned = {name: runs for name, runs in gathered.planned.items() if name in asked}
        curves = load_curves(list(gathered.state.ok.values()))
        tuning = load_frame(list(gathered.tuning))
        made = build_sections(gathered.name, planned, gathered.frame, curves, {}, tuning)
        tables = [table for table in made.tables if table.name in PRINTED]
        if LEARNING_RATE in asked:
            rates = learning_rate_table(gathered.name, gathered.tried, gathered.frame, curves)
            tables += [rates] if rates is not None else []
    except UserError as error:  # the runs themselves have ended, and their records exist
        print(f"no table of this sweep: {error}", file=sys.stderr)
        return
    print("\n".join(table.markdown() for table in tables))
    command = as_command([python_command(), "-m", "lora", "report", profile, *own])
    print(f"next: {command}  # every table, figures and report.html")
