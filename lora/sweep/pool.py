"""Workers on this machine, as its processors allow: processes that train one job after another.

A killed one costs its own job only. They are forked from a server process, which loads the libraries once for all of
them: that takes seconds.
"""

import contextlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from lora.config.auto import check_device, gpus, gpus_have_bf16, takes_gpu
from lora.records.provenance import BF16_FLAGS, cpu_flags
from lora.sweep.progress import Lines
from lora.sweep.worker import Job, run_job
from lora.training import processes

if TYPE_CHECKING:
    from lora.config.run import PlannedRun

OUTCOME_SECONDS = 0.2
VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARIES = [
    *("lora.training.loop", "lora.training.fused.encoder", "lora.methods.lowrank", "lora.methods.bottleneck"),
    "sklearn.metrics",  # a second in each worker, at its first evaluation
]


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
        # huge pages for the workers' heaps, unless the user has set glibc up: it reads this when a process starts
        os.environ.setdefault("GLIBC_TUNABLES", processes.ALLOCATOR["GLIBC_TUNABLES"])
        with contextlib.suppress(EOFError, ConnectionError), processes.blocked():
            self.process.start()
        other.close()  # so that only the worker holds it, and `recv` ends with the worker

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # `outcome` tells
            self.connection.send(job)

    def outcome(self) -> dict[str, str] | None:
        """The outcome of the job. None if the worker, or the server that starts it, was killed."""
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


def run_jobs(
    jobs: Sequence[Job], workers: int, names: Sequence[str], interrupted: Callable[[], None]
) -> dict[str, str]:
    """Train jobs, `workers` at a time.

    Args:
        names: The GPUs to share out, if there are several.
        interrupted: Called when a signal to stop arrives.
    Returns: run_id -> outcome, as in `run_job`, without the runs of killed workers.
    Raises: KeyboardInterrupt: After a signal, once all workers have written their checkpoints. A second Ctrl-C kills
        them.
    """
    waiting = deque(jobs)
    outcomes = {}
    team = {}
    stopping = False
    with processes.listening():
        try:
            while waiting or team:
                for slot in range(workers):
                    if waiting and slot not in team:
                        team[slot] = Worker(names[slot % len(names)] if len(names) > 1 else None)
                        team[slot].give(waiting.popleft())
                ready = wait([worker.connection for worker in team.values()], OUTCOME_SECONDS)
                for slot, worker in [*team.items()]:
                    if worker.connection in ready:
                        outcome = worker.outcome()
                        outcomes |= outcome or {}
                        if outcome is None:
                            Lines().say(f"a worker was killed while it trained {', '.join(worker.job.run_ids)}")
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
                if worker.process.is_alive():
                    worker.process.kill()
    if stopping:
        raise KeyboardInterrupt
    return outcomes


def local_workers(todo: Sequence["PlannedRun"], workers: int, stated: bool) -> int:
    """The number of runs that this machine trains at a time: at most one per GPU if runs use GPUs.

    Args:
        workers: `launcher.workers`: the number that the cores allow.
        stated: Whether the command line sets `workers`; if so, it is returned unchanged.
    Raises: UserError: If a run asks for a GPU that this machine lacks, or its processor does not support its precision.
    """
    on_gpu = {run.run_id: takes_gpu(run.config) for run in todo}
    for run in todo:
        check_device(run.config)
    for gpu in {on_gpu[run.run_id] for run in todo if run.config.train.precision == "bf16"}:
        if not (gpus_have_bf16() if gpu else cpu_flags() & BF16_FLAGS):
            from lora.training.device import check_precision  # torch's answer is final, but loading it takes seconds

            check_precision("bf16", gpu)
    return workers if stated or not any(on_gpu.values()) else min(workers, len(gpus()))


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process sees, by the names of CUDA_VISIBLE_DEVICES, or numbered from 0 if it is not set."""
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else map(str, range(len(gpus())))
    return tuple(name.strip() for name in names)[: len(gpus())]
