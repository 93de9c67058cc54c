"""Draw figures from their data (`lora.report.figures`), for screens, paper and readers who see no colours.

Each series has its own colour (Okabe and Ito's, distinct for all kinds of colour vision), marker and line style.
"""

import io
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lora.report.figures import forms

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
LOOKS = {  # of a finding, by its word: colour, marker, size
    "supported": ("#009E73", "o", 6),
    "contradicted": ("#D55E00", "X", 8),
    "undecided": ("#555555", "s", 6),
    "the paper": ("#000000", "D", 6),
}
TITLE = 28  # characters of a narrow panel's title in a line
LONG = 24  # characters of a label; longer ones need a wider column of the legend
STYLE = {
    "svg.hashsalt": "lora",  # otherwise ids in the file vary between draws
    "svg.fonttype": "none",  # text stays text
    "font.sans-serif": ["DejaVu Sans"],  # bundled with matplotlib; an SVG names it at each text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(figure: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the pictures by their `forms`, without a display and without changing global state."""
    if figure["kind"] == "findings":
        return dict(zip(forms(figure), [*findings(figure, False), *findings(figure, True)], strict=True))
    panels = figure["panels"]
    columns = 2 if len(panels) % 3 and not len(panels) % 2 else min(len(panels), 3)  # two if only two fill every row
    rows = math.ceil(len(panels) / columns)
    most = max(len(panel.get("names", ())) for panel in panels)
    sizes = {"intervals": (5.5 if len(panels) > 1 else 7.5, 1.0 + 0.35 * most), "heat": (3.0, 2.8)}
    width, height = sizes.get(figure["kind"], (3.6, 3.0))
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(max(width * columns, 4.5), height * rows + 0.9), layout="constrained")
        axes = canvas.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        drawn = {"lines": lines, "intervals": intervals, "heat": heat, "scatter": scatter}[figure["kind"]]
        for ax, panel in zip(axes.flat, panels, strict=False):
            drawn(ax, panel, figure)
            ax.set_title(fill(panel["title"], TITLE) if figure["kind"] == "heat" else panel["title"], fontsize=9)
        legend(canvas, list(axes.flat[: len(panels)]))
        svg = render(canvas, "svg")  # without a title: the page has it as text, in its own font
        canvas.suptitle(figure["title"], fontsize=10)
        return {"png": render(canvas, "png"), "svg": svg}


def render(canvas: Canvas, form: str) -> bytes:
    out = io.BytesIO()
    canvas.savefig(out, format=form, dpi=150, metadata={"Date": None} if form == "svg" else {"Software": None})
    return out.getvalue()


def legend(canvas: Canvas, axes: Sequence[Axes]) -> None:
    """Add one legend below all panels, with each label once."""
    by_label = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        by_label |= dict(zip(labels, handles, strict=True))
    if by_label:
        columns = 3 if max(map(len, by_label)) <= LONG else 2 if len(axes) > 1 else 1
        canvas.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=columns, fontsize=8)


def lines(ax: Axes, panel: Mapping[str, Any], figure: Mapping[str, Any]) -> None:
    labels = dict.fromkeys(series["label"] for each in figure["panels"] for series in each["series"])
    places = {label: place for place, label in enumerate(labels)}  # one look per label in all panels
    for series in panel["series"]:
        i = places[series["label"]]
        shape = (i + i // len(COLOURS)) % len(MARKERS)  # an eighth series has the first's colour and another shape
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[shape], "linestyle": LINES[shape]}
        look["label"] = series["label"]
        aside = 1.05**i if figure["log_x"] and not panel.get("band") else 1  # keeps bars from hiding each other
        x = [value * aside for value in series["x"]]
        y, low, high = (np.array(series[key], float) for key in ("y", "low", "high"))
        if panel.get("band"):
            ax.plot(x, y, markersize=4, linewidth=1.2, **look)
            ax.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        else:
            ax.errorbar(x, y, yerr=bars(y, low, high), markersize=5, linewidth=1.2, capsize=2, **look)
    if figure["log_x"]:
        ax.set_xscale("log")
        if "ticks" in panel:
            ax.set_xticks(panel["ticks"], [f"{tick:,}" for tick in panel["ticks"]])
            ax.minorticks_off()
    elif "x_names" in panel:
        ax.set_xticks(range(len(panel["x_names"])), panel["x_names"])
        ax.margins(x=0.2)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(figure["x"])
    ax.set_ylabel(panel["y"])


def intervals(ax: Axes, panel: Mapping[str, Any], figure: Mapping[str, Any]) -> None:
    """Draw differences with their intervals, a line per name; values of the paper, which have none, are hollow."""
    places = -np.arange(len(panel["names"]))
    if any("low" in series for series in panel["series"]):
        ax.axvline(0, color="0.75", linewidth=1)
    if panel["bounds"]:
        ax.vlines(panel["bounds"], places - 0.42, places + 0.42, "0.4", ":", label="the claim's bound")
    hollow = iter("Dsv")
    for i, series in enumerate(panel["series"]):
        x, y = np.array(series["y"], float), -np.array(series["x"], float)
        if "low" in series:
            look = {"color": COLOURS[i % len(COLOURS)], "fmt": MARKERS[i % len(MARKERS)], "markersize": 4, "capsize": 2}
            reach = bars(x, *(np.array(series[key], float) for key in ("low", "high")))
            ax.errorbar(x, y, xerr=reach, linewidth=1.2, label=series["label"], **look)
        else:
            look = {"color": COLOURS[2], "markerfacecolor": "none", "markersize": 7}
            ax.plot(x, y, marker=next(hollow), linestyle="", label=series["label"], **look)
    ax.set_yticks(places, panel["names"])
    ax.set_xlabel(figure["x"])


