"""Expand grids into the runs of a sweep, each with its settled configuration."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora.config.compose import compose_family
from lora.config.labels import columns
from lora.config.options import chosen_option, is_group, parsed_override
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.sweep.grids import Block, Values


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
    train_rows = property(lambda self: self.config.data.train_rows, doc="Size of the subset; None: the whole split.")
    examples = property(lambda self: self.config.train_rows * self.config.train.epochs, doc="Over all epochs.")
    tokens = property(lambda self: self.examples * self.config.data.max_length, doc="The same, at full length.")
    columns = property(lambda self: columns(self.config), doc="The settings by which runs of a method differ.")


def expand_blocks(profile: str, blocks: Mapping[str, Sequence[Block]]) -> list[PlannedRun]:
    """All runs of these blocks, each once, in the order in which to train them: the longest first.

    A run that starts from an MNLI run brings that run along.

    Args:
        blocks: Experiment -> its blocks.
    Raises: UserError: If a run is invalid; every mistake is listed once, with its first run unless it is that of all.
    """
    planned: dict[str, PlannedRun] = {}
    invalid: dict[str, list[str]] = {}  # mistake -> its runs
    for experiment, several in blocks.items():
        for block in several:
            for values in itertools.product(*block.axes.values()):
                settings = (f"{key}={value}" for key, value in zip(block.axes, values, strict=True))
                overrides = (f"profile={profile}", *settings)
                try:
                    family = compose_family(overrides)
                except UserError as error:
                    invalid.setdefault(str(error), []).append(f"{experiment}: {' '.join(overrides)}")
                    continue
                if has_values(family[-1], overrides, block.only):
                    for config in family:
                        known = planned.get(config.run_id)
                        names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                        saves = config.runtime.save_adapter or (known is not None and known.config.runtime.save_adapter)
                        runtime = dataclasses.replace(config.runtime, group=next(iter(names)), save_adapter=saves)
                        new = dataclasses.replace(config, runtime=runtime)
                        planned[config.run_id] = PlannedRun(config.run_id, new, tuple(names))
    if len(invalid) == 1 and not planned:
        raise UserError(next(iter(invalid)))
    if invalid:
        lines = (
            f"{first}{f' and {len(others)} more' if others else ''}: {mistake}"
            for mistake, (first, *others) in invalid.items()
        )
        raise UserError(f"{sum(map(len, invalid.values()))} runs are invalid:\n" + "\n".join(lines))
    return sorted(planned.values(), key=lambda run: -run.examples)  # the sort keeps the grid's order


def has_values(config: RunConfig, overrides: Sequence[str], only: Values) -> bool:
    """Whether a run has one of the given values of every key."""
    for key, values in only.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name, None)
        value = chosen_option(key, overrides) if is_group(key) else list(value) if isinstance(value, tuple) else value
        if value not in [parsed_override(f"{key}={text}").value() for text in values]:
            return False
    return True


def distinct(runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> list[RunConfig]:
    """One run per task, number of train rows, and encoder, for `verify_inputs` before a sweep: one to train, if any."""
    return list({(run.task, run.train_rows, run.model): run.config for run in (*runs, *todo)}.values())
