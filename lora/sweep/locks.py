"""Locks that let one worker at a time train a run: files with an owner and a heartbeat on a shared file system.

They require only `link` and `rename` of whole files, which are atomic on network file systems too. An owner on another
machine is alive while its heartbeat changes. The clocks of two machines are never compared.
"""

import dataclasses
import glob
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora.errors import UserError
from lora.records.machine import parent_of, process_table, start_ticks

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # an owner on another machine counts as dead after this time without a heartbeat


class HeldError(Exception):
    """Another worker is training the run."""


@dataclass(frozen=True)
class Owner:
    """The holder of a lock.

    Args:
        table: The process table that `pid` belongs to: boot and namespace, which distinguishes containers.
        ticks: Start time of the process in ticks of its kernel's clock, since pids are reused.
        job: Id of the batch system's job, which stays the same when the job is requeued.
        token: Unique name of this acquisition.
        restarts: How often that job was requeued before; None outside a job.
    """

    host: str
    table: str
    pid: int
    ticks: int
    job: str | None
    since: str
    token: str
    restarts: int | None = None  # absent from locks of earlier versions


def lock_path(outputs: str | Path, run_id: str) -> Path:
    return Path(outputs) / "locks" / f"{run_id}.json"


def myself() -> Owner:
    return Owner(
        host=socket.gethostname(),
        table=process_table(),
        pid=os.getpid(),
        ticks=start_ticks(os.getpid()) or 0,
        job=batch_job(),
        since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        token=secrets.token_hex(8),
        restarts=batch_restarts(),
    )


