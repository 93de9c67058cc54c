"""Figures of a summary. Markers tell methods apart, so that grey print and colour-blind eyes read them too."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora.efficiency.plan import TITLES
from lora.efficiency.summary import methods_of, value_at

# Colours of Okabe and Ito 2008, each with a marker of its own; filled markers are LoRA's.
STYLES = {
    "base": ("black", "|", False),
    "full": ("#000000", "s", False),
    "bitfit": ("#E69F00", "v", False),
    "houlsby": ("#009E73", "D", False),
    "pfeiffer": ("#CC79A7", "^", False),
    "lora": ("#0072B2", "o", True),
    "lora_merged": ("#D55E00", "P", True),
}
QUANTITIES = {  # of training -> label
    "trainable": "Trainable parameters",
    "checkpoint_bytes": "Checkpoint (with head)",
    "optimizer_bytes": "Optimizer state",
    "saved_activation_bytes": "Saved activations",
    "peak_mib": "Peak memory of the process",
    "peak_above_libraries_mib": "... without the libraries",
    "step_ms": "Time of a step",
}
SETTINGS = {"svg.hashsalt": "efficiency", "svg.fonttype": "path", "font.size": 9, "figure.dpi": 150}


def figures(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> content: `training` and `latency`, each as PNG and SVG, the same bytes for the same summary."""
    files = {}
    with mpl.rc_context(SETTINGS):
        for name, figure in (("training", training(summary)), ("latency", latency(summary))):
            if figure is not None:
                files |= {f"{name}.{kind}": _bytes(figure, kind) for kind in ("png", "svg")}
    return files


def training(summary: Mapping[str, Any]) -> Figure | None:
    """Each quantity as a share of full fine-tuning's, on a logarithmic axis; None without full fine-tuning."""
    rows = [(key, shape) for key in QUANTITIES for shape in _shapes(summary, key, "to_full")]
    if not rows:
        return None
    figure = Figure(figsize=(7, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name in methods_of(summary):
        ratios = summary[name]["to_full"] or {}
        points = [(value_at(ratios, key, shape), place) for place, (key, shape) in enumerate(rows)]
        points = [(value, place) for value, place in points if value is not None]
        if summary[name]["trainable"] is not None and points:
            axes.plot(*zip(*points, strict=True), **_style(name))
    axes.set_xscale("log")
    axes.set_xlabel("share of full fine-tuning")
    _finish(axes, [f"{QUANTITIES[key]}{shape and f', {shape}'}" for key, shape in rows])
    return figure


def latency(summary: Mapping[str, Any]) -> Figure | None:
    """Each method's latency over the base's with its interval, per shape; None without the base."""
    shapes, names = _shapes(summary, "latency_ms", "to_base"), methods_of(summary)
    if not shapes:
        return None
    figure = Figure(figsize=(7, 0.9 + 0.16 * len(shapes) * len(names)), layout="constrained")
    axes = figure.subplots()
    shown = [name for name in names if name != "base"]
    for number, name in enumerate(shown):
        ratios = summary[name]["to_base"]
        for row, shape in enumerate(shapes):
            place = row + 0.7 * ((number + 0.5) / len(shown) - 0.5)
            value, interval = ratios["latency_ms"][shape], ratios["latency_ms_interval"][shape]
            low, high = interval or (value, value)
            style = _style(name) | ({} if row == 0 else {"label": None})
            axes.errorbar(value, place, xerr=[[value - low], [high - value]], capsize=2, linewidth=1, **style)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("latency over the untouched base's, median and 95% interval of paired ratios")
    _finish(axes, shapes)
    return figure


def _shapes(summary: Mapping[str, Any], key: str, ratios: str) -> list[str]:
    """Where some method has this ratio: shapes, or an empty one for a quantity without."""
    found: dict[str, None] = {}
    for name in methods_of(summary):
        ratio = (summary[name][ratios] or {}).get(key)
        if ratio is not None:
            found |= dict.fromkeys(ratio if isinstance(ratio, Mapping) else [""])
    return list(found)


def _style(name: str) -> dict[str, Any]:
    colour, marker, filled = STYLES[name]
    face = colour if filled else "white"
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": face,
        "markersize": 5.5,
        "linestyle": "none",
        "label": TITLES[name],
    }


def _finish(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]  # versions and times
    figure.savefig(buffer, format=kind, metadata=nothing)
    return buffer.getvalue()
