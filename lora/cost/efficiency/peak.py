"""`python -m lora.cost.efficiency.peak ORDER`: train one method, and print this process's peak as JSON."""

import dataclasses
import json
import sys

import torch

from lora.checks import build
from lora.cost.efficiency.plan import Plan
from lora.cost.efficiency.subjects import make_batch, make_trainee, train_step
from lora.cost.saved import PEAK_STEPS, Peak, reset_peak, resident_mib
from lora.errors import UserError
from lora.training.allocator import keep_freed_memory


def peak(plan: Plan, name: str) -> Peak | None:
    """The peak of training steps on the plan's largest batch; that of loading the encoder does not count."""
    torch.set_num_threads(plan.threads)
    libraries = resident_mib("VmRSS")
    if plan.device == "cpu" and libraries is None:
        return None
    trainee = make_trainee(plan, name)
    batch = make_batch(trainee.model, plan.largest, plan)
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
        keep_freed_memory()  # as in training; not earlier, or what loading freed would count
    for number in range(PEAK_STEPS):
        train_step(trainee, batch, number)
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
