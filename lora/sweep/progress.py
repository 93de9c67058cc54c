"""Progress of a single run, and of a sweep: a line when something has ended, and at least every ten seconds."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lora.config.labels import labels
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord, read_record, record_path
from lora.sweep.expand import PlannedRun
from lora.sweep.notes import read_notes

POLL_SECONDS = 1.0
LINE_SECONDS = 10.0


@contextlib.contextmanager
def repeatedly(call: Callable[[], None]) -> Iterator[None]:
    """Call a function every `POLL_SECONDS` during the block, in a thread."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(POLL_SECONDS):
            call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Lines:
    """Lines on stderr. On a terminal, `passing` ones are overwritten by the next."""

    def __init__(self):
        self.last = time.monotonic()

    def say(self, line: str, passing: bool = False) -> None:
        self.last = time.monotonic()
        clear, end = ("\r\x1b[K", "" if passing else "\n") if sys.stderr.isatty() else ("", "\n")
        print(f"{clear}{line}", end=end, file=sys.stderr, flush=True)

    def are_due(self) -> bool:
        return time.monotonic() - self.last >= (POLL_SECONDS if sys.stderr.isatty() else LINE_SECONDS)


class Display:
    """The progress of a single run: a line per epoch, and in between where it is."""

    def __init__(self, config: RunConfig):
        self.metric, self.epochs = TASKS[config.task].metric, config.train.epochs
        self.lines = Lines()
        self.said = 0  # number of epochs whose line is printed
        self.first: tuple[int, float] | None = None  # the first step of this process, and its time
        self.now = "loading the encoder and the rows"

    def shown(self) -> contextlib.AbstractContextManager[None]:
        return repeatedly(lambda: self.lines.say(self.now, passing=True) if self.lines.are_due() else None)

    def __call__(self, progress: Any) -> None:
        """Take in a step (`lora.training.loop.Progress`)."""
        if self.first is None:
            self.first, self.said = (progress.step, time.monotonic()), len(progress.epochs)
            if progress.step > 1:
                self.lines.say(f"resumes after step {progress.step - 1} of {progress.steps}, in epoch {progress.epoch}")
        first, since = self.first
        pace = (time.monotonic() - since) / (progress.step - first) if progress.step > first else None
        left = f", left {duration(pace * (progress.steps - progress.step))}" if pace is not None else ""
        self.now = f"epoch {progress.epoch} of {self.epochs}: step {progress.step} of {progress.steps}{left}"
        self._epochs(progress.epochs, progress.metric, left)

    def end(self, record: RunRecord) -> None:
        """Print the line of the last epoch, since no step follows its evaluation."""
        if record.status == "ok":
            selected = record.selected
            value = record.epochs[-1]["metrics"][selected["split"]][selected["metric"]]
            self._epochs(record.epochs, value, "")

    def _epochs(self, epochs: Sequence[dict[str, Any]], metric: float | None, left: str) -> None:
        if len(epochs) > self.said:
            self.said = len(epochs)
            loss = f"train loss {epochs[-1]['train_loss']:.3f}"
            self.lines.say(f"epoch {self.said} of {self.epochs}: {self.metric} {shown(metric)}, {loss}{left}")


class Watch:
    """The progress of a sweep: a line per finished run and, in between, where the running ones are and the time left.

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
        self.words = labels(runs)
        self.total, self.done = len(runs) + done, done
        self.expected, self.workers = expected, max(1, workers)
        self.results, self.outputs = results, outputs
        self.started, self.spent, self.foreseen = time.time(), 0.0, 0.0
        self.seen = 0  # train examples of the runs that have ended since the launch
        self.lines = Lines()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        try:
            with repeatedly(self.look):
                yield
        finally:
            self.look()

    def look(self) -> None:
        """Print what has happened since the last look."""
        for run_id in sorted(filter(self._written, self.waiting)):
            self.seen += self.waiting.pop(run_id)
            self.done += 1
            try:
                self._finished(read_record(record_path(self.results, run_id)))
            except UserError as error:
                self.lines.say(str(error))
        if self.lines.are_due() and self.waiting:
            running = self._running() or "nothing trains yet"
            self.lines.say(f"[{self.done:>3}/{self.total}] left {self.left()}  {running}", passing=True)

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
        name = "  ".join(filter(None, (record.run_id, self.words[record.run_id])))
        self.lines.say(f"[{self.done:>3}/{self.total}] {name}  {outcome}  {record.seconds:.0f} s  left {self.left()}")

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

    def _running(self) -> str:
        return " | ".join(
            f"{' '.join(filter(None, (run_id.rsplit('-', 1)[0], self.words[run_id])))} {note['step']}/{note['steps']} "
            f"{shown(note['metric'])}"
            for run_id, note in read_notes(self.outputs).items()
            if run_id in self.waiting and note["steps"]
        )


def shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def counted(number: int, noun: str) -> str:
    """A count in words: "1 run", "2 runs"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
