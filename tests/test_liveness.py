"""Live processes, dead ones and zombies: by /proc, and by psutil as on systems without /proc."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lora.records import machine as liveness
from lora.records.machine import cores, parent_of, process_table, start_ticks

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(params=["/proc", "/absent"], autouse=True)
def system(request, monkeypatch):
    if request.param == "/proc" and not Path("/proc/self").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(liveness, "PROC", Path(request.param))


def test_a_process_is_known_by_when_it_started():
    mine = start_ticks(os.getpid())
    assert mine == start_ticks(os.getpid()) is not None
    time.sleep(0.02)
    with subprocess.Popen(SLEEPER) as process:
        assert start_ticks(process.pid) > mine
        assert parent_of(process.pid) == os.getpid()
        process.kill()


def test_the_dead_and_the_unburied_do_not_live():
    process = subprocess.Popen(SLEEPER)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert start_ticks(process.pid) is None
    process.wait()
    assert start_ticks(process.pid) is None and parent_of(process.pid) is None


def test_processes_of_one_machine_share_a_table():
    code = "from pathlib import Path; from lora.records import machine as liveness; liveness.PROC = Path({!r}); "
    code = code.format(str(liveness.PROC)) + "print(liveness.process_table())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == process_table()


def test_cores_are_those_of_this_process(monkeypatch):
    assert cores() == len(psutil.Process().cpu_affinity())
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()
