"""Strict construction of settings: all problems are reported at once, each by its path."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lora.checks import Problems, SettingsError, build


@dataclass(frozen=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        problems = Problems()
        problems.check(self.size > 0, "size", "> 0", self.size)
        problems.done()


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner
    names: tuple[str, ...] = ()
    limit: int | None = None
    table: dict[str, int] = field(default_factory=dict)


def test_builds_nested_and_converts_only_ints_and_lists():
    outer = build(
        Outer, {"rate": 1, "inner": {"size": 2, "kind": "b"}, "names": ["x"], "limit": None, "table": {"k": 3}}
    )
    assert outer == Outer(1.0, Inner(2, "b"), ("x",), None, {"k": 3})
    assert isinstance(outer.rate, float)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"rate": "1", "inner": {"size": 1}}, "rate must be of type float, got '1'"),
        ({"rate": True, "inner": {"size": 1}}, "rate must be of type float, got True"),
        ({"rate": 1.0, "inner": {"size": 1.5}}, "inner.size must be of type int, got 1.5"),
        ({"rate": 1.0, "inner": {"size": 0}}, "inner.size must be > 0, got 0"),
        ({"rate": 1.0, "inner": {"size": 1, "kind": "c"}}, "inner.kind must be one of a, b, got 'c'"),
        ({"rate": 1.0, "inner": 3}, "inner must be a section, got 3"),
        ({"rate": 1.0, "inner": {"size": 1}, "names": "x"}, "names must be a list, got 'x'"),
        ({"rate": 1.0, "inner": {"size": 1}, "names": ["x", 2]}, r"names\[1\] must be of type str, got 2"),
        ({"rate": 1.0, "inner": {"size": 1}, "table": {"k": "v"}}, "table.k must be of type int, got 'v'"),
        ({"rate": 1.0, "inner": {"size": 1}, "limit": "many"}, "limit must be of type int, got 'many'"),
        (
            {"rate": 1.0, "inner": {"size": 1}, "rat": 2},
            "rat is not a setting; the nearest is rate; the settings are",
        ),
        ({"inner": {"size": 1}}, "rate is missing"),
    ],
)
def test_each_broken_rule_is_named(mapping, message):
    with pytest.raises(SettingsError, match=message):
        build(Outer, mapping)


def test_all_problems_come_together():
    with pytest.raises(SettingsError) as caught:
        build(Outer, {"rate": "x", "inner": {"size": -1}, "limit": 1.5})
    assert len(caught.value.problems) == 3
