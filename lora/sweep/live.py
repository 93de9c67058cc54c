"""`python -m lora status PROFILE --watch`: a live view of the training runs."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora.sweep.progress import shown
from lora.sweep.status import Standing, headline, left, totals

LOOK_SECONDS = 2.0
IDLE_SECONDS = 15.0  # workers of a sweep that has just started may take this long to load their libraries
SHOWN = 10  # at most this many failed, and as many interrupted, runs are listed

Look = Callable[[], tuple[Sequence[Standing], Sequence[Standing]]]


def watch(profile: str, look: Look, console: Console | None = None) -> None:
    """Show the state of the runs until all have ended, nothing has run for `IDLE_SECONDS`, or Ctrl-C.

    Args:
        look: Returns the requested runs, and others that are training (`lora.sweep.status.looker`).
    """
    busy = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                found, others = look()
                live.update(view(profile, found, others), refresh=True)
                if others or any(one.state == "running" for one in found):
                    busy = time.monotonic()
                elif time.monotonic() - busy >= IDLE_SECONDS or not is_unfinished(found):
                    live.console.print("nothing runs")
                    return
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            return


def is_unfinished(found: Sequence[Standing]) -> bool:
    return any(one.state in ("interrupted", "waiting") for one in found)


def view(profile: str, found: Sequence[Standing], others: Sequence[Standing]) -> RenderableType:
    """The whole screen: totals, a progress bar, and the running, interrupted and failed runs."""
    sums = totals(found)
    running = [one for one in found if one.state == "running"]
    parts: list[RenderableType] = [
        *(Text(line) for line in headline(profile, found)),
        ProgressBar(total=max(1, sums["runs"]), completed=sums["done"] + sums["failed"], width=60),
    ]
    if running or others:
        parts.append(table_of_running(running, others))
    for state, style in (("interrupted", "yellow"), ("failed", "red")):
        chosen = [one for one in found if one.state == state]
        for one in chosen[:SHOWN]:
            step = f"  step {one.step}/{one.steps}" if one.steps else ""
            parts.append(Text(f"{state}  {one.run_id}{step}  {one.reason or ''}".rstrip(), style))
        if len(chosen) > SHOWN:
            parts.append(Text(f"{state}  {len(chosen) - SHOWN} more", style))
    return Group(*parts)


def table_of_running(running: Sequence[Standing], others: Sequence[Standing]) -> Table:
    table = Table("Running", "Step", "Metric", "Left", "Where", box=None, pad_edge=False)
    for one in (*running, *others):
        name = f"{one.run_id} (other overrides)" if one in others else one.run_id
        step = f"{one.step}/{one.steps}" if one.steps else "starts"
        table.add_row(name, step, shown(one.metric), left(one), one.where or "-")
    return table
