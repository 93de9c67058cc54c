"""Being asked to stop: a signal is noted at once and followed where a run can be left without losing anything."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOP = signal.SIGUSR1  # of a launcher to its workers, which ignore SIGINT where a script started all in the background
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, STOP)
ONE_PRESS_SECONDS = 2.0  # a Ctrl-C reaches a worker from the terminal and from its launcher
POLL_SECONDS = 0.2
PARENT_SECONDS = 1.0  # between two looks at whether the launcher still lives
LEAVE_SECONDS = 5.0  # for a checkpoint, once the launcher is gone

noted: dict[int, float] = {}  # signal -> when it first came
before: dict[int, object] = {}  # signal -> the handler that was there


class InterruptedRunError(Exception):
    """A run was asked to stop and did; the same command goes on from its checkpoint."""


def listen() -> None:
    """Note the signals of this process from now on, between cells too. Ignored signals stay ignored.

    Only a main thread can; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) not in (_note, signal.SIG_IGN, None):
            before[signum] = signal.signal(signum, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP})  # which `passed_on` blocks until this process can note it


def begin_worker(launcher: int) -> None:
    """What a worker process of this machine does first: note signals, and end when its launcher is gone.

    Without this, the workers of a launcher that was killed live on, since a pool's workers hold both ends of its pipes.

    Args:
        launcher: The process that started this one.
    """
    listen()
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()


def _end_with(launcher: int) -> None:
    """Leave as at Ctrl-C, then end whatever still runs: records are written whole, and a dead owner's lock is free."""
    while os.getppid() == launcher:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), STOP)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


def _note(signum: int, frame: object) -> None:
    now = time.monotonic()
    if signum == signal.SIGINT and now - noted.get(signum, now) > ONE_PRESS_SECONDS:
        raise KeyboardInterrupt  # the second Ctrl-C waits for nothing
    noted.setdefault(signum, now)


def follow() -> None:
    """Do what the last signal asks for.

    A handler that was there before decides: that of a batch system may put the job back into its queue and exit, or
    return, and the run goes on (Slurm's SIGTERM before a SIGKILL that may not come).

    Raises: InterruptedRunError: If no handler was there.
    """
    signum = [*noted][-1]
    handler = before[signum]
    if callable(handler) and handler is not signal.default_int_handler:
        noted.clear()
        handler(signum, None)
    else:
        raise InterruptedRunError(f"interrupted by {signal.Signals(signum).name}")


def end_of_job() -> None:
    """Ctrl-C and a launcher's word end all that this process would do; the other signals end one job, and the process
    takes the next."""
    if not noted.keys() & {signal.SIGINT, STOP}:
        noted.clear()


@contextlib.contextmanager
def passed_on(
    workers: Callable[[], list[int]], training: Callable[[], list[int]], say: Callable[[], None]
) -> Iterator[None]:
    """While the block lasts, Ctrl-C and SIGTERM go to the workers, and end the block when they have left their cells.

    Without this, a pool of processes kills its workers at once, in the middle of their checkpoints.

    Args:
        workers: All processes to be told: those that train, those between two cells, those that start.
        training: Those of them that train now.
        say: Called when the signal came.
    Raises: KeyboardInterrupt: When no worker trains any more, or at once at a second signal.
    """
    came, over = threading.Event(), threading.Event()
    told: set[int] = set()

    def tell() -> None:
        for pid in set(workers()) - told:
            told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STOP)

    def end() -> None:
        while training() and not over.is_set():
            time.sleep(POLL_SECONDS)
            tell()  # a pool may just have replaced a worker
        if not over.is_set():
            over.set()
            os.kill(os.getpid(), next(iter(earlier)))

    def handle(signum: int, frame: object) -> None:
        for number in earlier:
            signal.signal(number, leave)
        came.set()
        say()
        tell()
        threading.Thread(target=end, daemon=True).start()

    def leave(signum: int, frame: object) -> None:
        if not over.is_set():
            print("stopped at once", file=sys.stderr)
        raise KeyboardInterrupt

    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier = {number: handler for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}
    for number in earlier:
        signal.signal(number, handle)
    # Inherited by the processes that are started meanwhile: what is sent to one waits until it listens.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {STOP})
    try:
        yield
    finally:
        over.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if came.is_set():  # whatever else the block ended with
            raise KeyboardInterrupt
