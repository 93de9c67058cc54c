"""`python -m lora report PROFILE`: build tables, verdicts, figures and the page from a profile's records.

The files of the committed runs, `reference/<profile>`, are tracked: only --pages, given by `make tables`, writes them.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from lora.errors import UserError
from lora.files import REFERENCE, write_atomically
from lora.report.build import build
from lora.report.gather import options as profile_options
from lora.report.terminal import show
from lora.report.write import pages, write


def options(parser: argparse.ArgumentParser) -> None:
    profile_options(parser)
    parser.add_argument(
        "--pages",
        action="store_true",
        help="write the committed files of reference/<profile>, and its blocks in the README and experiments/ (make "
        "tables)",
    )
    parser.add_argument("--plain", action="store_true", help="print Markdown, as into a file")
    parser.add_argument("--brief", action="store_true", help="do not print the tables: the sweep has")


def main(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 complete; 1 a run is missing or failed, or a file was excluded; 2 an invalid call."""
    report = build(arguments.profile, arguments.overrides)
    gathered = report.gathered
    if not gathered.state.ok:
        known = (gathered.reference / gathered.profile).exists()
        shown = f"; python -m lora report {REFERENCE}/{gathered.profile} shows the committed ones" if known else ""
        raise UserError(
            f"{gathered.folder} holds no finished run of what was asked for: make reproduce-glue "
            f"PROFILE={gathered.profile} trains them{shown}"
        )
    if arguments.pages and (arguments.overrides or not gathered.is_reference):
        raise UserError(f"--pages writes the committed files: it takes {REFERENCE}/<profile>, and no overrides")
    written = arguments.pages or not gathered.is_reference
    if written:
        write(report, gathered.folder)
    for path, content in pages(report).items() if arguments.pages else ():
        if content != path.read_text():
            write_atomically(path, content.encode())
    if not arguments.brief:
        show(report, plain=arguments.plain)
    print(f"page: {gathered.folder / 'report.html'}{'' if written else ' (as committed: nothing was written)'}")
    failed, missing, left_out = len(report.state.failed), len(report.state.missing), len(report.problems)
    if failed or missing or left_out:
        print(f"incomplete: {failed} failed, {missing} missing, {left_out} files left out", file=sys.stderr)
        return 1
    return 0


def print_sweep(profile: str, arguments: Sequence[str]) -> None:
    """Print the tables of a sweep at its end, and the next command. `arguments`: the sweep's."""
    own = [argument for argument in arguments if not argument.startswith("profile=")]
    try:
        show(build(profile, own), of_sweep=True)
    except UserError as error:  # the runs themselves have ended, and their records exist
        print(f"no table of this sweep: {error}", file=sys.stderr)
        return
    command = shlex.join([sys.executable, "-m", "lora", "report", profile, *own])
    print(f"next: {command}  # figures and report.html")
