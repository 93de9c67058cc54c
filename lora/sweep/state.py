"""Which runs have a record, and how long a run takes by the records of others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora.config.run import PlannedRun
from lora.files import RESULTS
from lora.records.record import RunRecord, load_records


@dataclass(frozen=True)
class State:
    """The records of a sweep's runs.

    Args:
        extra: run_ids of records outside the sweep.
        problems: One message per file that is not a record.
    """

    ok: dict[str, RunRecord]
    failed: dict[str, RunRecord]
    missing: tuple[PlannedRun, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]


def sweep_state(runs: Iterable[PlannedRun], records: Sequence[RunRecord], problems: Sequence[str]) -> State:
    by_id, wanted = {record.run_id: record for record in records}, {run.run_id: run for run in runs}
    return State(
        ok={run_id: one for run_id, one in by_id.items() if run_id in wanted and one.status == "ok"},
        failed={run_id: one for run_id, one in by_id.items() if run_id in wanted and one.status == "failed"},
        missing=tuple(run for run_id, run in wanted.items() if run_id not in by_id),
        extra=tuple(sorted(set(by_id) - set(wanted))),
        problems=tuple(problems),
    )


def own_records(results: str | Path) -> list[RunRecord]:
    """The user's successful records, from which a run's time can be estimated: other machines made the reference."""
    folders = {path.parent.resolve() for path in RESULTS.glob("*/runs")} | {Path(results).resolve()}
    return [record for folder in sorted(folders) for record in load_records(folder)[0] if record.status == "ok"]


def estimator(known: Iterable[RunRecord]) -> Callable[[PlannedRun], float | None]:
    """A function that estimates a run's time from records.

    Returns: Run -> the median seconds per train example of the records of the same model, task and method, else of the
        same model, times the run's examples. None without a record of the model.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for record in known:
        config = record.config
        seen = record.provenance["data"]["rows"]["train"] * config["train"]["epochs"]
        alike = (config["model"]["name"], config["task"], config["method"]["name"])
        for key in (alike, alike[:1]):
            rates.setdefault(key, []).append(record.seconds / seen)
    medians = {key: sorted(values)[len(values) // 2] for key, values in rates.items()}

    def seconds(run: PlannedRun) -> float | None:
        rate = medians.get((run.model, run.task.name, run.method), medians.get((run.model,)))
        return None if rate is None else rate * run.examples

    return seconds
