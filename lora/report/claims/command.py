"""`python -m lora claims PROFILE`: what the records say to each of the paper's sentences."""

import argparse
import sys

from lora.records.analysis import Analyses, read_analyses
from lora.report.claims.costs import read_json
from lora.report.claims.history import with_history
from lora.report.claims.shown import text
from lora.report.claims.statements import Claim, check_cells, read_claims
from lora.report.claims.verdicts import Verdict, judge
from lora.report.select import Gathered, gather, known_cells


def verdicts(gathered: Gathered, analyses: Analyses) -> list[Verdict]:
    """Every claim, read, checked and judged on a profile's records.

    Raises: UserError: If a claims file is not as it must be, or names a cell that no profile plans.
    """
    claims = checked_claims()
    found = judge(claims, gathered.planned, gathered.frame, gathered.efficiency, analyses.checks)
    return with_history(found, made_with(gathered))


def made_with(gathered: Gathered) -> dict[str, str | None]:
    """run_id, or measured file as findings name it, -> the commit of the code that it was made with."""
    commits = {run_id: record.provenance["code"]["commit"] for run_id, record in gathered.state.ok.items()}
    for path in gathered.efficiency.glob("**/summary.json"):
        about = read_json(path).get("about")
        code = about.get("code") if isinstance(about, dict) else None
        commits[str(path.relative_to(gathered.efficiency.parent))] = (
            code.get("commit") if isinstance(code, dict) else None
        )
    return commits


def checked_claims() -> list[Claim]:
    claims = read_claims()
    check_cells(claims, known_cells())
    return claims


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")


def main(given: argparse.Namespace) -> int:
    """Exit codes: 0 done, whatever the verdicts; 1 runs/ holds a file that is no record; 2 a mistake in a claim."""
    gathered = gather(given.profile, given.overrides)
    analyses = read_analyses(gathered.folder / "analysis", gathered.state.ok)
    print(text(verdicts(gathered, analyses)))
    problems = [*gathered.state.problems, *analyses.problems]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if problems else 0
