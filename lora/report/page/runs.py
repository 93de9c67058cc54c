"""The seeds, learning curves, configuration and provenance of each cell of the page, from the records."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.report.page.drawings import draw_curves
from lora.report.runs import Planned
from lora.report.titles import encoder_title, task_label, told

HEADS = ("Seed", "Best", "Epoch", "Last", "Minutes", "Run")
PROVENANCE = {
    "code": "code.commit",
    "uncommitted changes": "code.dirty",
    "device": "device",
    "packages": "packages",
    "weights": "weights",
    "rows": "data.rows",
    "official rows": "data.official_rows",
    "source": "data.source",
    "fingerprint of the rows": "data.fingerprint",
}


def shown_cells(planned: Sequence[Planned], records: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """The page's entry for each cell that has a record, in the tables' order."""
    cells: dict[tuple, list[RunRecord]] = {}
    for p in planned:
        if p.run_id in records:
            key = (p.model, p.protocol, p.start, p.label, p.task)
            cells.setdefault(key, []).append(records[p.run_id])
    return [
        {
            "title": title(*key),
            "scores": ", ".join(percent(run.selected["best"]["value"]) for run in runs),
            "curve": draw_curves(runs),
            "runs": list(map(seed_line, runs)),
            "configuration": configuration(runs[0]),
            "provenance": provenance(runs),
        }
        for key, runs in cells.items()
    ]


def title(model: str, protocol: str, start: str, label: str, task: str) -> str:
    text = f"{label} on {task_label(TASKS[task])}: {encoder_title(model)}, protocol {protocol}"
    return text if start == "pretrained" else f"{text}, {told('start', start)}"


def seed_line(run: RunRecord) -> tuple:
    """The values of `HEADS`."""
    best, last = run.selected["best"], run.selected["last"]
    values = percent(best["value"]), best["epoch"], percent(last["value"]), f"{run.seconds / 60:.1f}"
    return (run.config["seed"], *values, run.run_id)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def configuration(run: RunRecord) -> str:
    """The settings that the seeds share, one line per section."""
    lines = []
    for section in ("model", "method", "data", "train"):
        settings = run.config.get(section, {})
        given = ", ".join(f"{key}={plain(value)}" for key, value in settings.items() if value not in (None, {}, []))
        lines.append(f"{section}: {given}")
    if run.config.get("start_run"):
        lines.append(f"start_run: {run.config['start_run']}")
    return "\n".join(lines)


def provenance(runs: Sequence[RunRecord]) -> str:
    """The provenance of the runs, one line per entry of `PROVENANCE`, with all values if the seeds differ."""
    lines = []
    for label, path in PROVENANCE.items():
        values = []
        for run in runs:
            value: Any = run.provenance
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            values.append(plain(value))
        lines.append(f"{label}: {' | '.join(dict.fromkeys(values))}")
    return "\n".join(lines)


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value}"
