"""The kernels, attention and precision of the finished runs in a folder: a resumed sweep keeps them on any machine.

Each is part of a run's name, and `auto` may choose another one on another machine.
"""

import collections
import contextlib
import functools
import json
import os
from pathlib import Path

# Each with what it depends on: the encoder, then the choices before it.
KERNELS = ("name", "kernels")
ATTENTION = ("name", "kernels", "attention")
PRECISION = ("name", "kernels", "precision")


def recorded(results: str, setting: tuple[str, ...]) -> dict[tuple[str, ...], tuple[str, int]]:
    """What a setting depends on -> its most frequent value among finished runs, and the number of these.

    Of two equally frequent values, the one used first is taken.

    Args:
        results: A results folder.
        setting: `KERNELS`, `ATTENTION` or `PRECISION`.
    """
    runs = Path(results) / "runs"
    try:
        return _recorded(runs.resolve(), (runs.stat().st_mtime_ns, len(os.listdir(runs))))[setting]
    except OSError:
        return {}


def as_recorded(count: int, results: str) -> str:
    """The reason for a recorded value, in words for the user."""
    return f"as the {count} run{'s' * (count > 1)} in {results}"


@functools.lru_cache(maxsize=64)
def _recorded(runs: Path, changed: tuple[int, int]) -> dict[tuple[str, ...], dict[tuple[str, ...], tuple[str, int]]]:
    """
    Args:
        changed: The folder's modification time and number of entries, because a file system's clock is coarse.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for path in runs.glob("*.json"):
        # a file that is not a record is reported where records are read
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(path.read_bytes())
            if content["status"] == "ok":
                model, train = content["config"]["model"], content["config"]["train"]
                own = {"name": str(model["name"]), "attention": model["attention"]}
                own |= {"kernels": train["kernels"], "precision": train["precision"]}
                if all(isinstance(value, str) and value != "auto" for value in own.values()):
                    found.append((str(content["started_at"]), own))
    kept: dict[tuple[str, ...], dict[tuple[str, ...], tuple[str, int]]] = {}
    for setting in (KERNELS, ATTENTION, PRECISION):
        values: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for _, own in sorted(found, key=lambda one: one[0]):
            values[tuple(own[key] for key in setting[:-1])][own[setting[-1]]] += 1
        kept[setting] = {key: counts.most_common(1)[0] for key, counts in values.items()}  # ties: counted first
    return kept
