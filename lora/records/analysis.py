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
from lora.files import exclusive, read_object, write_atomically
from lora.records.record import RunRecord, load_records

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
OF_RUNS = (EXAMPLES, OWN_ROWS)  # whose entries each name their runs


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
    """Read the analyses that exist. What was made from other records is excluded and reported in `problems`.

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
        stale = sorted(run for run, digest in content["made_from"].items() if made.get(run) != digest)
        if file in OF_RUNS:  # entries of runs that were forgotten are dropped without a message
            current[file] = current_entries(file, content, made)
            stale = [run for run in stale if run in made]
        older = any(key not in entry for entry in content["entries"])
        if stale or older:
            origin = f"from another training of {', '.join(stale[:3])}" if stale else "by an older version"
            problems.append(f"analysis/{file} was made {origin}: rebuild it with {command(name)}")
        else:
            current.setdefault(file, content["entries"])
    examples = {comparison_key(entry["pairs"], entry["score"]): entry for entry in current.get(EXAMPLES, ())}
    checks = {"swap": tuple(current[SWAP])} if SWAP in current else {}
    subspaces, subtraction = (tuple(current.get(file, ())) for file in (SUBSPACES, SUBTRACTION))
    own_rows = {entry["task"]: entry for entry in current.get(OWN_ROWS, ())}
    return Analyses(examples, subspaces, subtraction, own_rows, checks, tuple(problems))


def add_entries(path: Path, new: Iterable[Mapping[str, Any]], key_of: Callable[[Mapping[str, Any]], Any]) -> None:
    """Add entries to an analysis file. Each replaces an earlier one of its key. The others stay, since a report may be
    of a selection or of other tasks, but for those of an older version and of records that have changed."""
    of_record, *_ = ANALYSIS_FILES[path.name]
    with exclusive(path.with_suffix(".lock")):  # another launch may add those of its task
        earlier = read_object(path) if path.exists() else {"entries": [], "made_from": {}}
        finished = (record for record in load_records(path.parent.parent)[0] if record.status == "ok")
        made = {record.run_id: getattr(record, of_record) for record in finished}
        kept = current_entries(path.name, earlier, made)
        entries = {key_of(entry): entry for entry in (*kept, *new) if run_ids_of(entry) <= made.keys()}
        made_from = {run_id: made[run_id] for entry in entries.values() for run_id in run_ids_of(entry)}
        write_atomically(path, analysis_json(made_from, [*entries.values()]))


def current_entries(file: str, content: Mapping[str, Any], made: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The entries of one of `OF_RUNS` whose runs all have the records that they were made from.

    Args:
        made: run_id -> what its record says now.
    """
    current = {run_id for run_id, digest in content["made_from"].items() if made.get(run_id) == digest}
    key = ANALYSIS_FILES[file][-1]
    return [entry for entry in content["entries"] if key in entry and run_ids_of(entry) <= current]


def run_ids_of(entry: Mapping[str, Any]) -> set[str]:
    """The runs of an entry of `OF_RUNS`."""
    groups = entry["pairs"] if "pairs" in entry else entry["runs"].values()
    return {run_id for group in groups for run_id in group}


def analysis_json(made_from: Mapping[str, str], entries: Sequence[Mapping[str, Any]]) -> bytes:
    """The content of an analysis file.

    Args:
        made_from: run_id -> the hashes that its record names (`ANALYSIS_FILES`).
    """
    content = {"made_from": dict(sorted(made_from.items())), "entries": entries}
    return (json.dumps(content, allow_nan=False, separators=(",", ":")).replace("},{", "},\n{") + "\n").encode()
