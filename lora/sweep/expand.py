"""Expand grids into the runs of a sweep, each with its settled configuration."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from lora.config.auto import Measure
from lora.config.compose import compose_family
from lora.config.run import PlannedRun
from lora.config.select import parse_value, setting_values
from lora.data.tasks import Task
from lora.errors import UserError

Values = dict[str, list[str]]  # key -> its values in command-line syntax


def expand_blocks(
    profile: str,
    grids: Mapping[str, Sequence[Values]],
    only: Values | None = None,
    tasks: Mapping[str, Task] | None = None,
    measure: Measure = "measured",
) -> list[PlannedRun]:
    """All runs of these grids, each once, in the order in which to train them: the longest first.

    A run that starts from an MNLI run brings that run along.

    Args:
        grids: Experiment -> its blocks. The runs of a block are all combinations of its values.
        only: Key -> the values that a run must have if its block leaves the key to conf/.
        tasks, measure: As of `lora.config.compose.compose_family`.
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
                    family = compose_family([f"profile={profile}", *settings], tasks, measure)
                except UserError as error:
                    invalid.setdefault(str(error), f"{experiment} {' '.join(settings)}")
                    continue
                for run in family if has_values(family[-1], left) else ():
                    config, known = run.config, planned.get(run.run_id)
                    names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                    saves = config.runtime.save_adapter or (known is not None and known.config.runtime.save_adapter)
                    runtime = dataclasses.replace(config.runtime, group=next(iter(names)), save_adapter=saves)
                    config = dataclasses.replace(config, runtime=runtime)
                    planned[run.run_id] = dataclasses.replace(run, config=config, experiments=tuple(names))
    if len(invalid) == 1 and not planned:
        raise UserError(next(iter(invalid)))
    if invalid:
        raise UserError("\n".join(f"{first}: {mistake}" for mistake, first in invalid.items()))
    return sorted(planned.values(), key=lambda run: -run.examples)  # the sort keeps the grid's order


def has_values(run: PlannedRun, only: Values) -> bool:
    """Whether a run has one of the given values of every key."""
    wanted = {key: [parse_value(text) for text in values] for key, values in only.items()}
    return all(any(value in wanted[key] for value in setting_values(run, key)) for key in wanted)
