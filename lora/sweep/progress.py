"""Progress display of a single run, and of a sweep.

Workers write notes about their progress, which the launching process and `lora.sweep.status` read.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lora.config.run import RunConfig
from lora.config.variants import Variant, words
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import discard, write_atomically
from lora.records.record import RunRecord, note_path, read_record, record_path
from lora.sweep.expand import PlannedRun

NOTE_SECONDS = 2.0
POLL_SECONDS = 1.0
LINE_SECONDS = 60.0  # between two lines about one epoch, without a terminal


class Note:
    """A worker's note about its run's progress: rewritten at most every `NOTE_SECONDS`, removed when the run ends."""

    def __init__(self, outputs: str, run_id: str):
        self.path = note_path(outputs, run_id)
        self.written = 0.0
        self.began: tuple[int, float] | None = None  # the first reported step, and its time

    def __call__(self, progress: Any) -> None:
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
            with contextlib.suppress(UserError):  # on a full disk, the run itself may still succeed
                write_atomically(self.path, json.dumps({**content, **pace}).encode())

    def __enter__(self) -> "Note":
        return self

    def __exit__(self, *_: object) -> None:
        discard(self.path)  # with what a killed worker of this run left half-written


class Display:
    """The progress of a single run: on a terminal a bar of its steps, otherwise a line per epoch and per minute."""

    def __init__(self, config: RunConfig):
        self.metric, self.epochs = TASKS[config.task].metric, config.train.epochs
        self.bar: tqdm | None = None
        self.said = 0  # number of epochs whose line is printed
        self.first: tuple[int, float] | None = None  # the first step of this process, and its time
        self.last_line = time.monotonic()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, progress: Any) -> None:
        """Update the display after a step (`lora.training.loop.Progress`)."""
        if self.first is None:
            self._begin(progress)
        first, since = self.first
        if self.bar is not None:
            self.bar.set_description(f"epoch {progress.epoch}/{self.epochs}", refresh=False)
            self.bar.set_postfix_str(f"{self.metric} {shown(progress.metric)}", refresh=False)
            self.bar.update(progress.step - self.bar.n)
            return
        now = time.monotonic()
        pace = (now - since) / (progress.step - first) if progress.step > first else None
        left = f", left {duration(pace * (progress.steps - progress.step))}" if pace is not None else ""
        self._epochs(progress.epochs, progress.metric, left)
        if now - self.last_line >= LINE_SECONDS:
            self._say(f"epoch {progress.epoch} of {self.epochs}: step {progress.step} of {progress.steps}{left}")

    def end(self, record: RunRecord) -> None:
        """Print the line of the last epoch, since no step follows its evaluation."""
        if self.bar is None and record.status == "ok":
            selected = record.selected
            value = record.epochs[-1]["metrics"][selected["split"]][selected["metric"]]
            self._epochs(record.epochs, value, "")

    def _begin(self, progress: Any) -> None:
        before = progress.step - 1
        self.first, self.said = (progress.step, time.monotonic()), len(progress.epochs)
        if before:
            self._say(f"resumes after step {before} of {progress.steps}, in epoch {progress.epoch} of {self.epochs}")
        if sys.stderr.isatty():
            self.bar = tqdm(total=progress.steps, initial=before, unit="step", dynamic_ncols=True)

    def _epochs(self, epochs: Sequence[dict[str, Any]], metric: float | None, left: str) -> None:
        if len(epochs) > self.said:
            self.said = len(epochs)
            loss = f"train loss {epochs[-1]['train_loss']:.3f}"
            self._say(f"epoch {self.said} of {self.epochs}: {self.metric} {shown(metric)}, {loss}{left}")

    def _say(self, line: str) -> None:
        self.last_line = time.monotonic()
        print(line, file=sys.stderr, flush=True)


class Watch:
    """The progress of a sweep: a line per finished run and, on a terminal, a bar, with the time left.

    Args:
        runs: The runs of this launch.
        done: Number of the sweep's runs that were done before.
        expected: run_id -> estimated seconds, or None if unknown.
        workers: Number of runs trained at once.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        done: int,
        expected: dict[str, float | None],
        workers: int,
        results: str,
        outputs: str,
    ):
        self.waiting = {run.run_id: run.examples for run in runs}
        self.words = words_of(runs)
        self.total, self.done = len(runs) + done, done
        self.expected, self.workers = expected, max(1, workers)
        self.results, self.outputs = results, outputs
        self.started, self.spent, self.foreseen = time.time(), 0.0, 0.0
        self.seen = 0  # train examples of the runs that have ended since the launch
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.bar = tqdm(total=self.total, initial=done, unit="run", dynamic_ncols=True) if sys.stderr.isatty() else None

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
            self.seen += self.waiting.pop(run_id)
            self.done += 1
            try:
                self._finished(read_record(record_path(self.results, run_id)))
            except UserError as error:
                self._say(str(error))
        if self.bar is not None:
            self.bar.set_postfix_str(f"left {self.left()}  {self._current()}", refresh=True)

    def _written(self, run_id: str) -> bool:
        """Whether a record was written since this launch started: a run that is trained again has an old one."""
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
        """The run_id, with the settings that distinguish the run from others of its method."""
        return f"{run_id}  {self.words[run_id]}" if self.words[run_id] else run_id

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr) if self.bar is not None else print(line, file=sys.stderr, flush=True)

    def left(self) -> str:
        """Time left: the sum of the waiting runs' estimates, scaled by the finished runs' actual over estimated time.

        A run without an estimate counts as much per train example as the runs that have ended since the launch.
        """
        pace = self.spent / self.foreseen if self.foreseen else 1.0
        seconds = 0.0
        for run_id, examples in self.waiting.items():
            expected = self.expected.get(run_id)
            if expected is None and not self.seen:
                return "?"
            seconds += pace * expected if expected is not None else self.spent / self.seen * examples
        return duration(seconds / min(self.workers, max(1, len(self.waiting))))

    def _current(self) -> str:
        notes = []
        for path in sorted(note_path(self.outputs, "").parent.glob("*.json")):
            if path.stem in self.waiting:
                try:
                    note = json.loads(path.read_bytes())
                except (OSError, ValueError):
                    continue  # the worker has just replaced or removed it
                name = " ".join(filter(None, (path.stem.rsplit("-", 1)[0], self.words[path.stem])))
                notes.append(f"{name} {note['step']}/{note['steps']} {shown(note['metric'])}")
        return " | ".join(notes)


def words_of(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """run_id -> the settings that distinguish a run from others of its method in this sweep, in the tables' words."""
    alike: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault((run.slug, run.start), []).append(run)
    found = {}
    for several in alike.values():
        variants = {run.run_id: Variant(run.given, run.settings) for run in several}
        apart = words(variants.values())
        found |= {run_id: apart[own] for run_id, own in variants.items()}
    return found


def shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def counted(number: int, noun: str) -> str:
    """A count in words: "1 run", "2 runs"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
