"""Tell runs of one method apart by the settings in which they differ, read from their configurations."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from lora.config.run import RunConfig

# Shown in other columns, or derived from other settings. Every other setting that names a run is compared.
ELSEWHERE = ("seed", "task", "protocol", "start", "start_run", "model.name", "method.name")


Run = Any  # planned or shown: with run_id, model, protocol, method, slug, start, task, and its `columns`


def columns(config: RunConfig) -> dict[str, str]:
    """`train.lr` -> `0.001`: each setting that names a run, except `ELSEWHERE` and those in its method's slug."""
    shown = {*ELSEWHERE, *(f"method.{key}" for key in config.method.in_slug)}
    found: dict[str, Any] = {}
    for key, value in config.settings().items():
        found |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return {key: plain(value) for key, value in found.items() if key not in shown}


def plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(plain, value))
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{plain(item)}" for key, item in value.items())
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)  # different values have different texts


def labels(
    runs: Iterable[Run],
    main: Iterable[Run] = (),
    alike: Callable[[Run], Hashable] = lambda run: (run.slug, run.method, run.start),
) -> dict[str, str]:
    """run_id -> `lr=0.001, epochs=20`: the settings that vary among runs of one method.

    A run keeps silent about a value that all its seeds on the task share, or that the main table's run of its method
    has on the task: hyperparameters may differ by task within one row.

    Args:
        main: The runs of the main table.
        alike: The runs that have this in common are told apart.
    """
    runs, groups = list(runs), defaultdict(list)
    own, usual = {run.run_id: run.columns for run in runs}, usual_values(runs, main, alike)
    for run in runs:
        groups[alike(run)].append(run.run_id)
    parts: dict[str, list[str]] = {run_id: [] for run_id in own}
    for several in groups.values():
        for key in dict.fromkeys(key for run_id in several for key in own[run_id]):
            values = {run_id: own[run_id].get(key, "null") for run_id in several}
            is_named = key == "method.targets"  # modules named in full, which the slug does not show
            told = {r: value if is_named or value != usual[r].get(key, "null") else "" for r, value in values.items()}
            if is_named or len(set(told.values())) > 1:
                for run_id, value in told.items():
                    parts[run_id] += [f"{key.rpartition('.')[2]}={value}"] if value else []
    return {run_id: ", ".join(words) for run_id, words in parts.items()}


def usual_values(
    runs: Sequence[Run], main: Iterable[Run], alike: Callable[[Run], Hashable]
) -> dict[str, dict[str, str]]:
    """run_id -> setting -> the value that its label leaves out, if there is one."""
    main = list(main)
    by_method = shared(main, lambda run: (run.model, run.protocol, run.method, run.task))
    by_slug = shared(main, lambda run: (run.model, run.protocol, run.slug, run.task))
    own = shared(runs, lambda run: (run.model, run.protocol, alike(run), run.task))
    return {
        run.run_id: by_method.get((run.model, run.protocol, run.method, run.task), {})
        | by_slug.get((run.model, run.protocol, run.slug, run.task), {})
        | own[run.model, run.protocol, alike(run), run.task]
        for run in runs
    }


def shared(runs: Iterable[Run], place: Callable[[Run], Hashable]) -> dict[Hashable, dict[str, str]]:
    """Place -> the settings that all its runs have, with their values."""
    found: dict[Hashable, dict[str, str]] = {}
    for run in runs:
        own = run.columns
        there = found.setdefault(place(run), dict(own))
        for key in [key for key, value in there.items() if own.get(key) != value]:
            del there[key]
    return found
