"""Progress of a single run, and of a sweep: a line when something has ended, and at least every ten seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord, read_record, record_path
from lora.sweep.notes import read_notes

if TYPE_CHECKING:
    from lora.config.run import RunConfig
    from lora.sweep.expand import PlannedRun

POLL_SECONDS = 1.0
LINE_SECONDS = 10.0


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

    def __init__(self, config: "RunConfig"):
        self.metric, self.count = TASKS[config.task].metric, config.train.epochs
        self.lines = Lines()
        self.said = 0  # number of epochs whose line is printed
        self.first: tuple[int, float] | None = None  # the first step of this process, and its time
        if sys.stderr.isatty():
            self.lines.say("loading the encoder and the rows", passing=True)

    def __call__(self, progress: Any) -> None:
        """Take in a step (`lora.training.loop.Progress`)."""
        if self.first is None:
            self.first, self.said = (progress.step, time.monotonic()), len(progress.epochs)
            if progress.step > 1:
                self.lines.say(f"resumes after step {progress.step - 1} of {progress.steps}, in epoch {progress.epoch}")
        first, since = self.first
        pace = (time.monotonic() - since) / (progress.step - first) if progress.step > first else None
        left = f", left {duration(pace * (progress.steps - progress.step))}" if pace is not None else ""
        self.epochs(progress.epochs, progress.metric, left)
        if self.lines.are_due():
            where = f"epoch {progress.epoch} of {self.count}: step {progress.step} of {progress.steps}"
            self.lines.say(f"{where}{left}", passing=True)

    def end(self, record: RunRecord | None) -> None:
        """Print the line of the last epoch, since no step follows its evaluation."""
        if record is not None and record.status == "ok":
            selected = record.selected
            self.epochs(record.epochs, record.epochs[-1]["metrics"][selected["split"]][selected["metric"]], "")

    def epochs(self, epochs: Sequence[dict[str, Any]], metric: float | None, left: str) -> None:
        if len(epochs) > self.said:
            self.said = len(epochs)
            loss = f"train loss {epochs[-1]['train_loss']:.3f}"
            self.lines.say(f"epoch {self.said} of {self.count}: {self.metric} {shown(metric)}, {loss}{left}")


class Watch:
    """The progress of a sweep: a line per finished run and, in between, where the running ones are and the time left.

    Args:
        runs: The runs of this launch.
        done: Number of the sweep's runs that were done before.
        left: Returns the seconds that runs take, from the records of those that have ended; None if unknown.
        words: run_id -> the settings by which a run differs from others of its method.
    """

    def __init__(
        self,
        runs: Sequence["PlannedRun"],
        done: int,
        left: Callable[[Iterable["PlannedRun"], Sequence[RunRecord]], float | None],
        words: Mapping[str, str],
        results: str,
        outputs: str,
    ):
        self.waiting = {run.run_id: run for run in runs}
        self.total, self.done = len(runs) + done, done
        self.seconds, self.ended, self.words = left, [], words
        self.results, self.outputs = results, outputs
        self.started = time.time()
        self.lines = Lines()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Look every `POLL_SECONDS` during the block, in a thread."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(POLL_SECONDS):
                self.look()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Print what has happened since the last look."""
        for run_id in sorted(filter(self._written, self.waiting)):
            del self.waiting[run_id]
            self.done += 1
            try:
                record = read_record(record_path(self.results, run_id))
            except UserError as error:
                self.lines.say(str(error))
                continue
            self.ended.append(record)
            outcome = f"failed: {record.error}"
            if record.status == "ok":
                outcome = f"{record.selected['metric']} {shown(record.selected['best']['value'])}"
            name = "  ".join(filter(None, (run_id, self.words[run_id])))
            self.lines.say(f"{self._count()} {name}  {outcome}  {record.seconds:.0f} s  left {self.left()}")
        if self.lines.are_due() and self.waiting:
            self.lines.say(
                f"{self._count()} left {self.left()}  {self._running() or 'nothing trains yet'}", passing=True
            )

    def left(self) -> str:
        seconds = self.seconds(self.waiting.values(), self.ended)
        return "?" if seconds is None else duration(seconds)

    def _count(self) -> str:
        return f"[{self.done:>3}/{self.total}]"

    def _written(self, run_id: str) -> bool:
        """Whether a record was written since this launch started: a run that is trained again has an old one."""
        path = record_path(self.results, run_id)
        return path.exists() and path.stat().st_mtime >= self.started

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
