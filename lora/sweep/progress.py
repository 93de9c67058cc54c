"""What is said about runs: before they are trained, and their progress, for a single run and for a sweep."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lora.config.auto import not_covered, takes_gpu
from lora.config.plan import LEARNING_RATE, ROWS
from lora.config.rates import TUNING
from lora.config.run import PlannedRun, RunConfig
from lora.data.tasks import KEYS
from lora.errors import UserError
from lora.methods.configs import method_words
from lora.records.record import RunRecord, read_record, record_path
from lora.sweep.notes import Note, read_notes
from lora.sweep.state import estimator, own_records

BAR = 20  # characters
POLL_SECONDS = 1.0
LINE_SECONDS = 10.0  # where lines stay, as in a log
ORIGINS = {
    "conf": "from conf/hparams",
    "default": "untuned: the line `default` of conf/hparams, not chosen for this task",
    "tuned": "tuned, from rates.yaml (`rates`)",
    "stated": "as stated",
}


# Before.


def about(runs: Sequence[PlannedRun], again: int = 0) -> list[str]:
    """Lines about runs to train, `again` of them only for their adapters: what their results depend on, W&B copies."""
    configs = [run.config for run in runs]
    models = dict.fromkeys(config.model.name for config in configs)
    epochs = sorted({config.train.epochs for config in configs})
    lines = [f"  encoder: {', '.join(models)}; epochs: {', '.join(map(str, epochs))}"]
    for task in {run.task.name: run.task for run in runs if run.task.own is not None}.values():
        sizes = sorted({run.train_rows for run in runs if run.task.name == task.name})
        rows = {split: f"{count:,}" for split, count in task.official_rows.items()}
        rows |= {"train": " or ".join(f"{size:,}" for size in sizes)}
        lines.append(f"  rows:    {task.name}: {', '.join(f'{KEYS[split]} {count}' for split, count in rows.items())}")
    rates: dict[str, dict[str, set[float]]] = {}
    for config in configs:
        methods = rates.setdefault(config.runtime.rate_from or "stated", {})
        title, _ = method_words(config.slug)
        methods.setdefault(title, set()).add(config.train.lr)
    for origin, methods in rates.items():
        by_method = (
            f"{method} {' or '.join(f'{rate:g}' for rate in sorted(values))}" for method, values in methods.items()
        )
        lines.append(f"  rates:   {', '.join(by_method)} ({ORIGINS[origin]})")
    lines.append(f"  kernels: {'; '.join(dict.fromkeys(map(kernels_of, configs)))}")
    runtime = configs[0].runtime
    if again:
        lines.append(f"  again:   {count_of(again, 'finished run')}, for adapters that {runtime.outputs} lacks")
    if runtime.tracking != "off":
        sent = ", sent if there is a key" if runtime.tracking == "auto" else ""
        lines.append(f"  copies:  for W&B, in {runtime.outputs}/wandb{sent} (none with runtime.tracking=off)")
    return lines


def kernels_of(config: RunConfig) -> str:
    """A run's kernels and precision, with the reason for stock kernels on a CPU."""
    kernels, reason = config.train.kernels, None
    if kernels == "stock" and config.model.source != "hub" and not takes_gpu(config):
        reason = not_covered(config.model)
    return f"{kernels}, {config.train.precision}{f' (fused kernels do not cover {reason})' if reason else ''}"


# A single run.


class Lines:
    """Lines on stderr. On a terminal, `passing` ones are overwritten by the next."""

    def __init__(self):
        self.last = time.monotonic()

    def say(self, line: str, passing: bool = False) -> None:
        self.last = time.monotonic()
        clear, end = ("\r\x1b[K", "" if passing else "\n") if sys.stderr.isatty() else ("", "\n")
        if clear or line:  # an empty passing line clears the last
            print(f"{clear}{line}", end=end, file=sys.stderr, flush=True)

    def are_due(self) -> bool:
        return time.monotonic() - self.last >= (POLL_SECONDS if sys.stderr.isatty() else LINE_SECONDS)


