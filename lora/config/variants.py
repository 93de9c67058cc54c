"""Distinguish runs of one method on one task by the settings that a grid or command line gives in addition to conf/."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lora.config.run import RunConfig

# Shown in other columns, or derived from other settings. All other settings that name a run are compared.
ELSEWHERE = ("seed", "start_run", "model.name")

Run = TypeVar("Run")


@dataclass(frozen=True)
class Variant:
    """The settings in which a run differs from the one that conf/ gives for its model, method, protocol and task.

    Args:
        given: `key=value` of each such setting.
        settings: `key=value` of every setting of the run; empty if they are not to be named.
    """

    given: tuple[str, ...]
    settings: tuple[str, ...]

    def without(self, *keys: str) -> "Variant":
        """The same run, without these keys among `given`."""
        return Variant(tuple(setting for setting in self.given if key_of(setting) not in keys), self.settings)


def variant(config: RunConfig, base: RunConfig) -> Variant:
    """The settings in which a run differs from `base`, except `ELSEWHERE` and those in its method's slug."""
    ours, theirs = flattened(config.settings()), flattened(base.settings())
    told = {*ELSEWHERE, *(f"method.{key}" for key in config.method.in_slug)}
    named = {key: f"{key}={plain(value)}" for key, value in ours.items() if key not in told}
    return Variant(tuple(text for key, text in named.items() if ours[key] != theirs.get(key)), tuple(named.values()))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{train: {lr: 1}}` as `{train.lr: 1}`. Mappings within a section stay whole."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and not prefix:
            found |= flattened(value, f"{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(plain, value))
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{plain(item)}" for key, item in value.items())
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)  # different values have different texts


def words(several: Iterable[Variant]) -> dict[Variant, str]:
    """Labels that distinguish the rows of one method in a table: what was given on top of conf/, where it varies.

    Runs with one label form a row. The modules that LoRA adapts are stated even if all runs share them, unless the
    slug states them.

    Args:
        several: The variants of the runs of all rows.
    Returns: Each variant with its label. Variants of one task that differ in what was given have different labels.
    """
    several = list(dict.fromkeys(several))
    labels: dict[Variant, list[str]] = {each: [] for each in several}
    for key in dict.fromkeys(key_of(setting) for each in several for setting in each.given):
        given = {each: value_in(each.given, key) for each in several}
        values = said(given, {each: value_in(each.settings, key) for each in several})
        if len(set(values.values())) > 1 or key == "method.targets":
            for each, value in values.items():
                labels[each] += [] if value is None else [f"{key.rpartition('.')[2]}={value}"]
    return {each: ", ".join(parts) for each, parts in labels.items()}


def said(given: Mapping[Run, str | None], own: Mapping[Run, str | None]) -> dict[Run, str | None]:
    """The value of one setting by which each run is labelled.

    A run that keeps the value of conf/, which can differ by task, is labelled with it if all such runs have the same
    value, or if each of their values was given to another run as well. Otherwise they have no label for this setting:
    their row is what the hyperparameter file gives each task.

    Args:
        given: Run -> the value that it was given on top of conf/, or None.
        own: Run -> its value, or None if it is not to be named.
    """
    explicit = {value for value in given.values() if value is not None}
    kept = {own[run] for run, value in given.items() if value is None}
    named = len(kept) == 1 or kept <= explicit
    return {run: own[run] if named and value is None else value for run, value in given.items()}


def value_in(settings: Iterable[str], key: str) -> str | None:
    """The text of a key's value, or None if it is not among the settings."""
    return next((setting.partition("=")[2] for setting in settings if key_of(setting) == key), None)


def key_of(setting: str) -> str:
    return setting.partition("=")[0]
