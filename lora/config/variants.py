"""Distinguish runs of one method on one task by the settings that a grid or command line gives in addition to conf/."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora.config.run import RunConfig

# Shown in other columns, or derived from other settings. All other settings that name a run are compared.
ELSEWHERE = ("seed", "start_run", "model.name")


@dataclass(frozen=True)
class Variant:
    """The settings in which a run differs from the one that conf/ gives for its model, method, protocol and task.

    Runs of different tasks with equal variants form one row of a table. Their other differences come from the rows of
    their hyperparameter file.

    Args:
        given: `key=value` of each setting.
        usual: The same keys with the values of conf/.
    """

    given: tuple[str, ...]
    usual: tuple[str, ...]

    def without(self, *keys: str) -> "Variant":
        """The same settings except those with these keys."""
        given, usual = (tuple(s for s in side if key_of(s) not in keys) for side in (self.given, self.usual))
        return Variant(given, usual)


def variant(config: RunConfig, base: RunConfig) -> Variant:
    """The settings in which a run differs from `base`, except `ELSEWHERE` and those in its method's slug."""
    ours, theirs = flattened(config.settings()), flattened(base.settings())
    told = {*ELSEWHERE, *(f"method.{key}" for key in config.method.in_slug)}
    keys = [key for key, value in ours.items() if key not in told and value != theirs.get(key)]
    given, usual = ([f"{key}={plain(side.get(key))}" for key in keys] for side in (ours, theirs))
    return Variant(tuple(given), tuple(usual))


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


def words(several: Iterable[Variant]) -> dict[tuple[str, ...], str]:
    """Labels that distinguish a table's rows of one method: the settings that not all of them share.

    The modules that LoRA adapts are stated even if all rows share them, unless the slug states them.

    Args:
        several: The variants of the runs of all rows.
    Returns: A row's `given` -> its label. A setting that a row is not given has its usual value, if that is the same
        for all tasks.
    """
    several = list(several)
    rows = list(dict.fromkeys(each.given for each in several))
    shared = set(rows[0]).intersection(*rows) if rows else set()
    shared = {setting for setting in shared if key_of(setting) != "method.targets"}
    usual: dict[str, dict[str, None]] = {}
    for each in several:
        for setting in each.usual:
            usual.setdefault(key_of(setting), {})[setting] = None
    keys = dict.fromkeys(key_of(setting) for given in rows for setting in given if setting not in shared)
    found = {}
    for given in rows:
        own = {key_of(setting): setting for setting in given}
        ordinary = {key: next(iter(values)) for key, values in usual.items() if len(values) == 1}
        said = [own.get(key, ordinary.get(key)) for key in keys]
        found[given] = ", ".join(word(setting) for setting in said if setting is not None)
    return found


def key_of(setting: str) -> str:
    return setting.partition("=")[0]


def word(setting: str) -> str:
    """`train.lr=0.0005` as `lr=0.0005`."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value}"
