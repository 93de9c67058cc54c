"""Build and read summary.json. It has one object per method, and `about`: plan, model and machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora.cost.timing import median_interval
from lora.errors import UserError
from lora.files import read_object
from lora.methods.titles import METHOD_TITLES

SCHEMA = 1
TITLES = {  # measured form of the encoder -> title, in the tables' order
    "base": "Base, untouched",
    **{name: METHOD_TITLES[name] for name in ("full", "bitfit", "houlsby", "pfeiffer")},
    "lora": "LoRA, unmerged",
    "lora_merged": "LoRA, merged",
}
UNTRAINED = ("base", "lora_merged")
COUNTS = ("trainable", "trainable_with_head", "checkpoint_bytes", "optimizer_bytes")
BY_SHAPE = ("saved_activation_bytes", "peak_mib")
TIMES = {"step": "step_ms", "latency": "latency_ms"}  # kind of sample -> key
INTERVALS = {key: f"{key}_interval" for key in TIMES.values()}
TIMED = tuple(name for key, interval in INTERVALS.items() for name in (key, interval))
TO_FULL = ("trainable", "checkpoint_bytes", "optimizer_bytes", *BY_SHAPE, *TIMED)
TO_BASE = ("latency_ms", "latency_ms_interval")


def summarise(
    measured: Mapping[str, Mapping[str, Any]], samples: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the summary from counts and samples.

    Args:
        measured: Method -> `settings` and, if the method trains, the keys in `COUNTS` and, by shape, in `BY_SHAPE`.
        samples: Samples of both kinds, each with kind, method, shape, round and ms.
        about: The plan, the model, the machine and its load.
    Returns: `about`, and for every method its costs and their ratios. A value is None if it was not measured or has
        nothing to be compared with. Ratios of times are medians of the ratios within a round.
    """
    times = by_round(samples)
    summary: dict[str, Any] = {"about": dict(about)}
    for name in measured:
        entry = {key: measured[name].get(key) for key in ("settings", *COUNTS, *BY_SHAPE)}
        for kind, key in TIMES.items():
            of_kind = times.get((kind, name), {})
            entry[key] = {shape: round(float(np.median(values)), 5) for shape, values in of_kind.items()} or None
            entry[INTERVALS[key]] = {shape: _pair(v) for shape, v in of_kind.items()} or None
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
        if isinstance(one, Mapping) and other is not None:
            ratios[key] = {shape: round(one[shape] / other[shape], 6) for shape in one}
        elif one is not None and other is not None:
            ratios[key] = round(one / other, 6)
    for kind, key in TIMES.items():
        one, other = times.get((kind, name)), times.get((kind, reference))
        if key in keys and one and other:
            by_shape = {shape: one[shape] / other[shape] for shape in one}  # a slowdown of a whole round cancels out
            ratios[key] = {shape: round(float(np.median(values)), 6) for shape, values in by_shape.items()}
            ratios[INTERVALS[key]] = {shape: _pair(values) for shape, values in by_shape.items()}
    return ratios


def _pair(values: np.ndarray) -> list[float] | None:
    interval = median_interval(values)
    return interval and [round(end, 6) for end in interval]


def methods_of(summary: Mapping[str, Any]) -> list[str]:
    """The methods of a summary, in the tables' order."""
    return [name for name in TITLES if name in summary]


def value_at(entry: Mapping[str, Any], key: str, shape: str) -> Any:
    """A quantity's value at a shape; the value itself if the quantity has no shapes; None if it does not exist."""
    value = entry.get(key)
    return value.get(shape) if isinstance(value, Mapping) else value


def read_devices(folder: Path) -> list[dict[str, Any]]:
    """All summaries in an efficiency folder, device by device. Raises: UserError: If one is broken."""
    return [summary for device in sorted(folder.glob("*/")) for summary in read_device(device)]


def read_device(device: Path) -> list[dict[str, Any]]:
    """The summaries in a device's folder: the default plan's first, then the others by folder."""
    paths = (device / "summary.json", *sorted(device.glob("*/summary.json")))
    return [read_summary(path) for path in paths if path.is_file()]


def read_summary(path: Path) -> dict[str, Any]:
    """Read a summary. Raises: UserError: If it cannot be read, or is none of this schema."""
    summary = read_object(path)
    about = summary.get("about")
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a summary of schema {SCHEMA}")
    return summary


def samples_csv(samples: Sequence[Mapping[str, Any]]) -> bytes:
    """samples.csv: the time of every visit, from which the summary's medians, intervals and ratios come."""
    frame = pd.DataFrame(samples, columns=["kind", "method", "shape", "round", "ms"])
    return frame.to_csv(index=False, lineterminator="\n").encode()
