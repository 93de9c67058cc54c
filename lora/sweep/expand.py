"""Expand the grids of experiments, narrowed by overrides, into runs, each with the overrides that compose it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lora.config.compose import compose_run, is_untuned, parent_overrides
from lora.config.folders import UnreadFolderError
from lora.config.labels import columns
from lora.config.options import CONF, describe_group, parsed_override
from lora.config.rates import pinned_rates, rates_setting
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.sweep.grids import (
    Block,
    Values,
    apply_overrides,
    grid,
    refuse_unknown,
    split_override,
)


@dataclass(frozen=True)
class PlannedRun:
    """One run that an experiment expects.

    Args:
        config: Its validated settings, with every `auto` resolved and the tuned rate, if any.
        overrides: The overrides that compose it from conf/.
        experiments: All experiments that expect it. A run shared by several is trained once.
        parent: The run_id of the MNLI run that it starts from, which is in the same sweep.
        train_rows: Size of the subset of the train split; None means the whole split.
        untuned: Whether its learning rate was not chosen for its user-defined task (`lora.config.compose.is_untuned`).
        examples: Number of train examples over all epochs, a measure of its length.
        tokens: Upper bound of the same in tokens, as if every example were padded to the maximum length.
    """

    run_id: str
    config: RunConfig
    overrides: tuple[str, ...]
    experiments: tuple[str, ...]
    model: str
    method: str
    slug: str
    task: str
    seed: int
    protocol: str
    start: str
    parent: str | None
    train_rows: int | None
    untuned: bool
    examples: int
    tokens: int

    @property
    def columns(self) -> dict[str, str]:
        """Its settings, by which it is told from other runs of its method."""
        return columns(self.config)


def read_profile(profile: str) -> dict[str, Any]:
    """The content of conf/profile/<profile>.yaml. Raises: UserError: If the profile does not exist."""
    if profile not in describe_group("profile"):
        raise UserError(f"profile {profile!r} does not exist; choose from {', '.join(describe_group('profile'))}")
    return yaml.safe_load((CONF / "profile" / f"{profile}.yaml").read_bytes())


def results_of(profile: str, overrides: Sequence[str]) -> str:
    """The results folder that the overrides name, otherwise the profile's."""
    given = [override for override in overrides if override.startswith("runtime.results=")]
    return str(parsed_override(given[-1]).value()) if given else f"results/{profile}"


def selected(profile: str, experiment: str, overrides: Sequence[str]) -> list[PlannedRun]:
    """The runs of an experiment that the overrides select. Empty if they name a value that its grid lacks."""
    given = dict(map(split_override, overrides))
    blocks, new = apply_overrides({experiment: grid(profile, experiment)}, given)
    return expand_blocks(profile, blocks) if blocks[experiment] and not new else []


def expand(
    profile: str, overrides: Sequence[str] = (), experiments: Sequence[str] | None = None, adhoc: bool = False
) -> list[PlannedRun]:
    """All runs of a profile, each once, in the order in which to train them.

    Args:
        overrides: Hydra overrides with one or several values (`seed=1,2`). They narrow the grids of the experiments
            (`lora.sweep.grids.apply_overrides`).
        experiments: Expand only these, and allow overrides to replace their values. None means the profile's own list.
        adhoc: Whether the overrides alone are the grid, without any experiment.
    Raises: UserError: If a named profile, experiment or option does not exist, no run is left, or a run is invalid.
        All invalid runs are listed.
    """
    read_profile(profile)  # raises if the profile does not exist
    runs = expand_blocks(profile, _blocks(profile, overrides, experiments, adhoc))
    if not runs:
        raise UserError(
            f"no run of profile {profile} has {', '.join(overrides)} together; give a list of values for a grid of "
            f"your own, or leave out -m for a single run"
        )
    return runs


