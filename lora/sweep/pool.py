"""Workers on this machine: processes that train one job after another. A killed one costs its own job only.

They are forked from a server process, which loads the libraries once for all of them: that takes seconds.
"""

import contextlib
import multiprocessing
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait

from lora.sweep.worker import Job, run_job
from lora.training import processes

POLL_SECONDS = 0.2
VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARIES = ["lora.training.loop", "lora.training.fused.encoder", "lora.methods.lowrank", "lora.methods.bottleneck"]
TUNABLES = "GLIBC_TUNABLES"


@contextlib.contextmanager
def hidden_script() -> Iterator[None]:
    """Hide the script that started the sweep: a worker would run it again, and finds none in `python - < script`."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Huge pages for the heap of the workers, unless the user has set glibc up: it reads this when a process starts."""
    stated = os.environ.get(TUNABLES)
    os.environ[TUNABLES] = stated or "glibc.malloc.hugetlb=1"
    try:
        yield
    finally:
        if stated is None:
            del os.environ[TUNABLES]


class Worker:
    """A process, and the connection through which it takes jobs and returns their outcomes."""

    def __init__(self, gpu: str | None):
        context = multiprocessing.get_context("forkserver")
        environment = dict(os.environ) if gpu is None else {**os.environ, VISIBLE: gpu}
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, environment))
        forkserver.set_forkserver_preload(LIBRARIES)
        with processes.blocked():
            resource_tracker.ensure_running()  # which would let SIGINT and SIGTERM through
        with processes.blocked(), hidden_script(), huge_pages():
            self.process.start()
        other.close()  # so that only the worker holds it, and `recv` ends with the worker

    def give(self, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # `outcome` tells
            self.connection.send(job)

    def outcome(self) -> dict[str, str] | None:
        """The outcome of the job. None if the worker was killed."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def stop(self) -> None:
        """Ask the worker to write its run's checkpoint and to end."""
        if self.process.is_alive():
            os.kill(self.process.pid, processes.STOP)


def serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Train jobs until the connection is closed.

    Args:
        environment: The launcher's environment variables, with the worker's GPU. CUDA has not started yet.
    """
    os.environ.clear()
    os.environ.update(environment)
    processes.begin_worker()
    while True:
        try:
            connection.send(run_job(connection.recv()))
        except (EOFError, BrokenPipeError):
            return


def run_jobs(jobs: Sequence[Job], workers: int, gpus: Sequence[str], interrupted: Callable[[], None]) -> dict[str, str]:
    """Train jobs, `workers` at a time.

    Args:
        gpus: The GPUs to share out, if there are several.
        interrupted: Called when a signal to stop arrives.
    Returns: run_id -> outcome, as in `run_job`, without the runs of killed workers.
    Raises: KeyboardInterrupt: After a signal, once all workers have written their checkpoints. A second Ctrl-C kills
        them.
    """
    waiting, outcomes, team, stopping = deque(jobs), {}, {}, False
    with processes.listening():
        try:
            while waiting or team:
                for slot in range(workers):
                    if waiting and slot not in team:
                        team[slot] = Worker(gpus[slot % len(gpus)] if len(gpus) > 1 else None)
                        team[slot].give(waiting.popleft())
                ready = wait([worker.connection for worker in team.values()], POLL_SECONDS)
                for slot, worker in [*team.items()]:
                    if worker.connection in ready:
                        outcome = worker.outcome()
                        outcomes |= outcome or {}
                        if waiting and outcome is not None:
                            worker.give(waiting.popleft())
                        else:
                            worker.connection.close()
                            del team[slot]
                if processes.noted and not stopping:
                    stopping = True
                    waiting.clear()
                    interrupted()
                    for worker in team.values():
                        worker.stop()
        except KeyboardInterrupt:
            print("stopped immediately", file=sys.stderr)
            raise
        finally:
            for worker in team.values():
                worker.process.kill()
    if stopping:
        raise KeyboardInterrupt
    return outcomes
