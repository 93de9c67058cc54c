"""For each cell of the page: its seeds, learning curves, configuration and provenance, from the records."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.report.aggregate import START_TITLES, Planned, task_label

WIDTH, HEIGHT, LEFT, BOTTOM = 320, 130, 34, 18  # of a learning curve, in units of its own
DASHES = ("", "6 2", "2 2", "8 2 2 2", "1 2")


def cells_html(planned: Sequence[Planned], records: Mapping[str, RunRecord]) -> str:
    """One closed entry per cell that has a record, in the tables' order."""
    cells: dict[tuple, list[RunRecord]] = {}
    for p in planned:
        if p.run_id in records:
            key = (p.model, p.protocol, p.start, p.label, p.task)
            cells.setdefault(key, []).append(records[p.run_id])
    return "\n".join(cell_html(key, runs) for key, runs in cells.items())


def cell_html(key: tuple, runs: Sequence[RunRecord]) -> str:
    model, protocol, start, label, task = key
    title = f"{label} on {task_label(TASKS[task])}: {model}, protocol {protocol}"
    if start != "pretrained":
        title += f", from {START_TITLES[start]}"
    values = ", ".join(percent(run.selected["best"]["value"]) for run in runs)
    return (
        f'<details class="cell"><summary>{html.escape(title)}: {values}</summary><div>\n'
        f"{curves_svg(runs)}\n{seeds_html(runs)}\n"
        f"<h3>Configuration</h3><pre>{html.escape(configuration(runs[0]))}</pre>\n"
        f"<h3>Provenance</h3><pre>{html.escape(provenance(runs))}</pre>\n</div></details>"
    )


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def seeds_html(runs: Sequence[RunRecord]) -> str:
    heads = ("Seed", "Best", "Epoch", "Last", "Minutes", "Run")
    lines = [f"<tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr>"]
    for run in runs:
        best, last = run.selected["best"], run.selected["last"]
        shown = (run.config["seed"], percent(best["value"]), best["epoch"], percent(last["value"]))
        lines.append(
            f"<tr>{''.join(f'<td class=number>{value}</td>' for value in shown)}"
            f"<td class=number>{run.seconds / 60:.1f}</td><td><code>{html.escape(run.run_id)}</code></td></tr>"
        )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def curves_svg(runs: Sequence[RunRecord]) -> str:
    """The headline metric by epoch, a line per seed; a dot marks the best epoch."""
    lines = {run.config["seed"]: curve(run) for run in runs}
    known = [value for points in lines.values() for _, value in points]
    if not known:
        return ""
    low, high, last = min(known), max(known), max(epoch for points in lines.values() for epoch, _ in points)
    span = high - low or 1.0

    def place(epoch: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 8) * ((epoch - 1) / (last - 1) if last > 1 else 0.5)
        return x, 8 + (HEIGHT - BOTTOM - 16) * (high - value) / span

    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Learning curves of the seeds">']
    parts.append(
        f'<path d="M{LEFT},4V{HEIGHT - BOTTOM}H{WIDTH - 4}" fill="none" stroke="currentColor" stroke-width="0.6"/>'
        f'<text x="{LEFT - 3}" y="12" text-anchor="end">{high:.1f}</text>'
        f'<text x="{LEFT - 3}" y="{HEIGHT - BOTTOM - 4}" text-anchor="end">{low:.1f}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">epoch 1</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">{last}</text>'
    )
    for i, (seed, points) in enumerate(lines.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        dash = f' stroke-dasharray="{DASHES[i % len(DASHES)]}"' if i % len(DASHES) else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="currentColor"{dash}><title>seed {seed}</title></polyline>'
        )
        if points:
            x, y = place(*max(points, key=lambda point: point[1]))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="currentColor"/>')
    return "".join([*parts, "</svg>"])


def curve(run: RunRecord) -> list[tuple[int, float]]:
    split, metric = run.selected["split"], run.selected["metric"]
    found = [(entry["epoch"], entry["metrics"][split][metric]) for entry in run.epochs]
    return [(epoch, 100 * value) for epoch, value in found if value is not None]


def configuration(run: RunRecord) -> str:
    """The settings that the seeds share, one section a line."""
    lines = []
    for section in ("model", "method", "data", "train"):
        settings = run.config.get(section, {})
        given = ", ".join(f"{key}={plain(value)}" for key, value in settings.items() if value not in (None, {}, []))
        lines.append(f"{section}: {given}")
    if run.config.get("start_run"):
        lines.append(f"start_run: {run.config['start_run']}")
    return "\n".join(lines)


def provenance(runs: Sequence[RunRecord]) -> str:
    """What made the runs; where the seeds differ, all that occur."""

    def all_of(*path: str) -> str:
        found = []
        for run in runs:
            value: Any = run.provenance
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            found.append(plain(value))
        return " | ".join(dict.fromkeys(found))

    lines = [f"code: {all_of('code', 'commit')}", f"uncommitted changes: {all_of('code', 'dirty')}"]
    lines += [f"device: {all_of('device')}", f"packages: {all_of('packages')}", f"weights: {all_of('weights')}"]
    lines += [
        f"rows: {all_of('data', 'rows')} of {all_of('data', 'official_rows')}",
        f"source: {all_of('data', 'source')}",
    ]
    return "\n".join([*lines, f"fingerprint of the rows: {all_of('data', 'fingerprint')}"])


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value}"
