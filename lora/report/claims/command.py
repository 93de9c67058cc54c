"""`python -m lora claims PROFILE`: judge each of the paper's sentences on a profile's records."""

import argparse
import sys

from lora.records.analysis import read_analyses
from lora.report.claims.judging import verdicts
from lora.report.claims.shown import text
from lora.report.gather import gather
from lora.report.gather import options as options


def main(given: argparse.Namespace) -> int:
    """Exit codes: 0 done, whatever the verdicts; 1 a broken file or stale analysis was excluded; 2 an invalid claim."""
    gathered = gather(given.profile, given.overrides)
    analyses = read_analyses(gathered.folder / "analysis", gathered.state.ok)
    print(text(verdicts(gathered, analyses)))
    problems = [*gathered.state.problems, *analyses.problems]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if problems else 0
