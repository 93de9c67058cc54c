"""The allocator's settings, seen in processes of their own: they hold for the rest of a process."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lora.training import device

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BLOCK = 2**26
# Takes, touches and frees a large block twice.
PROGRAM = f"""
import json, resource, sys
import torch
from lora.training.device import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    before = faults()
    torch.ones({BLOCK} // 4)
    return faults() - before

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
torch.empty(3 * 2**30, dtype=torch.uint8)  # larger than the largest threshold that mallopt takes, and never touched
first, second = touch(), touch()
huge = next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
print(json.dumps({{"kept": kept, "first": first, "second": second, "huge_kib": huge}}))
"""

pytestmark = pytest.mark.skipif(not hasattr(device.ctypes.CDLL(None), "mallopt"), reason="not glibc")


def visit(choice: str, addresses: int | None = None) -> dict:
    def limit() -> None:
        if addresses:
            resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))

    command = [sys.executable, "-c", PROGRAM, choice]
    found = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=limit)
    return json.loads(found.stdout)


def test_freed_memory_is_not_cleared_again():
    pages = BLOCK // resource.getpagesize()
    default, kept = visit("default"), visit("kept")
    assert default["second"] > 0.9 * pages or HUGE_PAGES.read_text().startswith("[always]")
    assert kept["kept"] and kept["second"] < 0.01 * pages
