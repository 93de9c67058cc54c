"""The grids of the experiments, and how a command's values select from them or replace theirs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lora.config.compose import CONF, describe_group, parsed_override
from lora.errors import UserError

Values = dict[str, list[str]]  # key -> its values in command-line syntax
LEARNING_RATE = "learning_rate"  # the experiment that chose the rates of conf/; in no table of results


def grid(profile: str, experiment: str) -> list[Values]:
    """The blocks of an experiment for a profile. Raises: UserError: If it has none for the profile."""
    blocks = _grids(experiment)
    if profile not in blocks:
        raise UserError(f"experiment {experiment} has no grid for profile {profile!r}; it has: {', '.join(blocks)}")
    return [
        {key: [*map(_text, values if isinstance(values, list) else [values])] for key, values in block.items()}
        for block in blocks[profile]
    ]


@functools.cache
def _grids(experiment: str) -> dict[str, list[dict[str, Any]]]:
    return yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_bytes())["grid"]


def experiments_of(profile: str) -> list[str]:
    """The experiments that have a grid for a profile."""
    return [name for name in describe_group("experiment") if profile in _grids(name)]


def values_of(key: str, blocks: Sequence[Values]) -> list[str]:
    """All values of a key in the blocks, each once."""
    return list(dict.fromkeys(value for block in blocks for value in block.get(key, ())))


def new_values(key: str, values: Sequence[str], blocks: Sequence[Values]) -> list[str]:
    """The values that no block has, of a key that some block names. [] for any other key."""
    known = values_of(key, blocks)
    return [value for value in values if known and not any(same_value(key, value, other) for other in known)]


def narrowed(grids: Mapping[str, Sequence[Values]], given: Values) -> dict[str, list[Values]]:
    """The grids with a command's values.

    Values that the grids have select: blocks without any of them drop out. Otherwise, the values replace those of every
    block that names the key. A key that no block names is set in all blocks.

    Args:
        grids: Experiment -> its blocks.
    """
    every = [block for blocks in grids.values() for block in blocks]
    kept = {name: [dict(block) for block in blocks] for name, blocks in grids.items()}
    for key, values in given.items():
        known = values_of(key, every)
        replaces = not known or new_values(key, values, every)
        for block in (block for blocks in kept.values() for block in blocks if key in block or not known):
            own = block.get(key, ())
            block[key] = values if replaces else [v for v in own if any(same_value(key, v, one) for one in values)]
    return {name: [block for block in blocks if all(block.values())] for name, blocks in kept.items()}


@functools.lru_cache(maxsize=4096)
def same_value(key: str, one: str, other: str) -> bool:
    """Whether Hydra parses two texts, such as 1e-3 and 0.001, to the same value of a key."""
    return one == other or parsed_override(f"{key}={one}").value() == parsed_override(f"{key}={other}").value()


def split_override(override: str) -> tuple[str, list[str]]:
    """Split `key=a,b` into its key and values. Commas inside brackets and quotes do not split."""
    parsed = parsed_override(override)
    key, _, text = override.partition("=")
    return key, list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [text]


def _text(value: Any) -> str:
    """A YAML value in Hydra's command-line syntax."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
