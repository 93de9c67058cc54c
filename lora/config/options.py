"""The options of conf/'s groups, and the keys of all settings."""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from lora.config.run import RunConfig
from lora.files import ROOT
from lora.methods import METHODS

CONF = ROOT / "conf"


@functools.cache
def setting_keys() -> tuple[str, ...]:
    """Every key that a run, a method or a launcher may have, in the order of conf/."""
    sections = {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)}
    keys = [
        field.name for field in dataclasses.fields(RunConfig) if field.name not in (*sections, "protocol", "method")
    ]
    keys += ["rates"]
    keys += [f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)]
    keys += [f"method.{field.name}" for method in METHODS.values() for field in dataclasses.fields(method.config)]
    for path in sorted((CONF / "launcher").glob("*.yaml")):
        keys += [f"launcher.{key}" for key in OmegaConf.load(path).launcher]
    return tuple(dict.fromkeys(keys))


def unknown_key(key: str) -> str:
    """The message for a key that the configuration lacks, with the nearest setting if no choice of groups has it."""
    if key in setting_keys():
        return f"{key} is not a setting of what was chosen"
    last = {known.rpartition(".")[2]: known for known in reversed(setting_keys())}
    near = difflib.get_close_matches(key, setting_keys(), 1, 0.7)
    near = near or [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.7)]
    nearest = f"; the nearest is {near[0]}" if near else ""
    return f"{key} is not a setting{nearest} (python -m lora --cfg job lists them all)"


@functools.lru_cache(maxsize=4096)
def parsed_override(override: str) -> Override:
    """Parse an override with Hydra. Raises: HydraException: If it is not an override."""
    return OverridesParser.create().parse_override(override)


def values_given(key: str, overrides: Sequence[str]) -> list[Any]:
    """All values that overrides give to a key, as Hydra parses them."""
    given = [override for override in overrides if override.startswith(f"{key}=")]
    return [
        value
        for one in map(parsed_override, given)
        for value in (one.sweep_iterator() if one.is_sweep_override() else [one.value()])
    ]


def describe_group(name: str) -> list[str]:
    """The options of a config group: the names of its files in conf/."""
    return sorted(path.stem for path in (CONF / name).glob("*.yaml"))


@functools.lru_cache
def conf_files() -> tuple[Path, ...]:
    return tuple(sorted(CONF.rglob("*.yaml")))
