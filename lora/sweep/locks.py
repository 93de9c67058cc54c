"""A lock per run: `flock` on one file. The kernel frees it when the process that holds it ends, however it ends.

Workers on several nodes exclude each other if their file system shares its locks, as NFS does. Without locks, a run may
be trained twice. Both workers then write the same record: a run is deterministic, and a record is written atomically.
"""

import errno
import fcntl
import functools
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lora.errors import UserError
from lora.files import remove_empty

HELD = (errno.EAGAIN, errno.EACCES)
REFUSED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class HeldError(UserError):
    """Another worker is training the run."""


def lock_path(outputs: str | Path, run_id: str) -> Path:
    return Path(outputs) / "locks" / f"{run_id}.lock"


def whereabouts() -> str:
    """This process, for messages: its pid, host and Slurm job, in the form that scancel takes.

    Source: sbatch(1), output environment variables.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"
    return f"process {os.getpid()} of {socket.gethostname()}" + (f", slurm {job}" if job else "")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a run's lock.

    Raises: HeldError: If another process holds it. UserError: If its file cannot be written.
    """
    try:
        file = _locked(path)
        file.truncate(0)
        file.write(whereabouts())
        file.flush()
    except OSError as error:
        raise UserError(f"cannot write the lock {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is released: `_locked` notices
        file.close()
        remove_empty(path.parent)


def _locked(path: Path) -> IO[str]:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except (FileNotFoundError, FileExistsError):
            if path.parent.is_file():
                raise
            continue  # another worker removed the empty folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in REFUSED:
                _say_without_locks(path.parent, error.strerror)
                return file
            file.seek(0)
            owner = file.read() or "another worker"
            file.close()
            if error.errno in HELD:
                raise HeldError(f"{path.stem} is being trained by {owner}; wait for it, or stop it first") from error
            raise
        file.close()  # its holder removed the file before the lock was ours


@functools.cache
def _say_without_locks(folder: Path, reason: str) -> None:
    print(f"{folder} has no file locks ({reason}): a run may be trained twice, to the same record", file=sys.stderr)


def is_held(path: Path) -> bool:
    """Whether a worker trains the run. This takes a shared lock for a moment, so a worker may find the run held."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in HELD
    return False
