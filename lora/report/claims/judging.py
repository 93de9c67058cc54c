"""Read, judge and date every claim on a profile's records."""

import functools
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from lora.files import ROOT, read_object
from lora.records.analysis import Analyses
from lora.report.claims.statements import read_claims
from lora.report.claims.verdicts import Verdict, judge
from lora.report.gather import Gathered


def verdicts(gathered: Gathered, analyses: Analyses) -> list[Verdict]:
    """The dated verdicts. Raises: UserError: If a claims file is invalid, or names a cell that no experiment plans."""
    judged = judge(read_claims(), gathered.planned, gathered.frame, gathered.efficiency, analyses.checks)
    made_with = commits(gathered)
    return [replace(verdict, stated_later=stated_later(verdict, made_with)) for verdict in judged]


def stated_later(verdict: Verdict, made_with: Mapping[str, str | None]) -> bool | None:
    """Whether the claim was stated later than some of its runs: their code does not have the commit that stated it.

    Args:
        made_with: `commits`.
    Returns: None without runs, and if git does not know a run's commit (without git, or in a shallow clone).
    """
    runs = {run for finding in verdict.findings for run in finding.runs}
    has_it = {has_commit(made_with.get(run), verdict.claim.stated) for run in runs}
    return True if False in has_it else None if None in has_it or not has_it else False


@functools.cache
def has_commit(code: str | None, commit: str) -> bool | None:
    """Whether a commit is part of the history of some code's commit; None if git cannot tell."""
    if code is None or not commit:
        return None if commit else False
    try:
        done = subprocess.run(["git", "-C", ROOT, "merge-base", "--is-ancestor", commit, code], capture_output=True)
    except OSError:  # git is not installed
        return None
    return {0: True, 1: False}.get(done.returncode)


def commits(gathered: Gathered) -> dict[str, str | None]:
    """run_id, or measured file as findings name it, -> commit of the code that made it."""
    found = {run_id: record.provenance.get("code", {}).get("commit") for run_id, record in gathered.state.ok.items()}
    for path in gathered.efficiency.glob("**/summary.json"):
        about = read_object(path).get("about")
        code = about.get("code") if isinstance(about, dict) else None
        name = str(path.relative_to(gathered.efficiency.parent))
        found[name] = code.get("commit") if isinstance(code, dict) else None
    return found