class Display:
    """The progress of a single run: a line per epoch, and in between where it is."""

    def __init__(self, run: PlannedRun, note: Note):
        self.metric, self.count, self.note = run.task.metric, run.config.train.epochs, note
        self.lines = Lines()
        self.said: int | None = None  # number of epochs whose line is printed
        if sys.stderr.isatty():
            self.lines.say("loading the encoder and the rows", passing=True)

    def __call__(self, progress: Any) -> None:
        """Take in a step (`lora.training.loop.Progress`)."""
        where = f"epoch {progress.epoch} of {self.count}: step {progress.step} of {progress.steps}"
        if self.said is None:
            self.said = len(progress.epochs)
            if progress.step > 1:
                self.lines.say(f"resumes in {where}")
        pace = self.note.pace
        left = f", left {duration(pace * (progress.steps - progress.step))}" if pace is not None else ""
        self.epochs(progress.epochs, progress.metric, left)
        if self.lines.are_due():
            self.lines.say(f"{where}{left}", passing=True)

    def end(self, record: RunRecord | None) -> None:
        """Print the line of the last epoch, since no step follows its evaluation."""
        if record is not None and record.status == "ok":
            selected = record.selected
            self.epochs(record.epochs, record.epochs[-1]["metrics"][selected["split"]][selected["metric"]], "")
        self.lines.say("", passing=True)

    def epochs(self, epochs: Sequence[dict[str, Any]], metric: float | None, left: str) -> None:
        if len(epochs) > (self.said or 0):
            self.said = len(epochs)
            loss = f"train loss {epochs[-1]['train_loss']:.3f}"
            self.lines.say(f"epoch {self.said} of {self.count}: {self.metric} {as_percent(metric)}, {loss}{left}")


# A sweep.


class Watch:
    """The progress of a sweep: a line per finished run and, in between, where the running ones are and the time left.

    On a terminal, a bar stands in place of these lines; only what failed has its own.
    """

    def __init__(self, runs: Sequence[PlannedRun], done: int, results: str, outputs: str, workers: int):
        self.waiting = {run.run_id: run for run in runs}
        self.total = len(runs) + done
        self.done = done
        self.workers = workers
        self.results = results
        self.outputs = outputs
        self.lines = Lines()
        self.earlier, self.ended = estimator(own_records(results)), []  # records before this launch, and of it
        self.before = {run_id: self._time(run_id) for run_id in self.waiting}  # of runs that are trained again

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
            self.lines.say("", passing=True)

    def look(self) -> None:
        """Print what has happened since the last look."""
        # records that were written since this launch started; no clock is asked: a file system's may lag behind
        for run_id in sorted(run_id for run_id in self.waiting if self._time(run_id) != self.before[run_id]):
            run = self.waiting.pop(run_id)
            self.done += 1
            try:
                record = read_record(record_path(self.results, run_id))
            except UserError as error:
                self.lines.say(str(error))
                continue
            outcome = f"failed: {record.error}"
            if record.status == "ok":
                outcome = f"{record.selected['metric']} {as_percent(record.selected['best']['value'])}"
                self.ended.append(record)
            if record.status == "failed" or not sys.stderr.isatty():
                self.lines.say(f"{self._count()}  {run_title(run)}  {run_id}  {outcome}  {record.seconds:.0f} s")
        if self.lines.are_due() and self.waiting:
            notes = {i: note for i, note in read_notes(self.outputs).items() if i in self.waiting and note["steps"]}
            shares = "".join(f"{note['step'] / note['steps']:.0%} " for note in notes.values())  # not cut at the end
            names = " | ".join(run_title(self.waiting[run_id]) for run_id in notes) or "nothing trains yet"
            line = f"{self._count()}  {shares}{names}"
            bar = BAR * self.done // self.total
            if sys.stderr.isatty():
                line = f"{'━' * bar}{'╌' * (BAR - bar)} {line}"[: shutil.get_terminal_size().columns - 1]
            self.lines.say(line, passing=True)

    def _count(self) -> str:
        """The runs that are done, and the time left: at the speed of this launch, else of earlier ones."""
        notes = read_notes(self.outputs)
        ended = estimator(self.ended)
        waiting = self.waiting.items()
        left = [seconds_left(notes.get(run_id), ended(run) or self.earlier(run)) for run_id, run in waiting]
        time_left = "?" if None in left else duration(max(sum(left) / self.workers, *left, 0))
        return f"[{self.done:>3}/{self.total}] left {time_left}"

    def _time(self, run_id: str) -> int | None:
        path = record_path(self.results, run_id)
        return path.stat().st_mtime_ns if path.exists() else None


def seconds_left(note: Mapping[str, Any] | None, expected: float | None) -> float | None:
    """The time left of a run: at the pace that its note states, else as expected. None if neither is known."""
    return expected if note is None or note["pace"] is None else note["pace"] * (note["steps"] - note["step"])


def run_title(run: PlannedRun) -> str:
    """`LoRA qv r8 · CoLA · seed 3`, with its train rows or its rate, where these are what runs differ in."""
    title, details = method_words(run.slug)
    is_part = run.config.data.train_rows is not None and {*run.experiments} <= {TUNING, ROWS}
    rows = f" · {run.train_rows} rows" if is_part else ""
    rate = f" · {run.config.train.lr:g}" if {*run.experiments} <= {TUNING, LEARNING_RATE} else ""
    return f"{' '.join((title, *details))} · {run.task.title}{rows} · seed {run.seed}{rate}"


def as_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def count_of(number: int, noun: str) -> str:
    """A count in words: "1 run", "2 runs"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
