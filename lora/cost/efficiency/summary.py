"""Build summary.json, and read it strictly. It has one object per method, and `about`: plan, model and machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora.checks import SettingsError, build
from lora.cost.efficiency.plan import TITLES, Plan
from lora.cost.timing import median_interval
from lora.errors import UserError
from lora.files import read_object

SCHEMA = 1
COUNTS = (
    "trainable",
    "trainable_with_head",
    "checkpoint_bytes",
    "checkpoint_bytes_without_head",
    "optimizer_bytes",
)
BY_SHAPE = ("saved_activation_bytes", "saved_cast_bytes", "peak_mib", "peak_above_libraries_mib")
TIMES = {"step": "step_ms", "latency": "latency_ms"}  # kind of sample -> key
INTERVALS = {key: f"{key}_interval" for key in TIMES.values()}
TO_FULL = (
    "trainable", "checkpoint_bytes", "optimizer_bytes", "saved_activation_bytes", "peak_mib",
    "peak_above_libraries_mib", "step_ms", "step_ms_interval", "latency_ms", "latency_ms_interval",
)  # fmt: skip
TO_BASE = ("latency_ms", "latency_ms_interval")
TIMED = tuple(name for key, interval in INTERVALS.items() for name in (key, interval))
KEYS = ("settings", *COUNTS, *BY_SHAPE, *TIMED, "to_full", "to_base")
ABOUT = ("schema", "model", "plan", "machine", "idle", "code", "started_at", "seconds")


def summarise(
    measured: Mapping[str, Mapping[str, Any]], samples: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the summary from counts and samples.

    Args:
        measured: Method -> `settings` and, if the method trains, the keys in `COUNTS` and, by shape, in `BY_SHAPE`.
        samples: Samples of both kinds, in the form that `lora.cost.efficiency.measure.visit` returns.
        about: The keys in `ABOUT`.
    Returns: `about`, and for every method the keys in `KEYS`. A value is None if it was not measured or has nothing to
        be compared with. Ratios of times are medians of the ratios within a round.
    """
    times = by_round(samples)
    summary: dict[str, Any] = {"about": dict(about)}
    for name in measured:
        entry = {key: measured[name].get(key) for key in ("settings", *COUNTS, *BY_SHAPE)}
        for kind, key in TIMES.items():
            of_kind = times.get((kind, name))
            entry[key] = of_kind and {shape: _ms(np.median(values)) for shape, values in of_kind.items()}
            entry[INTERVALS[key]] = of_kind and {shape: _pair(median_interval(v)) for shape, v in of_kind.items()}
        entry["to_full"] = _ratios(measured, times, name, "full", TO_FULL)
        entry["to_base"] = _ratios(measured, times, name, "base", TO_BASE)
        summary[name] = entry
    return summary


def by_round(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(kind, method) -> shape -> ms per round, in the rounds' order."""
    times: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    frame = pd.DataFrame(samples, columns=["kind", "method", "shape", "round", "ms"])
    for (kind, method, shape), group in frame.groupby(["kind", "method", "shape"], sort=False):
        times.setdefault((kind, method), {})[shape] = group.sort_values("round")["ms"].to_numpy(float)
    return times


def _ratios(measured: Mapping, times: Mapping, name: str, reference: str, keys: Sequence[str]) -> dict | None:
    if reference not in measured:
        return None
    ratios: dict[str, Any] = dict.fromkeys(keys)
    for key in keys:
        one, other = measured[name].get(key), measured[reference].get(key)
        if one is None or other is None:
            continue
        ratios[key] = {s: _ratio(one[s], other[s]) for s in one} if isinstance(one, Mapping) else _ratio(one, other)
    for kind, key in TIMES.items():
        one, other = times.get((kind, name)), times.get((kind, reference))
        if key in keys and one and other:
            found = {shape: one[shape] / other[shape] for shape in one}  # a slowdown of a whole round cancels out
            ratios[key] = {shape: round(float(np.median(of_rounds)), 6) for shape, of_rounds in found.items()}
            ratios[INTERVALS[key]] = {shape: _pair(median_interval(of_rounds)) for shape, of_rounds in found.items()}
    return ratios


def _ratio(one: float, other: float) -> float:
    return round(one / other, 6)


def _ms(value: float) -> float:
    return round(float(value), 5)


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return interval and [round(end, 6) for end in interval]


def methods_of(summary: Mapping[str, Any]) -> list[str]:
    """The methods of a summary, in the tables' order."""
    return [name for name in TITLES if name in summary]


def value_at(entry: Mapping[str, Any], key: str, shape: str) -> Any:
    """A quantity's value at a shape; the value itself if the quantity has no shapes; None if it does not exist."""
    found = entry.get(key)
    return found.get(shape) if isinstance(found, Mapping) else found


def read_summary(path: Path) -> dict[str, Any]:
    """Read a summary and check its form.

    Raises: UserError: If it is broken, has another schema, or has missing or unknown keys.
    """
    summary = read_object(path)
    about = summary.get("about")
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a summary of schema {SCHEMA}: its `about` says so where it is one")
    if set(about) != set(ABOUT):
        raise UserError(f"{path}: about must have the keys {', '.join(ABOUT)}, found {', '.join(about)}")
    unknown = [name for name in summary if name not in (*TITLES, "about")]
    if unknown:
        raise UserError(f"{path} has {', '.join(unknown)}, which is not one of {', '.join(TITLES)}")
    try:
        for name in methods_of(summary):
            _check_entry(summary[name], build(Plan, about["plan"]))
    except (SettingsError, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return summary


def _check_entry(entry: Any, plan: Plan) -> None:
    """Raises: ValueError: If a method's object does not have the form that `summarise` gives it."""
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        raise ValueError(f"a method must have the keys {', '.join(KEYS)}")
    shapes = {*plan.step_shapes, *plan.latency_shapes}
    ratios = [entry[key] for key in ("to_full", "to_base")]
    for values in (entry, *(each for each in ratios if each is not None)):
        for key, value in values.items():
            if key in ("settings", "to_full", "to_base") or value is None:
                continue
            held = value.values() if isinstance(value, dict) else [value]
            if isinstance(value, dict) and not set(value) <= shapes:
                raise ValueError(f"{key} must be by the plan's shapes, {', '.join(shapes)}; found {', '.join(value)}")
            if key in INTERVALS.values():
                held = [end for pair in held if pair is not None for end in pair]
            if not all(isinstance(number, int | float) for number in held):
                raise ValueError(f"{key} must hold numbers, found {value!r}")


def samples_csv(samples: Sequence[Mapping[str, Any]]) -> bytes:
    """samples.csv: the time of every visit, from which the summary's medians, intervals and ratios come."""
    frame = pd.DataFrame(samples, columns=["kind", "method", "shape", "round", "ms"])
    return frame.to_csv(index=False, lineterminator="\n").encode()