def batch_job() -> str | None:
    """The Slurm job in scancel's notation. An array task is `array_task`: its own id may be that of the whole array.

    Source: sbatch(1), output environment variables.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"
    return None if job is None else f"slurm {job}"


def batch_restarts() -> int | None:
    """How often Slurm requeued this job. None outside a job.

    Source: sbatch(1), output environment variables. The variable is unset until a job is requeued.
    """
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(restarts) if batch_job() is not None and restarts.isdecimal() else None


def read_owner(path: Path) -> tuple[Owner, int] | None:
    """The owner and the time of its last heartbeat, in nanoseconds by the file system's clock. None without a lock.

    Raises: UserError: If the file cannot be read or is not a lock.
    """
    try:
        with path.open("rb") as file:  # on a network file system, open revalidates the file; stat may be cached
            content, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read the lock {path}: {error.strerror}") from error
    try:
        fields = json.loads(content)
        keys = {f.name for f in dataclasses.fields(Owner)}
        if set(fields) | {"restarts"} != keys or not all(isinstance(fields[key], int) for key in ("pid", "ticks")):
            raise ValueError("other keys than a lock has")
        return Owner(**fields), beat
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a lock of this program ({error}); remove it if no worker uses it") from error


def lives(owner: Owner, me: Owner) -> bool | None:
    """Whether the owner's process is alive; None if this process cannot determine it.

    A job may span several nodes, so its id alone proves nothing about a process on another node. A lower restart count
    does: that process ended when the job was requeued.
    """
    if owner.table == me.table and owner.host == me.host:
        return start_ticks(owner.pid) == owner.ticks
    same_job = owner.job is not None and owner.job == me.job
    if same_job and None not in (owner.restarts, me.restarts) and owner.restarts < me.restarts:
        return False
    return None


@contextmanager
def held(path: Path) -> Iterator["Heartbeat"]:
    """Hold a lock, taking it over from a dead owner.

    Raises: HeldError: If a live process holds it: immediately if that process is visible, otherwise within
        `SILENT_SECONDS`, once its heartbeat has changed. UserError: If the folder cannot be written.
    """
    me = myself()
    acquire(path, me)
    heart = Heartbeat(path, me)
    try:
        with heart:
            yield heart
    finally:
        release(path, me)


def acquire(path: Path, me: Owner) -> None:
    while not create(path, me):
        found = read_owner(path)
        if found is None:
            continue  # released between the two calls
        owner, beat = found
        if not is_dead(path, owner, beat, me):
            raise HeldError(f"{path.stem} is being trained by process {owner.pid} of {owner.host}, since {owner.since}")
        # Several processes may find the owner dead. The right to replace it is a lock too: a process that is late finds
        # another token and starts again.
        claim = path.with_name(f".{path.name}.{owner.token}")
        acquire(claim, me)
        try:
            found = read_owner(path)
            if found is not None and found[0].token == owner.token:
                with signed(path, me) as whole, suppress(FileNotFoundError):  # the owner was alive: see `sweep_out`
                    whole.replace(path)
                    return
        finally:
            release(claim, me)


def create(path: Path, me: Owner) -> bool:
    """Create the lock, with its content, unless it exists.

    Returns: Whether it is ours, judged by the token read back: the reply to `link` may be lost on a network, and some
        file systems report one link for every file.
    """
    with signed(path, me) as whole, suppress(FileExistsError, FileNotFoundError):  # not found: see `sweep_out`
        os.link(whole, path)
    found = read_owner(path)
    return found is not None and found[0].token == me.token


@contextmanager
def signed(path: Path, me: Owner) -> Iterator[Path]:
    """A complete file with the owner, which the block makes the lock. It is removed afterwards if it is still there.

    Raises: UserError: If it cannot be written.
    """
    whole = path.with_name(f".{path.name}.{me.token}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps(dataclasses.asdict(me)))
        yield whole
    except OSError as error:
        raise UserError(f"cannot write the lock {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            whole.unlink(missing_ok=True)


def is_dead(path: Path, owner: Owner, beat: int, me: Owner) -> bool:
    """Whether the owner is dead. If it is on another machine, watch its heartbeat for up to `SILENT_SECONDS`."""
    alive = lives(owner, me)
    if alive is not None:
        return not alive
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        found = read_owner(path)
        if found is None or found[0].token != owner.token or found[1] != beat:
            return False
    return True


def release(path: Path, me: Owner) -> None:
    with suppress(UserError, OSError):
        found = read_owner(path)
        if found is not None and found[0].token == me.token:
            sweep_out(path, me)
            path.unlink()


def sweep_out(path: Path, me: Owner) -> None:
    """Remove files of workers that were killed while trying to take a lock that `me` holds.

    They are claims on former owners, which have no effect once the lock has another token, and files that were to
    become one of these locks. A living worker whose file goes tries again.
    """
    for left in path.parent.glob(f".*{glob.escape(path.name)}.*"):
        if me.token not in left.name:
            with suppress(OSError):
                left.unlink()


class Heartbeat:
    """Touch the lock at intervals while the block runs. `lost` is set once another process has taken the lock over."""

    def __init__(self, path: Path, me: Owner):
        self.path, self.me = path, me
        self.lost = threading.Event()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.stop.wait(HEARTBEAT_SECONDS):
            if not self.mine():
                self.lost.set()
                return
            with suppress(OSError):  # full or unreachable disk: the next beat may succeed
                os.utime(self.path)

    def mine(self) -> bool:
        """Whether this process still holds the lock. An unreadable file counts as held."""
        try:
            found = read_owner(self.path)
        except UserError:
            return True
        return found is not None and found[0].token == self.me.token


class Locks:
    """The locks of a sweep, for a process that holds none of them."""

    def __init__(self, outputs: str | Path):
        self.outputs, self.me = outputs, myself()
        self.seen: dict[str, tuple[str, int, float]] = {}  # run_id -> token, heartbeat, when first seen

    def held(self, run_id: str) -> bool:
        """Whether a worker trains the run. One on another machine counts until it is silent for `SILENT_SECONDS`."""
        found = read_owner(lock_path(self.outputs, run_id))
        if found is None:
            return False
        owner, beat = found
        alive = lives(owner, self.me)
        if alive is not None:
            return alive
        now = time.monotonic()
        token, before, since = self.seen.get(run_id, ("", 0, now))
        if (token, before) != (owner.token, beat):
            since = now
        self.seen[run_id] = (owner.token, beat, since)
        return now - since < SILENT_SECONDS

    def left_behind(self, run_id: str) -> bool:
        """Whether the run has a lock whose owner is known to be dead."""
        found = read_owner(lock_path(self.outputs, run_id))
        return found is not None and lives(found[0], self.me) is False

    def children(self, run_ids: Iterable[str]) -> list[int]:
        """Pids of this process's children that are training one of the runs."""
        owners = (read_owner(lock_path(self.outputs, run_id)) for run_id in run_ids)
        pids = [found[0].pid for found in owners if found is not None and lives(found[0], self.me)]
        return [pid for pid in pids if parent_of(pid) == self.me.pid]
