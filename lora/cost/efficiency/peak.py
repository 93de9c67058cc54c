"""The peak memory of training one method, in a separate process: `python -m lora.cost.efficiency.peak ORDER`."""

import ctypes
import dataclasses
import gc
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from lora.checks import build
from lora.cost.efficiency.models import make_trainee
from lora.cost.efficiency.plan import Plan
from lora.cost.subjects import random_batch
from lora.errors import UserError, first_line
from lora.files import ROOT

PEAK_STEPS = 3  # from the second on, the optimizer has its state
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """The memory of a process that trains one method and nothing else, in MiB.

    Args:
        peak_mib: Peak of the whole process on a CPU, of torch's allocator on a GPU.
        libraries_mib: Memory of Python and torch before a model exists; 0 on a GPU, whose allocator holds only
            tensors.
    """

    peak_mib: float
    libraries_mib: float


def peak_of_child(plan: Plan, name: str) -> Peak | None:
    """Train in a fresh process and read its peak, which is independent of this process's memory.

    Returns: None if the system does not report a process's peak.
    Raises: UserError: If the process fails.
    """
    order = json.dumps({"plan": dataclasses.asdict(plan), "name": name})
    command = [sys.executable, "-m", "lora.cost.efficiency.peak", order]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"training {name} in a process of its own, to see its peak memory, ended with exit code "
            f"{child.returncode} (-9: out of memory, most likely): {last}"
        )
    found = json.loads(child.stdout)
    return None if found is None else Peak(**found)


def resident_mib(key: str) -> float | None:
    """This process's resident memory, now (`VmRSS`) or at its peak (`VmHWM`); see proc(5). None if unknown.

    `getrusage` is unsuitable: its maximum starts at the memory that the parent process had when it started this one.
    """
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def reset_peak() -> None:
    """Return freed memory to the system and reset the peak to the memory that is resident now.

    Raises: UserError: If the system does not allow it.
    """
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET_PEAK.write_text("5")  # proc(5): reset the peak resident set size
    except OSError as error:
        raise UserError(f"cannot reset this process's peak memory by {RESET_PEAK}: {first_line(error)}") from error


def peak(plan: Plan, name: str) -> Peak | None:
    """The peak of training steps on the plan's largest batch, without that of loading the encoder."""
    torch.set_num_threads(plan.threads)
    libraries = resident_mib("VmRSS")
    if plan.device == "cpu" and libraries is None:
        return None
    trainee = make_trainee(plan, name)
    batch = random_batch(trainee.model, plan.largest, plan.seed)
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()  # excludes memory that loading has freed
    for _ in range(PEAK_STEPS):
        trainee.step(batch)
    if plan.device == "cuda":
        return Peak(round(torch.cuda.max_memory_allocated() / 2**20, 1), 0.0)
    return Peak(round(resident_mib("VmHWM"), 1), round(libraries, 1))


def main() -> None:
    order = json.loads(sys.argv[1])
    try:
        found = peak(build(Plan, order["plan"]), order["name"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(None if found is None else dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
