"""The processes that train a run together, and the signals that stop them. It does not import torch.

torchrun or `accelerate launch` starts several processes, each with its rank in the environment. Stop signals are noted
at once, and obeyed where a run can stop without losing work.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

from lora.config.run import TrainConfig
from lora.errors import UserError

STOP = signal.SIGUSR1  # from launcher to workers: they ignore SIGINT if a script started the sweep in the background
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, STOP)  # SIGHUP: the terminal was closed
ONE_PRESS_SECONDS = 2.0  # one Ctrl-C may reach a worker twice, from the terminal and from its launcher
LEAVE_SECONDS = 5.0  # for writing a checkpoint after the launcher has died
# The allocator of glibc, as variables that it reads when a process starts: freed memory stays in the process, and is
# backed by huge pages.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

noted: dict[int, float] = {}  # signal -> time of its first arrival
before: dict[int, object] = {}  # signal -> the previous handler
answer = b""  # written to stderr on the first Ctrl-C, where nobody else tells that it was heard


class InterruptedRunError(Exception):
    """A run was stopped by a signal. The same command resumes it from its checkpoint."""


# Several processes.


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0. The one of rank 0 writes files and prints."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def check_batch(train: TrainConfig, count: int) -> None:
    """Raises: UserError: If the global batch is not divisible by processes x accumulation steps."""
    if train.batch % (count * train.accumulation):
        raise UserError(
            f"train.batch must be a multiple of processes x train.accumulation ({count} x {train.accumulation}), "
            f"because it is the global batch, got {train.batch}"
        )


# Signals.


def listen() -> None:
    """Start noting signals, including those between runs. Ignored signals stay ignored.

    Only the main thread can install handlers; in another thread, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) not in (_note, signal.SIG_IGN, None):
            before[signum] = signal.signal(signum, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `blocked` holds them back until this process can note them


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Note signals within the block, then forget them and restore the previous handlers."""
    listen()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        before.clear()
        noted.clear()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """End the block on SIGTERM and SIGHUP as on Ctrl-C, with a KeyboardInterrupt. Ignored signals stay ignored."""
    default = [signum for signum in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(signum) == signal.SIG_DFL]
    for signum in default:
        signal.signal(signum, signal.default_int_handler)
    try:
        yield
    finally:
        for signum in default:
            signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Hold signals back. Processes started in the block hold them back until they `listen`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def begin_worker() -> None:
    """Set up a worker process: note signals, and exit when the launcher dies."""
    listen()
    threading.Thread(target=_end_with_launcher, daemon=True).start()


def _end_with_launcher() -> None:
    """Once the launcher dies, stop as on Ctrl-C, then exit hard. Records are atomic, and the kernel frees locks."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), STOP)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


def _note(signum: int, frame: object) -> None:
    now = time.monotonic()
    if signum == signal.SIGINT and now - noted.get(signum, now) > ONE_PRESS_SECONDS:
        raise KeyboardInterrupt  # a second Ctrl-C stops at once
    if signum == signal.SIGINT and signum not in noted and rank() == 0:
        os.write(2, answer)
    noted.setdefault(signum, now)


def follow() -> None:
    """Obey the last signal.

    An earlier handler decides. A batch system's handler may requeue the job and exit. If it returns, the run continues
    (Slurm's SIGTERM before a SIGKILL that may never come).

    Raises: InterruptedRunError: If there was no earlier handler.
    """
    signum = [*noted][-1]
    handler = before[signum]
    if callable(handler) and handler is not signal.default_int_handler:
        noted.clear()
        handler(signum, None)
    else:
        raise InterruptedRunError(f"interrupted by {signal.Signals(signum).name}")


def end_of_job() -> None:
    """Forget signals that end only one job, so that the process takes the next. Ctrl-C and `STOP` end all jobs."""
    if not noted.keys() & {signal.SIGINT, signal.SIGHUP, STOP}:
        noted.clear()
