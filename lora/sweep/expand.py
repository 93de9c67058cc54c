"""Expand grids into the runs of a sweep, each with its settled configuration, and find which of them have a record."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.config.compose import chosen_option, compose_family, is_group, parsed_override
from lora.config.run import PlannedRun, RunConfig
from lora.data.tasks import Task
from lora.errors import UserError
from lora.files import RESULTS
from lora.records.record import RunRecord, load_records

Values = dict[str, list[str]]  # key -> its values in command-line syntax


def expand_blocks(
    profile: str,
    grids: Mapping[str, Sequence[Values]],
    only: Values | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> list[PlannedRun]:
    """All runs of these grids, each once, in the order in which to train them: the longest first.

    A run that starts from an MNLI run brings that run along.

    Args:
        grids: Experiment -> its blocks. The runs of a block are all combinations of its values.
        only: Key -> the values that a run must have if its block leaves the key to conf/.
        tasks: As of `lora.config.compose.compose_family`.
    Raises: UserError: If a run is invalid; every mistake is listed once, with its first run.
    """
    planned: dict[str, PlannedRun] = {}
    invalid: dict[str, str] = {}  # mistake -> its first run
    for experiment, blocks in grids.items():
        for block in blocks:
            left = {key: values for key, values in (only or {}).items() if key not in block}
            for values in itertools.product(*block.values()):
                settings = [f"{key}={value}" for key, value in zip(block, values, strict=True)]
                try:
                    family = compose_family([f"profile={profile}", *settings], tasks)
                except UserError as error:
                    invalid.setdefault(str(error), f"{experiment} {' '.join(settings)}")
                    continue
                for run in family if has_values(family[-1].config, settings, left) else ():
                    config, known = run.config, planned.get(run.run_id)
                    names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                    saves = config.runtime.save_adapter or (known is not None and known.config.runtime.save_adapter)
                    runtime = dataclasses.replace(config.runtime, group=next(iter(names)), save_adapter=saves)
                    config = dataclasses.replace(config, runtime=runtime)
                    planned[run.run_id] = PlannedRun(config, run.task, tuple(names))
    if len(invalid) == 1 and not planned:
        raise UserError(next(iter(invalid)))
    if invalid:
        raise UserError("\n".join(f"{first}: {mistake}" for mistake, first in invalid.items()))
    return sorted(planned.values(), key=lambda run: -run.examples)  # the sort keeps the grid's order


def has_values(config: RunConfig, settings: Sequence[str], only: Values) -> bool:
    """Whether a run has one of the given values of every key."""
    for key, values in only.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name, None)
        value = chosen_option(key, settings) if is_group(key) else list(value) if isinstance(value, tuple) else value
        if value not in [parsed_override(f"{key}={text}").value() for text in values]:
            return False
    return True


# Their records.


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


def state_of(runs: Iterable[PlannedRun], records: Sequence[RunRecord], problems: Sequence[str]) -> State:
    by_id, wanted = {record.run_id: record for record in records}, {run.run_id: run for run in runs}
    return State(
        ok={i: r for i, r in by_id.items() if i in wanted and r.status == "ok"},
        failed={i: r for i, r in by_id.items() if i in wanted and r.status == "failed"},
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