def findings(figure: Mapping[str, Any], narrow: bool) -> list[bytes]:
    """Draw the findings, a row each, as PNG and SVG. `narrow`: for a phone, with every label above its interval."""
    (panel,) = figure["panels"]
    names = [fill(name, 52 if narrow else 50, break_on_hyphens=False) for name in panel["names"]]
    values = [x for series in panel["series"] for key in ("y", "low", "high") for x in series.get(key, ())]
    ends = np.array(values, float)  # nan: a row without an interval
    thick = 0.5 if narrow else 0.86
    left, right = np.nanmin(ends) - 0.5, np.nanmax(ends) + 0.5
    with mpl.rc_context(STYLE):
        deep = 0.36 * max(2, *(1 + name.count("\n") for name in names)) if narrow else 0.42  # inches of a row
        canvas = Canvas(figsize=(3.7 if narrow else 7.5, 1.3 + deep * len(names)), layout="constrained")
        ax = canvas.subplots()
        for place, (name, (low, high)) in enumerate(zip(names, panel["supports"], strict=True)):
            start, stop = left if low is None else low, right if high is None else high
            ax.barh(-place, stop - start, thick, start, color="#DCE9F5", zorder=0)
            ax.vlines(0, -place - thick / 2, -place + thick / 2, "0.6", linewidth=0.8)
            if narrow:
                ax.text(left, 0.3 - place, name, va="bottom", fontsize=9, linespacing=1.05)
        for series in panel["series"]:
            x, y = np.array(series["y"], float), -np.array(series["x"], float)
            colour, marker, size = LOOKS[series["label"]]
            look = {"color": colour, "marker": marker, "markersize": size, "linestyle": "", "label": series["label"]}
            if "low" in series:
                reach = bars(x, *(np.array(series[key], float) for key in ("low", "high")))
                ax.errorbar(x, y, xerr=reach, elinewidth=1.4, capsize=3, zorder=4, **look)
            else:
                ax.plot(x, y, markerfacecolor="none", zorder=3, **look)
        if narrow:
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
        else:
            ax.set_yticks(-np.arange(len(names)), names, fontsize=8.5, linespacing=1.05)
        ax.set(xlim=(left, right), ylim=(-len(names) + (0.6 if narrow else 0.5), 0.95 if narrow else 0.5))
        ax.set_xlabel(figure["x"])
        handles, labels = ax.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 4, fontsize=9)
        return [render(canvas, "png"), render(canvas, "svg")]


def scatter(ax: Axes, panel: Mapping[str, Any], figure: Mapping[str, Any]) -> None:
    """Draw one point per pair of values, and the line on which they are equal."""
    for series in panel["series"]:
        ax.plot(series["x"], series["y"], "o", color=COLOURS[1], markersize=3, alpha=0.5)
    ax.axline((series["x"][0], series["x"][0]), slope=1, color="0.6", linewidth=0.8)
    ax.set_xlabel(figure["x"])
    ax.set_ylabel(panel["y"])


def heat(ax: Axes, panel: Mapping[str, Any], figure: Mapping[str, Any]) -> None:
    """Draw similarities between 0 and 1, with a colour map that keeps its order in grey. With `numbers`, as a matrix is
    printed: the first row on top, and the value in every cell."""
    # An image with one pixel per value: a mesh of paths takes a megabyte.
    look = {"cmap": "cividis", "aspect": "auto", "interpolation": "none"}
    rows, columns = len(panel["y_names"]), len(panel["x_names"])
    numbers = panel.get("numbers", False)
    ends = (rows, 0) if numbers else (0, rows)
    origin = "upper" if numbers else "lower"
    image = ax.imshow(panel["values"], vmin=0, vmax=1, extent=(0, columns, *ends), origin=origin, **look)
    ax.set_xlabel(panel["x"])
    ax.set_ylabel(panel["y"])
    for names, axis in ((panel["x_names"], ax.xaxis), (panel["y_names"], ax.yaxis)):
        every = math.ceil(len(names) / 8)
        axis.set_ticks([i + 0.5 for i in range(0, len(names), every)], names[::every], fontsize=7)
    if numbers:
        ax.tick_params("x", rotation=90)
        for i, row in enumerate(panel["values"]):
            for j, value in enumerate(row):
                colour = "white" if value < 0.6 else "black"  # cividis is light at its end
                ax.text(j + 0.5, i + 0.5, f"{value:.2f}", color=colour, fontsize=6, ha="center", va="center")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)


def bars(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """The lengths of the error bars below and above each point."""
    return [(y - low).clip(0), (high - y).clip(0)]
