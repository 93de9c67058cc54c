"""Notes about running runs: a worker writes its progress, and `status` and the launching process read it."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from lora.errors import UserError
from lora.files import discard, remove_empty, write_atomically
from lora.records.record import RunRecord, note_path
from lora.sweep.locks import whereabouts

NOTE_SECONDS = 2.0
SILENT_SECONDS = 600.0  # without a new note, a worker of another machine counts as gone; an evaluation writes none


class Note:
    """The note of one run, rewritten at most every `NOTE_SECONDS`."""

    def __init__(self, outputs: str, run_id: str):
        self.path = note_path(outputs, run_id)
        self.written = 0.0
        self.first: tuple[int, float] | None = None  # the first reported step, and its time
        self.worker = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "where": whereabouts(),
            "since": time.strftime("%Y-%m-%d %H:%M"),
        }
        self.write({"step": 0, "steps": None, "epoch": 0, "metric": None, "pace": None})

    def __call__(self, progress: Any) -> None:
        """Note the progress after a step (`lora.training.loop.Progress`)."""
        now = time.monotonic()
        first, since = self.first = self.first or (progress.step, now)
        if now - self.written >= NOTE_SECONDS:
            self.written = now
            pace = (now - since) / (progress.step - first) if progress.step > first else None
            shown = {key: getattr(progress, key) for key in ("step", "steps", "epoch", "metric")}
            self.write({**shown, "pace": pace})

    def write(self, progress: dict[str, Any]) -> None:
        with suppress(UserError):  # on a full disk, the run itself may still succeed
            write_atomically(self.path, json.dumps(self.worker | progress).encode())

    def end(self, record: RunRecord | None) -> None:
        """Remove the note, with what a killed worker of this run left half-written."""
        discard(self.path)
        remove_empty(self.path.parent)


def read_notes(outputs: str | Path) -> dict[str, dict[str, Any]]:
    """run_id -> its note, for the runs whose worker is alive.

    Returns: Notes with the worker's `where` and `since`, the `step` out of `steps` (None before the first one), the
        `epoch`, the `metric`, and the `pace` in seconds per step.
    """
    notes = {}
    for path in sorted(note_path(outputs, "").parent.glob("[!.]*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):  # its worker has just removed it
            note = json.loads(path.read_bytes())
            if is_alive(note, path):
                notes[path.stem] = note
    return notes


def is_alive(note: dict[str, Any], path: Path) -> bool:
    """Whether the process that wrote a note lives; on another machine, whether the note is recent."""
    if note["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < SILENT_SECONDS
    try:
        process = psutil.Process(note["pid"])
        same = abs(process.create_time() - note["born"]) < 60  # pids are used again; clocks are set
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
