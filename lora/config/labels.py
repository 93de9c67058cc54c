"""Tell runs of one method apart by the settings in which they differ, read from their configurations."""

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from lora.config.run import RunConfig

# Shown in other columns, or derived from other settings. Every other setting that names a run is compared.
ELSEWHERE = ("seed", "task", "protocol", "start", "start_run", "model.name", "method.name")
RANK = re.compile(r"-r\d+x?")
# told if any two runs of a task differ in what was asked for: such scores are no fair comparison
ROWS, EPOCHS = "data.train_rows", "train.epochs"
TARGETS = "method.targets"  # here only if modules are named in full, which the slug does not show


Run = Any  # planned or shown: with run_id, model, protocol, method, slug, start, task, and its `columns` and `terms`


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
        return "+".join(f"{key}:{plain(item)}" for key, item in sorted(value.items()))
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)  # different values have different texts


def labels(runs: Iterable[Run], main: Iterable[Run] = ()) -> dict[str, str]:
    """run_id -> `lr=0.001, epochs=20`: the settings in which the runs of a method differ on a task.

    Hyperparameters may differ by task within a row, so only runs on one task are compared. Ranks of one target set are
    compared too, since a table may have them in one line.

    Args:
        main: The runs of the main table; what all of them with this method have on the task is not told.
    """
    usual: dict[Hashable, dict[str, str]] = {}
    for run in main:
        values = usual.setdefault((run.model, run.protocol, run.method, run.task), run.columns)
        usual[run.model, run.protocol, run.method, run.task] = dict(values.items() & run.columns.items())
    places: dict[Hashable, list[Run]] = {}
    terms: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        targets = RANK.sub("", run.slug)
        places.setdefault((run.model, run.protocol, run.method, targets, run.start, run.task), []).append(run)
        terms.setdefault(run.task, set()).add(run.terms)
    found: dict[str, str] = {}
    for several in places.values():
        keys = dict.fromkeys(key for run in several for key in run.columns)
        both = zip((EPOCHS, ROWS), zip(*terms[several[0].task], strict=True), strict=True)
        told_always = {TARGETS} | {key for key, values in both if len({*values}) > 1}
        varied = [k for k in keys if k in told_always or len({run.columns.get(k, "null") for run in several}) > 1]
        for run in several:
            known = usual.get((run.model, run.protocol, run.method, run.task), {})
            told = {key: run.columns.get(key, "null") for key in varied}
            words = [
                f"{key.rpartition('.')[2]}={value}"
                for key, value in told.items()
                if key in told_always or value != known.get(key, "null")
            ]
            found[run.run_id] = ", ".join(words)
    return found
