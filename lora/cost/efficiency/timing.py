"""Interleaved repetitions: every round visits every method once, in an order of its own."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from lora.rng import shuffled

Call = Callable[[], object]


def timed(call: Call, device: str) -> float:
    """Milliseconds of one call: by the clock on a CPU, by events on the device's stream on a GPU."""
    if device == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e6


def visit(call: Call, calls: int, device: str) -> float:
    """Median of `calls` timed calls after one that is not timed, which brings caches and clocks to the same state."""
    call()
    return float(np.median([timed(call, device) for _ in range(calls)]))


def orders(names: Sequence[str], rounds: int, *purpose: str | int) -> list[list[str]]:
    """The order of every round, the same for the same purpose."""
    return [[names[i] for i in shuffled(len(names), *purpose, number)] for number in range(rounds)]


def interleave(
    kind: str,
    work: Mapping[str, Mapping[str, Call]],
    rounds: int,
    calls: int,
    seed: int,
    device: str,
    report: Callable[[], None] = lambda: None,
) -> list[dict[str, object]]:
    """Time every method on every shape, `rounds` times over.

    Args:
        kind: `step` or `latency`: of the samples, and of the orders.
        work: Method -> shape -> what is timed; every method has the same shapes.
        report: Called after every round.
    Returns: One sample per method, shape and round: kind, method, shape, round, ms.
    """
    names, shapes = list(work), list(next(iter(work.values()), {}))
    for name in names:  # first calls compile kernels and plan matrix products
        for shape in shapes:
            work[name][shape]()
    planned = {shape: orders(names, rounds, seed, kind, shape) for shape in shapes}
    samples = []
    for number in range(rounds):
        for shape in shapes:
            for name in planned[shape][number]:
                ms = round(visit(work[name][shape], calls, device), 5)
                samples.append({"kind": kind, "method": name, "shape": shape, "round": number, "ms": ms})
        report()
    return samples
