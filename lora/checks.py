"""Build frozen dataclasses from plain mappings, strictly: one error reports every problem at once."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lora.errors import UserError

T = TypeVar("T")


class SettingsError(UserError):
    """One or more settings break their rules. `problems` has one line per problem."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class Problems(list[str]):
    """Collect broken rules inside a `__post_init__`, then raise them together."""

    def check(self, holds: bool, key: str, rule: str, value: object) -> None:
        if not holds:
            self.append(f"{key} must be {rule}, got {value!r}")

    def check_choices(self, settings: object) -> None:
        """Check the fields that take one of several words. `build` does so too, but Python code may not use it."""
        for key, hint in _hints(type(settings)).items():
            if typing.get_origin(hint) is typing.Literal:
                self += _convert(hint, getattr(settings, key), key)[1]

    def done(self) -> None:
        if self:
            raise SettingsError(list(self))


def build(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Build a `cls` from a mapping, strictly.

    An int is accepted for a float and a list for a tuple; nothing else is converted.

    Raises: SettingsError: With every unknown key, missing key, wrong type and broken rule, in nested sections too, each
        under its dotted path.
    """
    value, problems = _build(cls, mapping, "")
    if problems:
        raise SettingsError(problems)
    return value


def _build(cls: type, mapping: Mapping[str, Any], prefix: str) -> tuple[Any, list[str]]:
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    problems = [f"{prefix}{key} is not a setting; {nearest(key, fields)}" for key in mapping if key not in fields]
    values = {}
    for name, field in fields.items():
        if name not in mapping:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                problems.append(f"{prefix}{name} is missing")
            continue
        values[name], more = _convert(hints[name], mapping[name], f"{prefix}{name}")
        problems += more
    if problems:
        return None, problems
    try:
        return cls(**values), []
    except SettingsError as error:
        return None, [prefix + problem for problem in error.problems]


_hints = functools.cache(typing.get_type_hints)


def nearest(key: object, fields: Iterable[str]) -> str:
    """Words that name the nearest setting, if any is near, and all settings."""
    fields = list(fields)
    near = difflib.get_close_matches(str(key), fields, 1, 0.7)
    return f"{f'the nearest is {near[0]}; ' if near else ''}the settings are {', '.join(fields)}"


def _convert(hint: Any, value: Any, key: str) -> tuple[Any, list[str]]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None, []
        attempts = [_convert(argument, value, key) for argument in arguments if argument is not type(None)]
        return next((attempt for attempt in attempts if not attempt[1]), attempts[0])
    if origin is typing.Literal:
        if value in arguments:
            return value, []
        return None, [f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}"]
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value, []
        if isinstance(value, Mapping):
            return _build(hint, value, f"{key}.")
        return None, [f"{key} must be a section, got {value!r}"]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return None, [f"{key} must be a list, got {value!r}"]
        items = [_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
        return tuple(item for item, _ in items), [problem for _, more in items for problem in more]
    if origin is dict:
        if not isinstance(value, Mapping):
            return None, [f"{key} must be a mapping, got {value!r}"]
        items = {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
        return {name: item for name, (item, _) in items.items()}, [
            p for _, problems in items.values() for p in problems
        ]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value), []
        except OverflowError:
            return None, [f"{key} must be of type float, got an integer above the largest float"]
    if isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool)):
        return value, []
    return None, [f"{key} must be of type {hint.__name__}, got {value!r}"]