def expand_blocks(profile: str, blocks: Mapping[str, Sequence[Block]]) -> list[PlannedRun]:
    """All runs of these blocks, each once, in the order of `expand`.

    Args:
        blocks: Experiment -> its blocks.
    Raises: UserError: If a run is invalid; every mistake is listed once, with its first run.
    """
    found: dict[str, PlannedRun] = {}
    invalid: dict[str, list[str]] = {}  # mistake -> its runs
    for experiment, several in blocks.items():
        for block in several:
            for values in itertools.product(*block.axes.values()):
                settings = (f"{key}={value}" for key, value in zip(block.axes, values, strict=True))
                own = (f"profile={profile}", *settings)
                try:
                    config = compose_run(own)
                except UnreadFolderError:
                    raise
                except UserError as error:
                    invalid.setdefault(str(error), []).append(f"{experiment}: {' '.join(own)}")
                    continue
                if not _holds(config, own, block.held):
                    continue
                wanted = [(config, own)]
                if config.start == "mnli":
                    above = parent_overrides(own, config)
                    wanted.insert(0, (compose_run(above), above))
                for each, composed_by in wanted:
                    known = found.get(each.run_id)
                    names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                    saves = known is not None and "runtime.save_adapter=true" in known.overrides
                    by = known.overrides if saves else composed_by
                    found[each.run_id] = _planned(each, by, tuple(names))
    if invalid:
        lines = (
            f"{first}{f' and {len(others)} more' if others else ''}: {mistake}"
            for mistake, (first, *others) in invalid.items()
        )
        count = sum(map(len, invalid.values()))
        raise UserError(f"{count} run{'s are' if count > 1 else ' is'} invalid:\n" + "\n".join(lines))
    return sorted(found.values(), key=lambda run: -run.examples)  # longest first; the sort keeps the grid's order


def _blocks(
    profile: str, overrides: Sequence[str], experiments: Sequence[str] | None, adhoc: bool
) -> Mapping[str, Sequence[Block]]:
    given = dict(map(split_override, overrides))
    if adhoc:
        return {"adhoc": [Block(given)]}
    if experiments is not None:  # separately: a value that only another's grid has replaces values too
        return {name: apply_overrides({name: grid(profile, name)}, given)[0][name] for name in experiments}
    names = read_profile(profile)["experiments"]
    blocks, new = apply_overrides({name: grid(profile, name) for name in names}, given)
    refuse_unknown(profile, new)
    return blocks


def _holds(config: RunConfig, overrides: tuple[str, ...], held: Values) -> bool:
    """Whether a run already has one of the values of each setting: setting them gives the same run_id."""
    for values in itertools.product(*held.values()):
        settings = [f"{key}={value}" for key, value in zip(held, values, strict=True)]
        try:
            if compose_run([*overrides, *settings]).run_id == config.run_id:
                return True
        except UserError:  # the setting does not exist for this run, or the value is invalid for it
            continue
    return False


def _planned(config: RunConfig, overrides: tuple[str, ...], experiments: tuple[str, ...]) -> PlannedRun:
    rows = config.data.train_rows or TASKS[config.task].official_rows["train"]
    # a worker may be on another machine than the launcher, and the rates file may change before it starts
    pins = (
        pinned_rates(rates_setting(overrides, config.runtime.results), overrides, config),
        f"train.precision={config.train.precision}",
        f"train.kernels={config.train.kernels}",
        f"model.attention={config.model.attention}",
    )
    kept = tuple(override for override in overrides if not override.startswith("rates="))
    return PlannedRun(
        run_id=config.run_id,
        config=config,
        overrides=(*kept, *(pin for pin in pins if pin not in kept)),
        experiments=experiments,
        model=config.model.name,
        method=config.method.name,
        slug=config.method.slug,
        task=config.task,
        seed=config.seed,
        protocol=config.protocol,
        start=config.start,
        parent=config.start_run,
        train_rows=config.data.train_rows,
        untuned=TASKS[config.task].own is not None and is_untuned(overrides),
        examples=rows * config.train.epochs,
        tokens=rows * config.train.epochs * config.data.max_length,
    )
