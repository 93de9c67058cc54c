"""Sweeps of real processes, and what must be left when they have ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
from commands import lora
from comparing import equal_science
from trained import ensure_record

from lora.config.plan import read_plan
from lora.files import ROOT
from lora.records.record import load_records
from lora.sweep.notes import read_notes
from lora.sweep.request import select_runs


def grid(tiny_overrides, folder, *more):
    """Overrides of a sweep of tiny runs whose results and outputs are in `folder`."""
    kept = [o for o in tiny_overrides if not o.startswith(("task=", "runtime.results", "runtime.outputs"))]
    return [*kept, "experiment=null", f"runtime.results={folder}/results", f"runtime.outputs={folder}/outputs", *more]


def start(overrides, **extra):
    command = [sys.executable, "-m", "lora", "-m", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **extra)


def finish(overrides):
    """Launch a sweep from this process, whose workers load their libraries once for all tests of a file."""
    done = lora("-m", *overrides)
    return done.returncode, done.stdout + done.stderr


def owners(folder):
    """run_id -> pid of the worker that trains it."""
    return {run_id: note["pid"] for run_id, note in read_notes(folder / "outputs").items()}


@contextlib.contextmanager
def meanwhile(action):
    """Call a function again and again, from another thread, until the block ends."""
    ended = threading.Event()

    def repeat():
        while not ended.wait(0.03):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for(condition, process, seconds=900):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def frozen(folder, process, number):
    """run_id -> worker of the first runs that report progress, each frozen as soon as it does.

    Otherwise the first run might end before the worker of the last has started, which takes seconds on a busy machine.
    """
    found: dict[str, int] = {}

    def enough():
        for path in (folder / "outputs" / "running").glob("[!.]*.json"):
            note = read_notes(folder / "outputs").get(path.stem)
            if note and note["steps"] and path.stem not in found:
                pid = note["pid"]
                os.kill(pid, signal.SIGSTOP)
                wait_for(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED, process)
                if path.exists():
                    found[path.stem] = pid
                else:
                    os.kill(pid, signal.SIGCONT)
        return len(found) >= number

    wait_for(enough, process)
    return found


def quiet(overrides):
    """The records of the same runs, trained one after another in this process."""
    profile, rest = overrides[0].removeprefix("profile="), overrides[1:]
    configs = [run.config for run in select_runs(profile, [*rest, "experiment=null"])]
    for config in configs:
        ensure_record(config, mistakes_fail=False)
    return load_records(configs[0].runtime.results)[0]


def assert_complete(folder, expected):
    records, problems = load_records(folder / "results")
    assert not problems
    assert len(records) == len(expected) and {record.status for record in records} == {"ok"}
    by_id = {record.run_id: record for record in expected}
    assert all(equal_science(record, by_id[record.run_id]) for record in records)
    for name in ("locks", "running", "checkpoints"):
        left = [p.name for p in (folder / "outputs" / name).glob("*")]
        assert not left, f"left in {name}: {left}"
    assert not list((folder / "results").rglob(".*")), "half-written files of killed workers"
    plan = read_plan(folder / "results")
    assert not plan.problems and plan.runs.keys() >= by_id.keys()
    return records
