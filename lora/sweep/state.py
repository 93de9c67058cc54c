"""The state of a sweep: which of its runs have a record."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora.records.record import RunRecord, load_records
from lora.sweep.expand import PlannedRun


@dataclass(frozen=True)
class State:
    """The records of a sweep's runs.

    Args:
        ok, failed: run_id -> record.
        missing: Runs without a record.
        extra: run_ids of records outside the sweep.
        problems: One message per file that is not a record.
    """

    ok: dict[str, RunRecord]
    failed: dict[str, RunRecord]
    missing: tuple[PlannedRun, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]


def state(runs: Iterable[PlannedRun], results: str | Path) -> State:
    return state_of(runs, *load_records(results))


def state_of(runs: Iterable[PlannedRun], records: Sequence[RunRecord], problems: Sequence[str]) -> State:
    by_id = {record.run_id: record for record in records}
    runs = list(runs)
    wanted = {run.run_id for run in runs}
    return State(
        ok={i: r for i, r in by_id.items() if i in wanted and r.status == "ok"},
        failed={i: r for i, r in by_id.items() if i in wanted and r.status == "failed"},
        missing=tuple(run for run in runs if run.run_id not in by_id),
        extra=tuple(sorted(set(by_id) - wanted)),
        problems=tuple(problems),
    )
