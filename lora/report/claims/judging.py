"""Read, check, judge and date every claim on a profile's records."""

from lora.files import read_object
from lora.records.analysis import Analyses
from lora.report.claims.history import with_history
from lora.report.claims.known import check_cells, known_cells
from lora.report.claims.statements import Claim, read_claims
from lora.report.claims.verdicts import Verdict, judge
from lora.report.select import Gathered


def verdicts(gathered: Gathered, analyses: Analyses) -> list[Verdict]:
    """The dated verdicts. Raises: UserError: If a claims file is invalid, or names a cell that no experiment plans."""
    found = judge(checked_claims(), gathered.planned, gathered.frame, gathered.efficiency, analyses.checks)
    return with_history(found, made_with(gathered))


def checked_claims() -> list[Claim]:
    claims = read_claims()
    check_cells(claims, known_cells())
    return claims


def made_with(gathered: Gathered) -> dict[str, str | None]:
    """run_id, or measured file as findings name it, -> commit of the code that made it."""
    commits = {run_id: record.provenance["code"]["commit"] for run_id, record in gathered.state.ok.items()}
    for path in gathered.efficiency.glob("**/summary.json"):
        about = read_object(path).get("about")
        code = about.get("code") if isinstance(about, dict) else None
        commits[str(path.relative_to(gathered.efficiency.parent))] = (
            code.get("commit") if isinstance(code, dict) else None
        )
    return commits
