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
    """Hold a run's lock, and remove its file at the end.

    Raises: HeldError: If another process holds it, or releases it at this moment. UserError: If its file cannot be
        written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        if isinstance(error, FileNotFoundError | FileExistsError) and not path.parent.is_file():
            raise HeldError(f"{path.stem} has just been released by another worker; try again") from error
        raise UserError(f"cannot write the lock {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                owner = file.read() or "another worker"
                message = f"{path.stem} is being trained by {owner}; wait for it, or stop it first"
                raise HeldError(message) from error
            _say_without_locks(path.parent, error.strerror)
        if not _is_at(file, path):  # its holder has just removed it
            raise HeldError(f"{path.stem} has just been released by another worker; try again")
        with suppress(OSError):  # on a full disk, another worker cannot say who holds it
            file.truncate(0)
            file.write(whereabouts())
            file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # before the lock is released
            remove_empty(path.parent)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def _say_without_locks(folder: Path, reason: str) -> None:
    print(f"{folder} has no file locks ({reason}): a run may be trained twice, to the same record", file=sys.stderr)
