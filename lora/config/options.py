"""The command line's overrides: the groups and settings of conf/, how overrides are read, and what is refused."""

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from lora.config.run import RunConfig
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import METHODS

CONF = ROOT / "conf"
PATHS = ("task", "rates", "data.path", "model.path", "runtime.results", "runtime.outputs")
COUNTS = ("launcher.workers", "launcher.threads", "launcher.runs_per_job", "launcher.minutes")
COMPOSED = ("hparams.", "profile.", "protocol.", "launcher.")  # sections that conf/ makes settings from


@functools.cache
def describe_group(name: str) -> tuple[str, ...]:
    """The options of a config group: the names of its files in conf/. () if there is no such group."""
    return tuple(sorted(path.stem for path in (CONF / name).glob("*.yaml")))


def is_group(key: str) -> bool:
    return key.isidentifier() and key != "tasks" and bool(describe_group(key))


@functools.cache
def default_options() -> dict[str, str]:
    """Group -> the option that conf/config.yaml chooses."""
    defaults = yaml.safe_load((CONF / "config.yaml").read_bytes())["defaults"]
    return {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}


def chosen_option(group: str, overrides: Sequence[str]) -> str:
    """The option that overrides choose in a group, else the default one."""
    given = [override.split("=", 1)[1] for override in overrides if override.startswith(f"{group}=")]
    return given[-1] if given else default_options()[group]


@functools.cache
def setting_keys() -> tuple[str, ...]:
    """Every key that a run, a method or a launcher may have, in the order of conf/."""
    sections = {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)}
    names = [field.name for field in dataclasses.fields(RunConfig)]
    keys = [name for name in names if name not in (*sections, "protocol", "method")] + ["rates"]
    keys += [f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)]
    keys += [f"method.{field.name}" for method in METHODS.values() for field in dataclasses.fields(method.config)]
    for path in sorted((CONF / "launcher").glob("*.yaml")):
        keys += [f"launcher.{key}" for key in yaml.safe_load(path.read_bytes())["launcher"]]
    return tuple(dict.fromkeys(keys))


@functools.lru_cache(maxsize=4096)
def parsed_override(override: str) -> Override:
    """Parse an override with Hydra.

    Raises: UserError: If it is not one.
    """
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UserError(f"{override!r} is not an override: {explain(error)}") from error


def read_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them. A path that Hydra's grammar refuses as typed is quoted, as in data.path=~/a.

    Raises: UserError: If one is no override, adds or removes a setting, names an unknown one, gives a group anything
        but an option's name, or a count of a launcher anything but a whole number >= 1.
    """
    return [_read(override) for override in overrides]


def _read(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals and not override.startswith("~"):
        near = f"; write profile={override}" if override in describe_group("profile") else ""
        raise UserError(f"{override!r} is not an override, setting=value{near}")
    try:
        parsed = parsed_override(override)
    except UserError:
        if key not in PATHS:
            raise
        override = f"{key}={quoted(value)}"
        parsed = parsed_override(override)
    key = parsed.key_or_group
    if parsed.package or not (is_group(key) or key in setting_keys() or key.startswith(COMPOSED[:3])):
        raise UserError(unknown_key(key))
    if parsed.type == OverrideType.DEL:
        raise UserError(f"{override!r} would remove a setting; give it a value ({key}=null turns some off)")
    if parsed.type != OverrideType.CHANGE:
        raise UserError(f"{override!r} would add {key}, but settings cannot be added: write {override.lstrip('+')}")
    values = override_values(parsed)
    if is_group(key) and override != "experiment=null":
        for value in values:
            if value not in describe_group(key):
                found = repr(value) if isinstance(value, str) else parsed.get_value_element_as_str()
                raise UserError(f"{key} must be one of {', '.join(describe_group(key))}, got {found}")
    for value in values if key in COUNTS else ():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{key} must be a whole number >= 1, got {value!r}")
    return override


def override_values(parsed: Override) -> list[Any]:
    """The values of an override: several if it is a list such as seed=1,2."""
    return list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]


def values_given(key: str, overrides: Sequence[str]) -> list[Any]:
    """All values that overrides give to a key."""
    given = [override for override in overrides if override.startswith(f"{key}=")]
    return [value for override in given for value in override_values(parsed_override(override))]


def states_rate(overrides: Sequence[str]) -> bool:
    """Whether overrides set a learning rate, directly or in a row of conf/hparams."""
    keys = (override.split("=", 1)[0] for override in overrides)
    return any(key == "train.lr" or (key.startswith("hparams.") and key.endswith(".lr")) for key in keys)


def quoted(text: str) -> str:
    r"""A value in Hydra's single quotes: `\'` stands for a quote, and backslashes before a quote are doubled."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


# Messages


def unknown_key(key: str) -> str:
    """The message for a key that the configuration lacks, with the nearest setting if no choice of groups has it."""
    if key in setting_keys():
        return f"{key} is not a setting of what was chosen"
    last = {known.rpartition(".")[2]: known for known in reversed(setting_keys())}
    near = difflib.get_close_matches(key, setting_keys(), 1, 0.7)
    near = near or [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.7)]
    nearest = f"; the nearest is {near[0]}" if near else ""
    return f"{key} is not a setting{nearest} (python -m lora --cfg job lists them all)"


def explain(error: Exception) -> str:
    """A message of Hydra on one line, or in this project's form if a key is unknown."""
    unknown = re.search(r"Could not override '([\w.]+)'|full_key: ([\w.]+)", str(error))
    if unknown is not None:
        return unknown_key(unknown[1] or unknown[2])
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def no_rows(protocol: str, model: str, method: str) -> str:
    """The message for options of these groups without a file in conf/hparams/<protocol>/."""
    files = [(path.parent.name, path.stem) for path in sorted(Path(CONF, "hparams").glob("*/*.yaml"))]
    option, start = f"{model}_{method}", f"{model}_"
    if having := [name for name, stem in files if stem == option]:
        return f"protocol must be one that has rows for {option} ({', '.join(having)}), got {protocol!r}"
    methods = sorted({stem.removeprefix(start) for _, stem in files if stem.startswith(start)})
    return f"method must be one that a protocol has rows for with model={model} ({', '.join(methods)}), got {method!r}"
