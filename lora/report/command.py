"""`python -m lora report PROFILE`: build tables, verdicts, figures and the page from a profile's records.

The files of the committed runs, `reference/<profile>`, are tracked: only --pages, given by `make tables`, writes them.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora.config.plan import trained_by
from lora.config.run import RuntimeConfig
from lora.config.select import PLACES, place, selecting
from lora.errors import UserError
from lora.files import REFERENCE, ROOT, write_atomically, write_changed
from lora.report.analyses import dev_intervals, own_rows
from lora.report.build import FOUND, Report, build_report
from lora.report.claims.headlines import findings_block
from lora.report.claims.shown import verdict_table, verdicts_json
from lora.report.experiments import EXPERIMENTS, MAIN, Experiment
from lora.report.export import csv_files, latex_files, log_report
from lora.report.figures import Figure, forms
from lora.report.gather import options as profile_options
from lora.report.page import page
from lora.report.terminal import show
from lora.table import in_page, markdown


def files(report: Report) -> dict[str, bytes]:
    """Path below results/<name>/ -> content, for all files except the pictures and the page that shows them."""
    content = {path: text for table in report.tables for path, text in table.files().items()}
    content["tables/cells.csv"] = report.cells.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    content["claims/verdicts.json"] = verdicts_json(report.verdicts)
    return content | {f"figures/{key}.json": figure_json(figure) for key, figure in report.figures.items()}


def pages(report: Report) -> dict[Path, str]:
    """Path -> text of the README and the experiments' pages, with this report's numbers between their marks."""
    in_readme = report.name == FOUND
    verdicts = [one for one in report.verdicts if in_readme or one.claim.metric]  # costs hang on no profile: once
    mark = f"results:{report.name}"
    experiments = ROOT / "experiments"
    reasons = dict.fromkeys(f"- *{verdict.claim.sentence}* {verdict.claim.margin}" for verdict in verdicts)
    progress = report.progress(*report.gathered.runs["experiment"].unique())
    above = [progress, ""] if progress else []
    with_bounds = "\n".join([*above, markdown(verdict_table(verdicts), 3), "The bounds:", "", *reasons])
    blocks = [(experiments / "VERDICTS.md", mark, with_bounds)]
    for folder, experiment in EXPERIMENTS.items():
        text = main_block(report) if folder in MAIN else tables_block(report, experiment)
        blocks.append((experiments / folder / "README.md", mark, text))
    if in_readme:
        blocks.append((ROOT / "README.md", "findings", findings_block(report.headlines)))
    known = [block for block in blocks if block[0].exists()]
    return {path: in_page(path.read_text(), name, f"\n{text.rstrip()}\n") for path, name, text in known}


def tables_block(report: Report, experiment: Experiment) -> str:
    """The tables on the page of an experiment that have trained runs, and how many of its runs are trained."""
    begun = {"", *report.gathered.runs.dropna(subset="device")["experiment"]}
    shown = [table for table in report.tables if table.experiment in begun]
    tables = [table for table in shown if table.name.removesuffix("_part") in experiment.tables]
    texts = [f"**{table.title}**\n\n{table.untitled()}" for table in tables]
    if len(tables) == 1:
        texts = [tables[0].untitled()]
    if tables and (progress := report.progress(experiment.name)):
        texts.insert(0, f"{progress}\n")
    return "\n".join(texts)


def main_block(report: Report) -> str:
    """The main table with the paper's rows, the figure of parameters for real GLUE, and the path of the full report."""
    tables = {table.name: table for table in report.tables}
    main = tables.get("table2") or tables.get("table2_part")
    if main is None:
        return ""
    above = (main.banner, main.above, report.progress(*MAIN))
    lines = [line for text in above if text for line in (text, "")]
    lines += [markdown(tables.get("table2_paper", main).cells, main.words), main.notes[0], ""]
    figure = main.name.replace("table2", "parameters")  # with the same kind of train rows
    if figure in main.figures and not any(verdict.not_glue for verdict in report.verdicts):
        path = f"../../results/{report.name}/figures/{figure}.png"
        lines += [f"![Trainable parameters against the average score]({path})", ""]
    lines.append(f"All tables, figures and runs: `results/{report.name}/report.html`, one page that opens offline.")
    return "\n".join(lines)


def figure_json(figure: Figure) -> bytes:
    return (json.dumps(figure, allow_nan=False, ensure_ascii=False) + "\n").encode()


def draw_changed(stem: Path, figure: Figure) -> None:
    """Write a figure's data and pictures next to each other, unless they are there already.

    A picture of unchanged data is kept, because another release of matplotlib would write other bytes.
    """
    data, content = stem.with_suffix(".json"), figure_json(figure)
    if (
        not all(stem.with_suffix(f".{form}").exists() for form in ("json", *forms(figure)))
        or data.read_bytes() != content
    ):
        from lora.report.plots import draw  # loads matplotlib

        for form, picture in draw(figure).items():
            write_atomically(stem.with_suffix(f".{form}"), picture)
        write_atomically(data, content)


def read_pictures(report: Report, folder: Path) -> dict[str, bytes]:
    """Name -> SVG of every picture below `folder`."""
    names = [f"{key}.{form}" for key, figure in report.figures.items() for form in forms(figure)]
    return {name[:-4]: (folder / "figures" / name).read_bytes() for name in names if name.endswith(".svg")}


