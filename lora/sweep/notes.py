"""A file per running run: its worker locks it with `flock` and writes its progress into it.

The kernel frees the lock when the process that holds it ends, however it ends. Workers on several nodes exclude each
other if their file system shares its locks, as NFS does. Without locks, a run may be trained twice. Both workers then
write the same record: a run is deterministic, and a record is written atomically.
"""

import errno
import fcntl
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from lora.errors import UserError
from lora.files import remove_empty
from lora.records.record import note_path

NOTE_SECONDS = 2.0
SILENT_SECONDS = 600.0  # without a new note, a worker of another machine counts as gone; an evaluation writes none


class HeldError(UserError):
    """Another worker is training the run."""


class Note:
    """The progress of one run, written into its locked file at most every `NOTE_SECONDS`."""

    def __init__(self, file: IO[bytes]):
        self.file, self.written = file, 0.0
        self.first: tuple[int, float] | None = None  # the first reported step, and its time
        self.pace: float | None = None  # seconds per step
        host = socket.gethostname()
        pid = os.getpid()
        slurm = os.environ.get("SLURM_JOB_ID")
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            slurm = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"  # as scancel takes it
        where = f"process {pid} of {host}" + (f", slurm {slurm}" if slurm else "")
        self.worker = {"host": host, "pid": pid, "born": psutil.Process().create_time(), "where": where}
        self.worker |= {"since": time.strftime("%Y-%m-%d %H:%M")}
        self.write({"step": 0, "steps": None, "epoch": 0, "metric": None, "pace": None})

    def __call__(self, progress: Any) -> None:
        """Note the progress after a step (`lora.training.loop.Progress`)."""
        now = time.monotonic()
        first, since = self.first = self.first or (progress.step, now)
        if progress.step > first:
            self.pace = (now - since) / (progress.step - first)
        if now - self.written >= NOTE_SECONDS:
            self.written = now
            state = {key: getattr(progress, key) for key in ("step", "steps", "epoch", "metric")}
            self.write(state | {"pace": self.pace})

    def write(self, progress: dict[str, Any]) -> None:
        text = json.dumps(self.worker | progress).ljust(1024)  # one write over the last, so that no reader finds a part
        with suppress(OSError):  # on a full disk, the run itself may still succeed
            os.pwrite(self.file.fileno(), text.encode(), 0)


@contextmanager
def held(outputs: str | Path, run_id: str) -> Iterator[Note]:
    """Hold a run's lock, and remove its file at the end. Yields: The note for its progress.

    Raises: HeldError: If another process holds it, or releases it at this moment. UserError: If its file cannot be
        written.
    """
    path = note_path(outputs, run_id)
    released = HeldError(f"{run_id} has just been released by another worker; try again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except OSError as error:
        if isinstance(error, FileNotFoundError | FileExistsError) and not path.parent.is_file():
            raise released from error
        raise UserError(f"cannot write the lock {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                owner = read_notes(outputs).get(run_id, {}).get("where", "another worker")
                raise HeldError(f"{run_id} is being trained by {owner}; wait for it, or stop it first") from error
            _say_without_locks(path.parent, error.strerror)
        try:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise released
        except FileNotFoundError:  # its holder has just removed it
            raise released from None
        try:
            yield Note(file)
        finally:
            path.unlink(missing_ok=True)  # before the lock is released
            remove_empty(path.parent)


@functools.cache
def _say_without_locks(folder: Path, reason: str) -> None:
    print(f"{folder} has no file locks ({reason}): a run may be trained twice, to the same record", file=sys.stderr)


def read_notes(outputs: str | Path) -> dict[str, dict[str, Any]]:
    """run_id -> its note, for the runs whose worker is alive. No lock is taken.

    Returns: Notes with the worker's `where` and `since`, the `step` out of `steps` (None before the first one), the
        `epoch`, the `metric`, and the `pace` in seconds per step.
    """
    notes: dict[str, dict[str, Any]] = {}
    try:
        paths = sorted(note_path(outputs, "").parent.glob("*.json"))
    except FileNotFoundError:  # the last worker has just ended, and removed the folder
        return notes
    for path in paths:
        with suppress(OSError, ValueError, TypeError, KeyError, psutil.NoSuchProcess):  # its worker has just ended
            note = json.loads(path.read_bytes())
            if is_alive(note, path):
                notes[path.stem] = note
    return notes


def is_alive(note: dict[str, Any], path: Path) -> bool:
    """Whether the process that wrote a note lives; on another machine, whether the note is recent."""
    if note["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < SILENT_SECONDS
    process = psutil.Process(note["pid"])
    same = abs(process.create_time() - note["born"]) < 60  # pids are used again; clocks are set
    return same and process.status() != psutil.STATUS_ZOMBIE
