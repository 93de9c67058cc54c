"""Expand grids into the runs of a sweep, each with its settled configuration, and find which of them have a record."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.config.compose import chosen_option, compose_family, is_group, parsed_override
from lora.config.labels import columns
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.records.record import RunRecord, load_records
from lora.sweep.grids import Values


@dataclass(frozen=True)
class PlannedRun:
    """One run that an experiment expects.

    Args:
        config: Its validated settings, with every `auto` resolved and the tuned rate, if any.
        experiments: All experiments that expect it. A run shared by several is trained once.
    """

    run_id: str
    config: RunConfig
    experiments: tuple[str, ...]

    model = property(lambda self: self.config.model.name)
    method = property(lambda self: self.config.method.name)
    slug = property(lambda self: self.config.method.slug)
    task = property(lambda self: self.config.task)
    seed = property(lambda self: self.config.seed)
    protocol = property(lambda self: self.config.protocol)
    start = property(lambda self: self.config.start)
    parent = property(lambda self: self.config.start_run, doc="The MNLI run that it starts from, in the same sweep.")
    examples = property(lambda self: self.config.train_rows * self.config.train.epochs, doc="Over all epochs.")
    columns = property(lambda self: columns(self.config), doc="The settings by which runs of a method differ.")


def expand_blocks(profile: str, grids: Mapping[str, Sequence[Values]], only: Values | None = None) -> list[PlannedRun]:
    """All runs of these grids, each once, in the order in which to train them: the longest first.

    A run that starts from an MNLI run brings that run along.

    Args:
        grids: Experiment -> its blocks. The runs of a block are all combinations of its values.
        only: Key -> the values that a run must have if its block leaves the key to conf/.
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
                    family = compose_family([f"profile={profile}", *settings])
                except UserError as error:
                    invalid.setdefault(str(error), f"{experiment} {' '.join(settings)}")
                    continue
                for config in family if has_values(family[-1], settings, left) else ():
                    known = planned.get(config.run_id)
                    names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                    saves = config.runtime.save_adapter or (known is not None and known.config.runtime.save_adapter)
                    runtime = dataclasses.replace(config.runtime, group=next(iter(names)), save_adapter=saves)
                    new = dataclasses.replace(config, runtime=runtime)
                    planned[config.run_id] = PlannedRun(config.run_id, new, tuple(names))
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


def state(runs: Sequence[PlannedRun], results: str | Path) -> State:
    return state_of(runs, *load_records(results))


def state_of(runs: Iterable[PlannedRun], records: Sequence[RunRecord], problems: Sequence[str]) -> State:
    by_id, wanted = {record.run_id: record for record in records}, {run.run_id: run for run in runs}
    return State(
        ok={i: r for i, r in by_id.items() if i in wanted and r.status == "ok"},
        failed={i: r for i, r in by_id.items() if i in wanted and r.status == "failed"},
        missing=tuple(run for run_id, run in wanted.items() if run_id not in by_id),
        extra=tuple(sorted(set(by_id) - set(wanted))),
        problems=tuple(problems),
    )
