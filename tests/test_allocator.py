"""The allocator's settings, seen in processes of their own: they hold for the rest of a process."""

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
import resource, sys
import torch
from lora.training.device import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    before = faults()
    torch.ones({BLOCK} // 4)
    return faults() - before

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.empty(3 * 2**30, dtype=torch.uint8)  # larger than the largest threshold that mallopt takes, and never touched
touch()
second = touch()
print(second)
"""

pytestmark = pytest.mark.skipif(not hasattr(device.ctypes.CDLL(None), "mallopt"), reason="not glibc")


def faults_of_a_second_visit(choice: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", PROGRAM, choice]))


def test_freed_memory_is_not_cleared_again():
    pages = BLOCK // resource.getpagesize()
    default, kept = map(faults_of_a_second_visit, ("default", "kept"))
    assert default > 0.9 * pages or HUGE_PAGES.read_text().startswith("[always]")
    assert kept < 0.01 * pages
