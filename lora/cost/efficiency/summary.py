"""Build, read and show summary.json. It has one object per method, and `about`: plan, model and machine. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora.cost.timing import FEWEST, median_interval
from lora.files import read_object
from lora.methods.configs import METHOD_TITLES
from lora.table import markdown

SUMMARY_SCHEMA = 1
FORM_TITLES = {  # measured form of the encoder -> title, in the tables' order
    "base": "Base, untouched",
    **{name: METHOD_TITLES[name] for name in ("full", "bitfit", "houlsby", "pfeiffer")},
    "lora": "LoRA, unmerged",
    "lora_merged": "LoRA, merged",
}
UNTRAINED = ("base", "lora_merged")
MODEL_TITLES = {
    "minilm": "MiniLM",
    "roberta_base": "RoBERTa-base, random weights",
    "roberta_large": "RoBERTa-large, random weights",
}
COUNTS = ("trainable", "trainable_with_head", "checkpoint_bytes", "optimizer_bytes")
BY_SHAPE = ("saved_activation_bytes", "peak_mib")
TIMES = {"step": "step_ms", "latency": "latency_ms"}  # kind of sample -> key
INTERVALS = {key: f"{key}_interval" for key in TIMES.values()}


def build_summary(
    measured: Mapping[str, Mapping[str, Any]], samples: pd.DataFrame, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the summary from counts and samples.

    Args:
        measured: Method -> `settings` and, if the method trains, the keys in `COUNTS` and, by shape, in `BY_SHAPE`.
        samples: Samples of both kinds, with columns kind, method, shape, round and ms.
        about: The plan, the model, the machine and its load.
    Returns: `about`, and for every method its costs, None if they were not measured, and the ratios of those that two
        methods have. Ratios of times are medians of the ratios within a round.
    """
    times = by_round(samples)
    summary: dict[str, Any] = {"about": dict(about)}
    for name in measured:
        entry = {key: measured[name].get(key) for key in ("settings", *COUNTS, *BY_SHAPE)}
        for kind, key in TIMES.items():
            of_kind = times.get((kind, name), {})
            entry[key] = {shape: round(float(np.median(values)), 5) for shape, values in of_kind.items()} or None
            entry[INTERVALS[key]] = {shape: _pair(v) for shape, v in of_kind.items()} or None
        entry["to_full"] = _ratios(measured, times, name, "full")
        entry["to_base"] = _ratios(measured, times, name, "base")
        summary[name] = entry
    return summary


def by_round(samples: pd.DataFrame) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(kind, method) -> shape -> ms per round, in the rounds' order."""
    times: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for (kind, method, shape), group in samples.groupby(["kind", "method", "shape"], sort=False):
        times.setdefault((kind, method), {})[shape] = group.sort_values("round")["ms"].to_numpy(float)
    return times


def _ratios(measured: Mapping, times: Mapping, name: str, reference: str) -> dict | None:
    if reference not in measured:
        return None
    ratios: dict[str, Any] = {}
    for key in (*COUNTS, *BY_SHAPE):
        one, other = measured[name].get(key), measured[reference].get(key)
        if isinstance(one, Mapping) and other is not None:
            ratios[key] = {shape: round(one[shape] / other[shape], 6) for shape in one}
        elif one is not None and other is not None:
            ratios[key] = round(one / other, 6)
    for kind, key in TIMES.items():
        one, other = times.get((kind, name)), times.get((kind, reference))
        if one and other:
            by_shape = {shape: one[shape] / other[shape] for shape in one}  # a slowdown of a whole round cancels out
            ratios[key] = {shape: round(float(np.median(values)), 6) for shape, values in by_shape.items()}
            ratios[INTERVALS[key]] = {shape: _pair(values) for shape, values in by_shape.items()}
    return ratios


def _pair(values: np.ndarray) -> list[float] | None:
    interval = median_interval(values)
    return interval and [round(end, 6) for end in interval]


def read_summaries(folder: Path) -> dict[Path, dict[str, Any]]:
    """File -> summary, for those below a folder: of each device the default plan's first, then the others."""
    paths = sorted(folder.rglob("summary.json"), key=lambda path: path.parent.parts)
    return {path: read_object(path) for path in paths}


