"""The tables of measurements.json, and the blocks of two pages. No torch."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora.cost.machine import IDLE_CORES
from lora.cost.timing import FEWEST, shown
from lora.data.tasks import TASKS
from lora.files import read_object, write_atomically
from lora.table import in_page, markdown

Measured = Mapping[str, Any]  # the content of measurements.json
SIDES = ("script_loop", "tuned_peer", "ours")
BENCH_TITLES = {
    "script_loop": "Script loop: Trainer + PEFT, padded to {max_length}, {script[precision]}, a process per run",
    "tuned_peer": "Tuned: Trainer + PEFT, length-grouped, {tuned[precision]}, one process",
    "ours": "This project: `python -m lora -m ...`",
}


def rebuild(folder: Path, *pages: Path) -> list[Measured]:
    """Read the measurements of every device, and write the blocks of these pages: `bench` is several lines, `speed` a
    sentence. Returns: All measurements."""
    measurements: list[Measured] = [read_object(path) for path in sorted(folder.glob("*/measurements.json"))]
    for page in pages if measurements else ():
        text = in_page(page.read_text(), "bench", f"\n{block(measurements)}\n")
        write_atomically(page, in_page(text, "speed", speed(measurements)).encode())
    return measurements


def block(measurements: Sequence[Measured]) -> str:
    """The page's block: runs an hour on every device."""
    parts = []
    for measured in measurements:
        machine = measured["machine"]
        memory = f"{machine['memory_gib']:.0f} GiB"
        where = f"{machine['cores']} cores ({measured['device']}, {machine['cpu']}, {memory})"
        parts += [f"On {where}:", sides_table(measured).strip(), runs_text(measured)]
    return "\n\n".join(parts)


def speed(measurements: Sequence[Measured]) -> str:
    """The README's figures: how many times as many runs an hour as the tuned and as the plain script, over devices."""
    every = [rates(measured) for measured in measurements]
    gains = (
        sorted(statistics.median(by_side["ours"]) / statistics.median(by_side[side]) for by_side in every)
        for side in SIDES[:2]
    )
    plain, tuned = (" to ".join(dict.fromkeys((f"{gain[0]:.1f}", f"{gain[-1]:.1f}"))) for gain in gains)
    per_tuned = f"{tuned} times as many LoRA runs per hour as a tuned script of Trainer and PEFT"
    return f"{per_tuned}, {plain} times as many as a plain one"


def turns(measured: Measured, side: str) -> list[Mapping[str, Any]]:
    return sorted((turn for turn in measured["rounds"] if turn["side"] == side), key=lambda turn: turn["round"])


def rates(measured: Measured) -> dict[str, list[float]]:
    """Side -> runs per hour, round by round."""
    return {side: [3600 * len(t["cells"]) / t["seconds"] for t in turns(measured, side)] for side in SIDES}


def sides_table(measured: Measured) -> str:
    """One row per side. A task's column has the median of its headline metric after the last epoch."""
    rows = []
    for side in SIDES:
        rounds = turns(measured, side)
        row = {
            "": BENCH_TITLES[side].format(**measured["settings"]),
            "runs / hour": shown(rates(measured)[side], 0),
            "s / run": f"{statistics.median(turn['seconds'] / len(turn['cells']) for turn in rounds):.1f}",
            "memory, MiB": f"{max(turn['peak_bytes'] for turn in rounds) / 2**20:,.0f}",
        }
        for task in sorted(measured["settings"]["tasks"]):
            scores = [run["metric"] for turn in rounds for run in turn["cells"] if run["task"] == task]
            defined = [score for score in scores if score is not None]
            row[TASKS[task].title] = f"{100 * statistics.median(defined):.1f}" if defined else "-"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def runs_text(measured: Measured) -> str:
    settings = measured["settings"]
    per_hour = rates(measured)
    n = len(turns(measured, "ours"))
    ratios = (  # round by round, so that a slowdown of a whole round cancels out
        [one / other for one, other in zip(per_hour["ours"], per_hour[peer], strict=True)] for peer in SIDES[:2]
    )
    script, tuned = (shown(ratio, 1).replace(" ", "x ", 1) for ratio in ratios)  # 9.8x (9.7 to 10.0)
    runs = {side: sum(len(turn["cells"]) for turn in turns(measured, side)) for side in SIDES}
    counts = ", ".join(f"{count} of {side.replace('_', ' ')}" for side, count in runs.items())
    busy = max(measured["busy_cores"])
    spread = "95% interval" if n >= FEWEST else "range"
    return (
        f"{script} the script loop and {tuned} the tuned peer: medians over {n} interleaved rounds, in parentheses "
        f"their {spread}, of LoRA runs of {settings['train_rows']:,} rows and {settings['epochs']} epochs "
        f"({counts}). {'The machine was idle' if busy <= IDLE_CORES else '**The machine was not idle**'} (others kept "
        f"up to {busy:.2f} cores busy). The scores are of the small embedded tasks, not GLUE, with all-MiniLM-L6-v2, a "
        f"sentence embedder."
    )
