"""Figures of a summary. Markers distinguish the methods even in grey print and for colour-blind readers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora.cost.efficiency.plan import TITLES
from lora.cost.efficiency.summary import methods_of, value_at
from lora.cost.timing import FEWEST

# Method -> colour (Okabe and Ito 2008), marker, whether it is filled; filled markers are LoRA's.
STYLES = {
    "base": ("black", "|", False),
    "full": ("#000000", "s", False),
    "bitfit": ("#E69F00", "v", False),
    "houlsby": ("#009E73", "D", False),
    "pfeiffer": ("#CC79A7", "^", False),
    "lora": ("#0072B2", "o", True),
    "lora_merged": ("#D55E00", "P", True),
}
FILES = {  # quantity of training -> label
    "trainable": "Trainable parameters",
    "checkpoint_bytes": "Checkpoint (with head)",
    "optimizer_bytes": "Optimizer state",
}
RUN = {
    "saved_activation_bytes": "Saved activations",
    "peak_mib": "Peak memory of the process",
    "peak_above_libraries_mib": "... without the libraries",
    "step_ms": "Time of a step",
}
SETTINGS = {"svg.hashsalt": "efficiency", "svg.fonttype": "path", "font.size": 9, "savefig.dpi": 150}


def figures(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> content: `training` and `latency`, each as PNG and SVG. Equal summaries give equal bytes."""
    files = {}
    with mpl.rc_context(SETTINGS):
        for name, figure in (("training", training(summary)), ("latency", latency(summary))):
            if figure is not None:
                files |= {f"{name}.{kind}": _bytes(figure, kind) for kind in ("png", "svg")}
    return files


def training(summary: Mapping[str, Any]) -> Figure | None:
    """Each quantity as a share of full fine-tuning's: those that shrink by orders of magnitude above, the rest below.

    Returns: None if the summary has no shares of full fine-tuning.
    """
    halves = [[(key, shape) for key in keys for shape in _shapes(summary, key, "to_full")] for keys in (FILES, RUN)]
    if not all(halves):
        return None
    names = [name for name in methods_of(summary) if summary[name]["trainable"] is not None]
    heights = [len(half) for half in halves]
    figure = Figure(figsize=(7, 1.6 + 0.42 * sum(heights)), layout="constrained")
    above, below = figure.subplots(2, gridspec_kw={"height_ratios": heights})
    for axes, rows in ((above, halves[0]), (below, halves[1])):
        _points(axes, summary, names, "to_full", rows)
        _finish(axes, [f"{(FILES | RUN)[key]}{shape and f', {shape}'}" for key, shape in rows])
    above.set_xscale("log")
    above.set_xlabel("share of full fine-tuning, logarithmic")
    below.set_xlim(left=0)
    below.axvline(1, color="grey", linewidth=0.8)
    below.set_xlabel(f"share of full fine-tuning{spread_label(summary, '; of times,')}")
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def latency(summary: Mapping[str, Any]) -> Figure | None:
    """Each method's latency over the base's, with its interval, per shape; None if there are no such ratios."""
    shapes, names = _shapes(summary, "latency_ms", "to_base"), methods_of(summary)
    if not shapes:
        return None
    figure = Figure(figsize=(7, 0.9 + 0.12 * len(shapes) * len(names)), layout="constrained")
    axes = figure.subplots()
    shown = [name for name in names if name != "base"]
    _points(axes, summary, shown, "to_base", [("latency_ms", shape) for shape in shapes])
    _finish(axes, shapes)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel(f"latency over the untouched base's{spread_label(summary, ',')}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def spread_label(summary: Mapping[str, Any], before: str) -> str:
    """The meaning of the error bars; an empty text if there are too few rounds for any."""
    return f"{before} with the 95% interval of paired ratios" if summary["about"]["plan"]["rounds"] >= FEWEST else ""


def _points(
    axes: Axes, summary: Mapping[str, Any], names: Sequence[str], reference: str, rows: Sequence[tuple[str, str]]
) -> None:
    """Draw one row per quantity and shape. In a row, methods are one below another, so equal values do not overlap."""
    for number, name in enumerate(names):
        ratios, label = summary[name][reference], TITLES[name]
        for row, (key, shape) in enumerate(rows):
            value = value_at(ratios, key, shape)
            if value is None:
                continue
            place = row + 0.7 * ((number + 0.5) / len(names) - 0.5)
            low, high = value_at(ratios, f"{key}_interval", shape) or (value, value)
            spread = [[value - low], [high - value]]
            axes.errorbar(value, place, xerr=spread, capsize=2, linewidth=1, label=label, **_style(name))
            label = None  # one entry in the legend


def _shapes(summary: Mapping[str, Any], key: str, ratios: str) -> list[str]:
    """The shapes for which some method has this ratio; an empty text for a quantity without shapes."""
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
    }


def _finish(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]  # no versions or times
    figure.savefig(buffer, format=kind, metadata=nothing)
    return buffer.getvalue()
