"""Results computed once from rows, predictions and adapters, and stored in results/<profile>/analysis/.

Tables and figures are rebuilt from these files, without GLUE or the adapters.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora.errors import UserError
from lora.files import read_object
from lora.records.record import RunRecord

Compared = tuple[frozenset[tuple[str, ...]], str]  # pairs of run_ids, and the score: a column of `lora.report.runs`
EXAMPLES, SUBSPACES, SWAP, SUBTRACTION = "examples.json", "subspaces.json", "swap.json", "subtraction.json"
OWN_ROWS, ERRORS = "rows.json", "{task}.errors.csv"
# file -> the attribute of records whose hashes it was made from, the command that makes it, and a key of its entries
ANALYSIS_FILES = {
    EXAMPLES: ("scored", "analyse intervals", "score"),
    SUBSPACES: ("adapter", "analyse subspaces", "kind"),
    SWAP: ("adapter", "analyse swaps", "label"),
    SUBTRACTION: ("adapter", "analyse swaps", "label"),
    OWN_ROWS: ("scored", "analyse rows", "on"),
}


@dataclass(frozen=True)
class Analyses:
    """The analyses of a profile that were made from its current records.

    Args:
        examples: `comparison_key` of a comparison of runs -> the bounds of its intervals over dev rows
            (`lora.report.analyses.dev_intervals`).
        subspaces: Cases of `lora.report.analyses.subspaces`.
        subtraction: Cases of `lora.report.analyses.swaps.subtraction`.
        own_rows: User's task -> what `lora.report.analyses.own_rows` found.
        checks: Name of a check -> its cases, each with label, trials, failures and runs.
        problems: One line for each file that was excluded.
    """

    examples: dict[Compared, Mapping[str, Any]] = field(default_factory=dict)
    subspaces: tuple[Mapping[str, Any], ...] = ()
    subtraction: tuple[Mapping[str, Any], ...] = ()
    own_rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checks: dict[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def over_rows(
        self, runs: Iterable[Sequence[str]], score: str, sampled: Literal["examples", "both"] = "both"
    ) -> tuple[float, float]:
        """The ends of a comparison's interval for other dev rows, with `both` for other seeds too; NaN if it was not
        computed. `runs`, `score`: as of `comparison_key`."""
        entry = self.examples.get(comparison_key(runs, score), {})
        low, high = (entry.get(f"{sampled}_{end}") for end in ("low", "high"))
        return (math.nan, math.nan) if low is None else (low, high)


def comparison_key(pairs: Iterable[Sequence[str]], score: str) -> Compared:
    """The key of a comparison of runs in `Analyses.examples`. `pairs`: the run_ids of one side and the other."""
    return frozenset(map(tuple, pairs)), score


def read_analyses(folder: Path, records: Mapping[str, RunRecord], command: Callable[[str], str]) -> Analyses:
    """Read the analyses that exist. A file made from other records is excluded and reported in `problems`.

    Args:
        command: From a command's name to what is typed (`lora.report.gather.Gathered.command`).
    Raises: UserError: If a file is not an analysis.
    """
    problems: list[str] = []
    current: dict[str, Any] = {}
    for file, (of_record, name, key) in ANALYSIS_FILES.items():
        if not (folder / file).exists():
            continue
        content = read_object(folder / file)
        if not isinstance(content.get("made_from"), dict) or not isinstance(content.get("entries"), list):
            raise UserError(f"{folder / file} is not an analysis: made_from must be an object and entries a list")
        made = {run_id: getattr(record, of_record) for run_id, record in records.items()}
        stale = sorted(run for run, digest in content["made_from"].items() if made.get(run, "") != digest)
        older = any(key not in entry for entry in content["entries"])
        if stale or older:
            origin = f"from another training of {', '.join(stale[:3])}" if stale else "by an older version"
            problems.append(f"analysis/{file} was made {origin}: rebuild it with {command(name)}")
        else:
            current[file] = content["entries"]
    examples = {comparison_key(entry["pairs"], entry["score"]): entry for entry in current.get(EXAMPLES, ())}
    checks = {"swap": tuple(current[SWAP])} if SWAP in current else {}
    subspaces, subtraction = (tuple(current.get(file, ())) for file in (SUBSPACES, SUBTRACTION))
    own_rows = {entry["task"]: entry for entry in current.get(OWN_ROWS, ())}
    return Analyses(examples, subspaces, subtraction, own_rows, checks, tuple(problems))


def still_current(earlier: Mapping[str, Any], file: str, records: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """The entries of an earlier analysis that stay beside new ones: a report may be of a selection, or of other tasks.
    None, if one of its records has changed; those of an older version go.

    Args:
        records: All finished runs of the profile.
    """
    of_record, _, key = ANALYSIS_FILES[file]
    made = {run_id: getattr(record, of_record) for run_id, record in records.items()}
    same = earlier["made_from"].items() <= made.items()
    return [entry for entry in earlier["entries"] if same and key in entry]


def analysis_json(made_from: Mapping[str, str], entries: list[dict[str, Any]]) -> bytes:
    """The content of an analysis file.

    Args:
        made_from: run_id -> the hashes that its record names (`ANALYSIS_FILES`).
    """
    content = {"made_from": dict(sorted(made_from.items())), "entries": entries}
    return (json.dumps(content, allow_nan=False, separators=(",", ":")).replace("},{", "},\n{") + "\n").encode()
