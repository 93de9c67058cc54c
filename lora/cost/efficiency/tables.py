"""Tables from summaries: the cost of training, the cost of serving, and the paper's numbers. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.cost.efficiency.summary import TITLES, methods_of, value_at
from lora.cost.machine import slug
from lora.cost.timing import FEWEST
from lora.table import Table

MODEL_TITLES = {
    "minilm": "MiniLM",
    "roberta_base": "RoBERTa-base, random weights",
    "roberta_large": "RoBERTa-large, random weights",
    "local": "a local encoder",
}

Summary = Mapping[str, Any]


def document(summaries: Sequence[Summary]) -> str:
    """efficiency.md: the tables of a device."""
    return "\n".join(table.markdown() for table in tables(summaries))


def tables(summaries: Sequence[Summary]) -> list[Table]:
    """The costs of training and of serving, for every device and encoder."""
    tables = []
    for summary in summaries:
        plan, device = summary["about"]["plan"], summary["about"]["machine"]["device"]
        name = f"efficiency_{slug(device)}_{plan['model']}_{plan['kernels']}_{plan['precision']}"
        about = f"{MODEL_TITLES[plan['model']]}, {plan['kernels']} kernels, {plan['precision']} ({device})"
        for kind, cells, share in (
            ("training", training_table(summary), "x: its share of full fine-tuning's."),
            ("serving", latency_table(summary), "ms by rows x tokens; x: of the untouched base's."),
        ):
            if len(cells):
                below = (share, *notes(summary))
                tables.append(Table(f"{name}_{kind}", f"Efficiency, {kind}: {about}", cells, notes=below))
    return tables


def notes(summary: Summary) -> list[str]:
    """Notes below the tables: verdict on merged LoRA, statistics, machine, versions, idleness."""
    about = summary["about"]
    plan, machine, idle = about["plan"], about["machine"], about["idle"]
    spread = (
        "in brackets a distribution-free 95% interval of the median"
        if plan["rounds"] >= FEWEST
        else f"too few to say how certain they are: {FEWEST} rounds would"
    )
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = f"{machine['cpu'] or 'unknown CPU'}, {machine['cores']} cores, {plan['threads']} threads of torch"
    busy = ", ".join(f"{cores:.2f} {when}" for when, cores in idle["cores busy with others"].items())
    state = "The machine was idle" if idle["idle"] else "**The machine was not idle**"
    return [
        *verdict(summary),
        f"Medians of {plan['rounds']} interleaved rounds; ratios are medians of the rounds' own ratios, {spread}.",
        f"{where}; {packages}; Python {machine['python']}. {state}: cores busy with other processes: {busy}.",
    ]


def training_table(summary: Summary) -> pd.DataFrame:
    """One row per method that trains."""
    plan = summary["about"]["plan"]
    lines = []
    for name in methods_of(summary):
        entry, ratio = summary[name], summary[name]["to_full"] or {}
        if entry["trainable"] is None:
            continue
        line = {
            "Method": TITLES[name],
            "Trainable": f"{entry['trainable']:,}{_times(ratio.get('trainable'))}",
            "with head": f"{entry['trainable_with_head']:,}",
        }
        for title, key in (("Checkpoint, MB", "checkpoint_bytes"), ("Optimizer, MB", "optimizer_bytes")):
            line[title] = f"{entry[key] / 1e6:,.2f}{_times(ratio.get(key))}"
        for shape in plan["step_shapes"]:
            key = "saved_activation_bytes"
            line[f"Saved {shape}, MB"] = f"{entry[key][shape] / 1e6:,.2f}{_times(value_at(ratio, key, shape))}"
        for shape, peak in (entry["peak_mib"] or {}).items():
            line[f"Peak {shape}, MiB"] = f"{peak:,.0f}{_times(value_at(ratio, 'peak_mib', shape))}"
        for shape in plan["step_shapes"]:
            line[f"Step {shape}, ms"] = _timed(entry, ratio, "step_ms", shape)
        lines.append(line)
    return pd.DataFrame(lines)


def latency_table(summary: Summary) -> pd.DataFrame:
    shapes = summary["about"]["plan"]["latency_shapes"]
    return pd.DataFrame(
        [
            {"Method": TITLES[name]}
            | {shape: _timed(summary[name], summary[name]["to_base"] or {}, "latency_ms", shape) for shape in shapes}
            for name in methods_of(summary)
        ]
    )


def verdict(summary: Summary) -> list[str]:
    """Whether merged LoRA costs as much as the base, in one sentence; empty without intervals of that ratio."""
    merged = summary.get("lora_merged") or {}
    intervals = (merged.get("to_base") or {}).get("latency_ms_interval") or {}
    known = {shape: interval for shape, interval in intervals.items() if interval is not None}
    if not known:
        return []
    equal = [shape for shape, (low, high) in known.items() if low <= 1 <= high]
    beyond = {shape: interval for shape, interval in known.items() if shape not in equal}
    text = f"LoRA merged / base: 1 lies within the interval at {len(equal)} of {len(known)} shapes"
    if beyond:
        text += "; not at " + ", ".join(f"{shape} ({low:.3f} to {high:.3f})" for shape, (low, high) in beyond.items())
    return [f"{text}."]


def _times(ratio: float | None) -> str:
    """Format a ratio as ` x0.41`; below 0.1, with two significant digits."""
    return "" if ratio is None else f" x{ratio:.2f}" if ratio >= 0.1 else f" x{ratio:.2g}"


def _timed(entry: Mapping, ratio: Mapping, key: str, shape: str) -> str:
    """Format a time, its ratio and interval as `12.30 x0.41 [0.40, 0.42]`; `-` if it was not measured."""
    if entry[key] is None:
        return "-"
    text = f"{entry[key][shape]:.2f}{_times(value_at(ratio, key, shape))}"
    interval = value_at(ratio, f"{key}_interval", shape)
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
