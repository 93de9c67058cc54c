"""The grids of the experiments, and the rules by which a command's overrides change them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lora.config.options import CONF, describe_group, parsed_override
from lora.errors import UserError

Values = dict[str, list[str]]  # key -> its values in command-line syntax
LEARNING_RATE = "learning_rate"  # the experiment that chose the rates of conf/: no table of results has its runs


@dataclass(frozen=True)
class Block:
    """A product of settings.

    Args:
        axes: Key -> values. The runs are all combinations.
        held: Key -> accepted values. A run is kept only if it already has one of them for each key; nothing is set.
    """

    axes: Values
    held: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Replacement:
    """An override with values that no grid has.

    Args:
        new: The values that no grid has.
        kept: The override's other values, which a grid has. The new ones are added to them.
        existing: All values in the grids. Without `kept`, the new ones replace them.
    """

    key: str
    new: tuple[str, ...]
    kept: tuple[str, ...]
    existing: tuple[str, ...]
    experiments: tuple[str, ...]

    def __str__(self) -> str:
        one = len(self.new) == 1
        verb = ("it joins" if one else "they join") if self.kept else ("it replaces" if one else "they replace")
        return (
            f"{self.key}={','.join(self.new)} {'is' if one else 'are'} not in the grid of "
            f"{', '.join(self.experiments)}: {verb} {', '.join(self.kept or self.existing)}"
        )


def grid(profile: str, experiment: str) -> list[Values]:
    """The blocks of an experiment for a profile. Each is a product of overrides.

    Raises: UserError: If the experiment does not exist or has no grid for the profile.
    """
    if experiment not in describe_group("experiment"):
        raise UserError(
            f"experiment {experiment!r} does not exist; choose from {', '.join(describe_group('experiment'))}"
        )
    blocks = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))["grid"]
    if profile not in blocks:
        raise UserError(f"experiment {experiment} has no grid for profile {profile!r}; it has: {', '.join(blocks)}")
    return [
        {
            key: [_override_value(v) for v in (values if isinstance(values, list) else [values])]
            for key, values in block.items()
        }
        for block in blocks[profile]
    ]


@functools.cache
def profiles_of(experiment: str) -> tuple[str, ...]:
    """The profiles for which an experiment has a grid."""
    return tuple(yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_bytes())["grid"])


def apply_overrides(
    grids: Mapping[str, Sequence[Values]], given: Values
) -> tuple[dict[str, list[Block]], list[Replacement]]:
    """Narrow the grids of experiments to the requested values.

    A value that a grid has is selected. Blocks that vary the key without that value drop out. Blocks that do not vary
    the key keep the runs that have the value anyway. A value that no grid has replaces the values of the blocks that
    vary the key. A key that no block varies is set in all blocks.

    Args:
        grids: Experiment -> its blocks (`grid`).
        given: The overrides.
    Returns: Experiment -> its remaining blocks, and the replacements. Replacements should be allowed only for
        experiments that the command line names (`refuse_unknown`).
    """
    blocks = {name: [Block(dict(axes)) for axes in several] for name, several in grids.items()}
    replacements = []
    for key, values in given.items():
        varied = {name: own for name, several in grids.items() if (own := values_of(key, several))}
        if not varied:
            for several in blocks.values():
                for block in several:
                    block.axes[key] = values
            continue
        existing = list(dict.fromkeys(value for own in varied.values() for value in own))
        new = [value for value in values if not any(same_value(key, value, other) for other in existing)]
        if new:
            kept = tuple(value for value in values if value not in new)
            replacements.append(Replacement(key, tuple(new), kept, tuple(existing), tuple(varied)))
        for name, several in blocks.items():
            blocks[name] = [left for block in several if (left := _narrowed(block, key, values, new)) is not None]
    return blocks, replacements


def values_of(key: str, blocks: Sequence[Values]) -> list[str]:
    """All values of a key in the blocks, each once."""
    return list(dict.fromkeys(value for axes in blocks for value in axes.get(key, ())))


def _narrowed(block: Block, key: str, values: list[str], new: list[str]) -> Block | None:
    """A block narrowed to the given values of a key that some block varies. None if it has none of them."""
    if key not in block.axes:
        return Block(block.axes, {**block.held, key: values})
    own = [mine for mine in block.axes[key] if any(same_value(key, mine, value) for value in values)]
    if not own and len(new) < len(values):
        return None  # other blocks have the values
    return Block({**block.axes, key: [*own, *new]}, block.held)


def refuse_unknown(profile: str, replacements: Sequence[Replacement]) -> None:
    """Refuse replacements in a command that names no experiment.

    Raises: UserError: If there are any: an override has a value that no grid of the profile has.
    """
    if not replacements:
        return
    lines = [
        f"{one.key}={','.join(one.new)} is in no grid of profile {profile}: {', '.join(one.experiments)} "
        f"{'has' if len(one.experiments) == 1 else 'have'} {', '.join(one.existing)}"
        for one in replacements
    ]
    example = replacements[0]
    value = example.new[0]
    way_out = (
        f"Add experiment=NAME to run that experiment's grid with other values, give a list "
        f"({example.key}={value},...) for a grid of your own, or leave out -m for a single run"
    )
    if any(one.key == "task" for one in replacements):
        way_out += ". A task of your own has a grid with profile=own"
    raise UserError("\n".join([*lines, way_out]))


@functools.lru_cache(maxsize=4096)
def same_value(key: str, one: str, other: str) -> bool:
    """Whether Hydra parses two texts, such as 1e-3 and 0.001, to the same value of a key."""
    if one == other:
        return True
    return parsed_override(f"{key}={one}").value() == parsed_override(f"{key}={other}").value()


def split_override(override: str) -> tuple[str, list[str]]:
    """Split `key=a,b` into its key and values. Commas inside brackets do not split.

    Raises: UserError: If there is no `=`.
    """
    try:
        parsed = parsed_override(override)
    except HydraException as error:
        raise UserError(
            f"{override!r} is not an override of the form key=value: {str(error).splitlines()[0]}"
        ) from error
    key = override.split("=", 1)[0]
    if parsed.is_sweep_override():
        return key, list(parsed.sweep_string_iterator())
    return key, [override.split("=", 1)[1]]


def _override_value(value: Any) -> str:
    """A YAML value in Hydra's command-line syntax."""
    if isinstance(value, list):
        return f"[{','.join(map(_override_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_override_value(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
