"""`python -m lora.cost.throughput.trace OUT.json OVERRIDES`: the time of one of this project's runs, by activity.

The run trains in this process after a similar one, as the second run of a worker does. While it trains, timed
wrappers replace the functions in `TRACED`; the code under test is unaware of them.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from lora.cost.throughput.job import Spent

TRACED = {
    "lora.data.read.read": "data",
    "lora.data.batching.encode": "data",
    "lora.models.load.load_encoder": "model",
    "lora.training.fused.encoder.fuse": "model",
    "lora.data.batching.epoch_batches": "batching",
    "lora.data.batching.collate": "batching",
    "lora.training.evaluation.predict": "evaluation",
    "lora.training.evaluation.evaluate": "evaluation",
    "lora.training.evaluation.pack_predictions": "saving",
    "lora.files.write_atomically": "saving",
}
IN_LOOP = "lora.data.batching.collate"  # the one traced function within a record's `train_seconds`


def timed(spent: Spent, name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with spent.on(name):
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def traced() -> Iterator[Spent]:
    """Replace the functions in `TRACED` by timed ones, in every loaded module of this project."""
    spent = Spent(TRACED)
    functions = {name: resolve_name(name) for name in TRACED}
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "lora"]
    with ExitStack() as replaced:
        for name, function in functions.items():
            wrapper = timed(spent, name, function)
            for module in modules:
                for key in [key for key, value in vars(module).items() if value is function]:
                    replaced.enter_context(patch.object(module, key, wrapper))
        yield spent


def by_part(spent: Spent, seconds: float, loop_seconds: float) -> dict[str, float]:
    """Seconds by activity. `step` is the training time without making batches; `other` is the remainder."""
    parts = dict.fromkeys(TRACED.values(), 0.0)
    for name, part in TRACED.items():
        parts[part] += spent.seconds[name]
    parts["step"] = loop_seconds - spent.seconds[IN_LOOP]
    parts["other"] = seconds - sum(parts.values())
    return parts


def trace_run(overrides: Sequence[str], seeds: tuple[int, int]) -> dict[str, float]:
    """Train a run of the first seed, then trace one of the second.

    Args:
        overrides: Overrides of a run, including folders for its results.
    """
    from lora.config.compose import compose_run
    from lora.sweep.worker import ensure_record

    warm, run = (compose_run([*overrides, f"seed={seed}"]) for seed in seeds)
    ensure_record(warm, mistakes_fail=False)
    with traced() as spent:
        started = time.perf_counter()
        record = ensure_record(run, mistakes_fail=False)
        seconds = time.perf_counter() - started
    return by_part(spent, seconds, record.cost["train_seconds"])


def main() -> None:
    out, *overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="lora-trace-") as folder:
        places = [f"runtime.results={folder}/results", f"runtime.outputs={folder}/outputs"]
        parts = trace_run([*overrides, *places], (1, 2))
    Path(out).write_text(json.dumps(parts))


if __name__ == "__main__":
    main()