# Tables.


def plan_title(plan: Mapping[str, Any]) -> str:
    """`MiniLM, fused kernels, fp32`; a local encoder has no other name than its folder and the digits of its hash."""
    return f"{MODEL_TITLES.get(plan['model'], plan['model'])}, {plan['kernels']} kernels, {plan['precision']}"


def document(summaries: Sequence[Mapping[str, Any]]) -> str:
    """efficiency.md: the costs of training and of serving with each encoder of a device."""
    lines = [f"# What each method costs ({summaries[0]['about']['machine']['device']})", ""]
    for summary in summaries:
        about = summary["about"]
        plan, machine, idle = about["plan"], about["machine"], about["idle"]
        lines += [f"## {plan_title(plan)}", ""]
        training = training_table(summary)
        if len(training):
            lines += ["**Training**, and x its share of full fine-tuning's:", "", markdown(training)]
        lines += ["**Serving**, ms by rows x tokens, and x the untouched base's:", "", markdown(latency_table(summary))]
        spread = (
            "in brackets a distribution-free 95% interval of the median"
            if plan["rounds"] >= FEWEST
            else f"too few to say how certain they are: {FEWEST} rounds would"
        )
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        where = f"{machine['cpu'] or 'unknown CPU'}, {machine['cores']} cores, {plan['threads']} threads of torch"
        busy = ", ".join(f"{cores:.2f} {when}" for when, cores in idle["cores busy with others"].items())
        state = "The machine was idle" if idle["idle"] else "**The machine was not idle**"
        lines += [
            f"Medians of {plan['rounds']} interleaved rounds; ratios are medians of the rounds' own ratios, {spread}.",
            f"{where}; {packages}; Python {machine['python']}. {state}: cores busy with other processes: {busy}.",
            "",
        ]
    return "\n".join(lines)


def training_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method that trains."""
    plan = summary["about"]["plan"]
    lines = []
    for name in (name for name in plan["methods"] if summary[name]["trainable"] is not None):
        entry, ratio = summary[name], summary[name]["to_full"] or {}
        line = {
            "Method": FORM_TITLES.get(name, name),
            "Trainable": f"{entry['trainable']:,}{_times(ratio.get('trainable'))}",
            "with head": f"{entry['trainable_with_head']:,}",
        }
        for title, key in (("Checkpoint, MB", "checkpoint_bytes"), ("Optimizer, MB", "optimizer_bytes")):
            line[title] = f"{entry[key] / 1e6:,.2f}{_times(ratio.get(key))}"
        for shape in plan["step_shapes"]:
            key = "saved_activation_bytes"
            line[f"Saved {shape}, MB"] = f"{entry[key][shape] / 1e6:,.2f}{_times((ratio.get(key) or {}).get(shape))}"
        for shape, peak in (entry["peak_mib"] or {}).items():
            line[f"Peak {shape}, MiB"] = f"{peak:,.0f}{_times((ratio.get('peak_mib') or {}).get(shape))}"
        for shape in plan["step_shapes"]:
            line[f"Step {shape}, ms"] = _timed(entry, ratio, "step_ms", shape)
        lines.append(line)
    return pd.DataFrame(lines)


def latency_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    plan, lines = summary["about"]["plan"], []
    for name in plan["methods"]:
        entry, ratio = summary[name], summary[name]["to_base"] or {}
        times = {shape: _timed(entry, ratio, "latency_ms", shape) for shape in plan["latency_shapes"]}
        lines.append({"Method": FORM_TITLES.get(name, name), **times})
    return pd.DataFrame(lines)


def _times(ratio: float | None) -> str:
    """Format a ratio as ` x0.41`; below 0.1, with two significant digits."""
    return "" if ratio is None else f" x{ratio:.2f}" if ratio >= 0.1 else f" x{ratio:.2g}"


def _timed(entry: Mapping, ratio: Mapping, key: str, shape: str) -> str:
    """Format a time, its ratio and interval as `12.30 x0.41 [0.40, 0.42]`."""
    text = f"{entry[key][shape]:.2f}{_times((ratio.get(key) or {}).get(shape))}"
    interval = (ratio.get(INTERVALS[key]) or {}).get(shape)
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