def write_report(report: Report, folder: Path) -> None:
    """Write every file of a report below `folder`, and draw the figures whose data changed."""
    content = files(report)
    for key, figure in report.figures.items():
        draw_changed(folder / "figures" / key, figure)
    pictures = read_pictures(report, folder)
    for name, written in (content | {"report.html": page(report, pictures).encode()}).items():
        write_atomically(folder / name, written)
    kept = {*content, *(f"figures/{key}.{form}" for key in pictures for form in ("png", "svg"))}
    for part in ("tables", "claims", "figures"):
        for path in (folder / part).glob("*"):
            if f"{part}/{path.name}" not in kept:  # made from records that no longer exist
                path.unlink()


def options(parser: argparse.ArgumentParser) -> None:
    profile_options(parser)
    parser.add_argument("--pages", action="store_true", help="write the committed files and pages (make tables)")
    parser.add_argument("--latex", action="store_true", help="write the main tables in LaTeX below results/export")
    parser.add_argument("--csv", action="store_true", help="write every run and cell as CSV below results/export")
    parser.add_argument("--brief", action="store_true", help="do not print the tables: the sweep has")


def main(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 complete; 1 a run is missing or failed, or a file was excluded or lacks runs; 2 an invalid call."""
    words = arguments.overrides
    selects = bool(selecting(arguments.overrides))
    places = [word for word in words if word.startswith(PLACES)]
    report = build_report(arguments.profile, places)  # the page has all runs
    if not report.state.ok and place(words, "task"):  # without a plan, a user's task is known by its file alone
        report = build_report(arguments.profile, [*places, *(word for word in words if word.startswith("task="))])
    gathered = report.gathered
    if not gathered.state.ok:
        known = (gathered.reference / gathered.profile).exists()
        shown = f"; python -m lora report {REFERENCE}/{gathered.profile} shows the committed ones" if known else ""
        again = ["runtime.retry_failed=true"] if gathered.state.failed else []
        why = next(iter(report.problems), trained_by(gathered.folder, gathered.profile, [*words, *again]))
        raise UserError(f"{gathered.folder} holds no finished run of what was asked for: {why}{shown}")
    if arguments.pages and (arguments.overrides or not gathered.is_reference):
        raise UserError(f"--pages writes the committed files: it takes {REFERENCE}/<profile>, and no overrides")
    written = arguments.pages or not gathered.is_reference
    if written:
        write_report(report, gathered.folder)
    for path, content in pages(report).items() if arguments.pages else ():
        write_changed(path, content.encode())
    if not arguments.brief:
        # what the folder's analyses lack, they lack for a selection too
        report = replace(build_report(arguments.profile, words), analyses=report.analyses) if selects else report
        show(report)
    for wanted, export in ((arguments.latex, latex_files), (arguments.csv, csv_files)):
        given = place(words, "runtime.results")  # a folder of its own, which keeps its exports
        below = gathered.folder / "export" if given else gathered.results / "export" / gathered.name
        for file, text in export(report).items() if wanted else ():
            write_atomically(below / file, text.encode())
            print(f"written: {below / file}")
    print(f"page: {gathered.folder / 'report.html'}{'' if written else ' (as committed: nothing was written)'}")
    failed = len(report.state.failed)
    missing = len(report.state.missing)
    left_out = len(report.problems)
    if failed or missing or left_out:
        print(f"incomplete: {failed} failed, {missing} missing, {left_out} files left out", file=sys.stderr)
        return 1
    return 0


def analyse_own(profile: str, words: Sequence[str]) -> bool:
    """Compute what needs the rows of a launch's own tasks, for all of their runs, if it has them. Returns: Whether that
    was possible."""
    print("computing baselines, errors and intervals over the dev rows ...", file=sys.stderr, flush=True)
    try:
        report = build_report(profile, [word for word in words if word.startswith((*PLACES, "task="))])
        dev_intervals.write_intervals(report, dev_intervals.read_dev_labels(report.gathered))
        return own_rows.write_rows(report.gathered) > 0
    except UserError as error:
        print(f"no baselines, errors and intervals for other rows: {error}", file=sys.stderr)
        return False


def print_sweep(
    profile: str, arguments: Sequence[str], brief: bool = False, runtime: RuntimeConfig | None = None
) -> None:
    """Print the tables of a sweep at its end and, unless `brief`, the next command. `arguments`: the sweep's.
    `runtime`: where W&B gets a copy of the tables and figures, if it gets one of the runs."""
    own = [argument for argument in arguments if not argument.startswith("profile=")]
    named = place(own, "experiment")
    try:
        report = build_report(profile, own)
        if report.gathered.is_own and analyse_own(profile, own):
            report = build_report(profile, own)
        show(report, named.split(",") if named else MAIN)
    except UserError as error:  # the runs themselves have ended, and their records exist
        print(f"no table of this sweep: {error}", file=sys.stderr)
        return
    if runtime is not None and runtime.tracking != "off":
        log_report(report, runtime)
    command = shlex.join([sys.executable, "-m", "lora", "report", profile, *own])
    if not brief:
        print(f"next: {command}  # figures and report.html")
