"""Showing a sweep while it runs: workers leave notes of where they are, the launching process reads them."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lora.config.variants import Variant, words
from lora.errors import UserError
from lora.files import write_atomically
from lora.records.record import RunRecord, read_record, record_path
from lora.sweep.expand import Cell

NOTE_SECONDS = 2.0
POLL_SECONDS = 1.0


class Note:
    """A worker's note of its cell: rewritten at most every `NOTE_SECONDS`, removed when the cell ends."""

    def __init__(self, outputs: str, run_id: str):
        self.path = Path(outputs) / "running" / f"{run_id}.json"
        self.written = 0.0
        self.began: tuple[int, float] | None = None  # the first step that was reported, and when

    def __call__(self, progress) -> None:
        now = time.monotonic()
        self.began = self.began or (progress.step, time.time())
        if now - self.written >= NOTE_SECONDS:
            self.written = now
            content = {
                "step": progress.step,
                "steps": progress.steps,
                "epoch": progress.epoch,
                "metric": progress.metric,
            }
            first, since = self.began
            pace = {"first": first, "since": since, "time": time.time()}
            with contextlib.suppress(UserError):  # a full disk: the run itself may still end well
                write_atomically(self.path, json.dumps({**content, **pace}).encode())

    def __enter__(self) -> "Note":
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


class Watch:
    """Cell k of n, the current metric and the time left: a bar on a terminal, a line per finished cell elsewhere.

    Args:
        expected: Estimated seconds per cell still to run; None where nothing is known.
        workers: How many cells run at once.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        done: int,
        expected: dict[str, float | None],
        workers: int,
        results: str,
        outputs: str,
    ):
        self.waiting = {cell.run_id for cell in cells}
        self.words = words_of(cells)
        self.total, self.done = len(cells) + done, done
        self.expected, self.workers = expected, max(1, workers)
        self.results, self.running = results, Path(outputs) / "running"
        self.started, self.spent, self.foreseen = time.time(), 0.0, 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.bar = (
            tqdm(total=self.total, initial=done, unit="cell", dynamic_ncols=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._poll()
        if self.bar is not None:
            self.bar.close()

    def _loop(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        for run_id in sorted(filter(self._written, self.waiting)):
            self.waiting.discard(run_id)
            self.done += 1
            try:
                self._finished(read_record(record_path(self.results, run_id)))
            except UserError as error:
                self._say(str(error))
        if self.bar is not None:
            self.bar.set_postfix_str(f"left {self.left()}  {self._current()}", refresh=True)

    def _written(self, run_id: str) -> bool:
        """Since this launch started: a cell that is trained again has an old record."""
        path = record_path(self.results, run_id)
        return path.exists() and path.stat().st_mtime >= self.started

    def _finished(self, record: RunRecord) -> None:
        self.spent += record.seconds
        self.foreseen += self.expected.get(record.run_id) or record.seconds
        if record.status == "ok":
            outcome = f"{record.selected['metric']} {shown(record.selected['best']['value'])}"
        else:
            outcome = f"failed: {record.error}"
        if self.bar is not None:
            self.bar.update(1)
        self._say(
            f"[{self.done:>3}/{self.total}] {self._called(record.run_id)}  {outcome}  {record.seconds:.0f} s  "
            f"left {self.left()}"
        )

    def _called(self, run_id: str) -> str:
        """The run, and what sets it apart from others of its method."""
        return f"{run_id}  {self.words[run_id]}" if self.words[run_id] else run_id

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr) if self.bar is not None else print(line, file=sys.stderr, flush=True)

    def left(self) -> str:
        """Time left: the estimates of what waits, corrected by how the finished cells compared with theirs."""
        known = [self.expected.get(run_id) for run_id in self.waiting]
        if self.spent:
            mean = self.spent / max(1, self.done)
            pace = self.spent / self.foreseen
        else:
            mean, pace = 0.0, 1.0
        if any(value is None for value in known) and not self.spent:
            return "?"
        seconds = sum(pace * value if value is not None else mean for value in known)
        return duration(seconds / min(self.workers, max(1, len(self.waiting))))

    def _current(self) -> str:
        notes = []
        for path in sorted(self.running.glob("*.json")):
            if path.stem in self.waiting:
                try:
                    note = json.loads(path.read_bytes())
                except (OSError, ValueError):
                    continue  # just replaced or removed by its worker
                name = " ".join(filter(None, (path.stem.rsplit("-", 1)[0], self.words[path.stem])))
                notes.append(f"{name} {note['step']}/{note['steps']} {shown(note['metric'])}")
        return " | ".join(notes)


def words_of(cells: Sequence[Cell]) -> dict[str, str]:
    """run_id -> the settings that set a run apart from others of its method in this sweep, as tables name them."""
    alike: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        alike.setdefault((cell.slug, cell.start), []).append(cell)
    found = {}
    for several in alike.values():
        apart = words(Variant(cell.given, cell.usual) for cell in several)
        found |= {cell.run_id: apart[cell.given] for cell in several}
    return found


def shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
