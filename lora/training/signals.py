"""Stop signals: noted immediately, and obeyed where a run can stop without losing work."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOP = signal.SIGUSR1  # from launcher to workers: they ignore SIGINT if a script started the sweep in the background
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, STOP)
ONE_PRESS_SECONDS = 2.0  # one Ctrl-C may reach a worker twice, from the terminal and from its launcher
POLL_SECONDS = 0.2
PARENT_SECONDS = 1.0  # between two checks that the launcher is alive
LEAVE_SECONDS = 5.0  # for writing a checkpoint after the launcher has died

noted: dict[int, float] = {}  # signal -> time of its first arrival
before: dict[int, object] = {}  # signal -> the previous handler


class InterruptedRunError(Exception):
    """A run was stopped by a signal. The same command resumes it from its checkpoint."""


def listen() -> None:
    """Start noting signals, including those between runs. Ignored signals stay ignored.

    Only the main thread can install handlers; in another thread, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) not in (_note, signal.SIG_IGN, None):
            before[signum] = signal.signal(signum, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP})  # `passed_on` blocks it until this process can note it


def begin_worker(launcher: int) -> None:
    """Set up a worker process: note signals, and exit when the launcher dies.

    Otherwise the workers would outlive a killed launcher, because a pool's workers hold both ends of its pipes.

    Args:
        launcher: Process id of the parent.
    """
    listen()
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()


def _end_with(launcher: int) -> None:
    """Once the launcher dies, stop as on Ctrl-C, then exit hard. Records are atomic; a dead owner's lock is free."""
    while os.getppid() == launcher:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), STOP)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


def _note(signum: int, frame: object) -> None:
    now = time.monotonic()
    if signum == signal.SIGINT and now - noted.get(signum, now) > ONE_PRESS_SECONDS:
        raise KeyboardInterrupt  # a second Ctrl-C stops at once
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
    if not noted.keys() & {signal.SIGINT, STOP}:
        noted.clear()


@contextlib.contextmanager
def passed_on(
    workers: Callable[[], list[int]], training: Callable[[], list[int]], say: Callable[[], None]
) -> Iterator[None]:
    """Within the block, pass Ctrl-C and SIGTERM on to the workers, and leave the block once they have stopped training.

    Otherwise a process pool would kill its workers immediately, even while they write checkpoints.

    Args:
        workers: Returns the pids to signal: workers that are training, between two runs, or starting.
        training: Returns the pids of workers that are training.
        say: Called when a signal arrives.
    Raises: KeyboardInterrupt: When no worker is training any more, or immediately on a second signal.
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
            tell()  # the pool may have started new workers
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
            print("stopped immediately", file=sys.stderr)
        raise KeyboardInterrupt

    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier = {number: handler for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}
    for number in earlier:
        signal.signal(number, handle)
    # New processes inherit the mask: a signal sent to one of them stays pending until it listens.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {STOP})
    try:
        yield
    finally:
        over.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if came.is_set():  # whatever ended the block
            raise KeyboardInterrupt
