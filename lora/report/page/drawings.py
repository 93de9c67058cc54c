"""The page's own drawings, as coordinates in each drawing's units: intervals against bounds, and learning curves."""

import math
from collections.abc import Sequence
from typing import Any

from lora.records.record import RunRecord
from lora.report.claims.findings import Finding
from lora.report.claims.shown import finding_text

WIDTH, HEIGHT, SIDE = 220, 34, 16  # of an interval; the margin on both sides
CURVE_WIDTH, CURVE_HEIGHT, LEFT, LEGEND = 400, 130, 34, 88
LINE = 13  # distance between two lines of the legend


def draw_interval(found: Finding) -> dict[str, Any] | None:
    """The coordinates of a finding's interval and mean, and of the range in which its bound holds.

    Returns: None if nothing was measured, or the bound is an exact count.
    """
    edges = [edge for edge, _ in found.bound.edges]
    if math.isnan(found.mean) or not edges:
        return None
    known = [value for value in (found.mean, found.low, found.high, *edges) if not math.isnan(value)]
    low, span = min(known), max(known) - min(known) or 1.0

    def place(value: float) -> float:
        return round(SIDE + (WIDTH - 2 * SIDE) * (value - low) / span, 1)

    ends = [place(edge) for edge in edges]
    kept = {"above": (ends[0], WIDTH), "below": (0, ends[0]), "within": (ends[0], ends[-1])}[found.bound.kind]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "label": finding_text(found),
        "kept": kept,
        "edges": [(x, f"{edge:g}") for x, edge in zip(ends, edges, strict=True)],
        "ends": None if math.isnan(found.low) or found.low == found.high else (place(found.low), place(found.high)),
        "mean": place(found.mean),
    }


def draw_curves(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """The headline metric by epoch in percent: one line per seed, with its best epoch; None if no value is known."""
    lines = {run.config["seed"]: curve(run) for run in runs}
    known = [value for points in lines.values() for _, value in points]
    if not known:
        return None
    low, high, last = min(known), max(known), max(epoch for points in lines.values() for epoch, _ in points)
    height = max(CURVE_HEIGHT, LINE * (len(lines) + 2))
    right, bottom = CURVE_WIDTH - LEGEND, height - 18

    def place(epoch: int, value: float) -> tuple[str, str]:
        x = LEFT + (right - LEFT - 8) * ((epoch - 1) / (last - 1) if last > 1 else 0.5)
        return f"{x:.1f}", f"{8 + (bottom - 16) * (high - value) / (high - low or 1.0):.1f}"

    drawn = [
        {
            "seed": seed,
            "points": " ".join(",".join(place(*point)) for point in points),
            "best": place(*max(points, key=lambda point: point[1])) if points else None,
            "y": LINE * (i + 1),
        }
        for i, (seed, points) in enumerate(lines.items())
    ]
    about = {"width": CURVE_WIDTH, "height": height, "left": LEFT, "right": right, "bottom": bottom, "last": last}
    return about | {"low": f"{low:.1f}", "high": f"{high:.1f}", "lines": drawn, "key": LINE * (len(lines) + 1)}


def curve(run: RunRecord) -> list[tuple[int, float]]:
    """Epoch and value on the selecting split, in percent. Epochs with an undefined metric are excluded."""
    split, metric = run.selected["split"], run.selected["metric"]
    found = [(entry["epoch"], entry["metrics"][split][metric]) for entry in run.epochs]
    return [(epoch, 100 * value) for epoch, value in found if value is not None]
