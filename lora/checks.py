"""Build frozen dataclasses from plain mappings, strictly: one error reports every problem at once."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lora.errors import UserError

T = TypeVar("T")
RANGES: dict[str, Callable[[Any], bool]] = {
    "> 0 and finite": lambda value: 0 < value < math.inf,
    ">= 0": lambda value: value >= 0,
    ">= 1": lambda value: value >= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
}


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

    def check_ranges(self, settings: object, range_: str, keys: str) -> None:
        """Check that numbers of these names, separated by spaces, are in a range of `RANGES`. None passes."""
        for key in keys.split():
            value = getattr(settings, key)
            self.check(value is None or RANGES[range_](value), key, range_, value)

    def check_choices(self, settings: object) -> None:
        """Check the fields that take one of several words, as `build` does, which Python code may not use."""
        for key, hint in _hints(type(settings)).items():
            if typing.get_origin(hint) is typing.Literal:
                value = getattr(settings, key)
                self.check(value in typing.get_args(hint), key, f"one of {', '.join(typing.get_args(hint))}", value)

    def done(self) -> None:
        if self:
            raise SettingsError(list(self))


def build(cls: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """Build a `cls` from a mapping, strictly.

    An int is accepted for a float and a list for a tuple; nothing else is converted.

    Raises: SettingsError: With every unknown key, missing key, wrong type and broken rule, in nested sections too, each
        under its dotted path.
    """
    hints, values = _hints(cls), {}
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    problems = [
        f"{prefix}{k} is not a setting; the settings are {', '.join(fields)}" for k in mapping if k not in fields
    ]
    for name, field in fields.items():
        if name in mapping:
            try:
                values[name] = _convert(hints[name], mapping[name], f"{prefix}{name}")
            except SettingsError as error:
                problems += error.problems
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{prefix}{name} is missing")
    if problems:
        raise SettingsError(problems)
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError([prefix + problem for problem in error.problems]) from None


_hints = functools.cache(typing.get_type_hints)


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        errors = []
        for argument in arguments:
            try:
                return _convert(argument, value, key)
            except SettingsError as error:
                errors.append(error)
        names = [one.__name__ for one in arguments if one in (int, float, bool, str, list)]
        raise SettingsError([f"{key} must be of type {' or '.join(names)}, got {value!r}"]) if names[1:] else errors[0]
    if origin is typing.Literal:
        rule = f"one of {', '.join(map(str, arguments))}"
        if value in arguments:
            return value
    elif dataclasses.is_dataclass(hint):
        rule = "a section"
        if isinstance(value, Mapping):
            return build(hint, value, f"{key}.")
        if isinstance(value, hint):
            return value
    elif origin is tuple:
        rule = "a list"
        if isinstance(value, list | tuple):
            return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    elif origin is dict:
        rule = "a mapping"
        if isinstance(value, Mapping):
            return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    else:
        rule = f"of type {hint.__name__}"
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    raise SettingsError([f"{key} must be {rule}, got {value!r}"])
