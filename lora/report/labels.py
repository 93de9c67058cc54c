"""Tell runs of one method apart by the settings in which they differ: columns of a frame, named by their keys."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from lora.config.run import DRAW, EPOCHS, LENGTH, SIZE, RunConfig

# Shown in other columns, or derived from other settings. Every other setting that names a run is compared.
ELSEWHERE = ("seed", "task", "protocol", "start", "start_run", "model.name", "method.name")
RANK_IN_SLUG = re.compile(r"-r\d+x?")
# named if any two runs of a task differ in what was asked for: such scores are no fair comparison
COMPARED = ["model", "protocol", "method", "task"]  # where two runs may differ in settings
TERMS = (EPOCHS, LENGTH, SIZE, DRAW)  # in which two runs must agree to be compared
NAMED_TARGETS = "method.targets"  # here only if modules are named in full, which the slug does not show
SECTION_ORDER = ("start_seed", "model", "method", "data", "train")  # of the configuration


def named_settings(config: RunConfig) -> dict[str, str]:
    """`train.lr` -> `0.001`: each setting that names a run, except `ELSEWHERE` and those in its method's slug."""
    shown = {*ELSEWHERE, *(f"method.{key}" for key in config.method.in_slug)}
    flat: dict[str, Any] = {}
    for key, value in config.settings().items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    flat[DRAW] = config.data.train_draw
    return {key: setting_text(value) for key, value in flat.items() if key not in shown}


def setting_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a frame that hold `named_settings`, in their order; `null`: a run has no such setting."""
    settings = [name for name in columns if "." in name or name == "start_seed"]
    return sorted(settings, key=lambda name: SECTION_ORDER.index(name.partition(".")[0]))


def setting(runs: pd.DataFrame, key: str) -> pd.Series:
    """The column of a setting; `null` if no run has it."""
    return runs[key] if key in runs else pd.Series("null", index=runs.index)


def setting_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(setting_text, value))
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{setting_text(item)}" for key, item in sorted(value.items()))
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)  # different values have different texts


def setting_labels(runs: pd.DataFrame, main: pd.DataFrame, without: Collection[str] = ()) -> dict[str, str]:
    """run_id -> `lr=0.001, epochs=20`: the settings in which the runs of a method differ on a task.

    Hyperparameters may differ by task within a row, so only runs on one task are compared. Ranks of one target set are
    compared too, since a table may have them in one line. What a command states for some methods alone is named in
    their rows.

    Args:
        runs, main: Frames with the columns of `lora.report.runs.facts_of`. Of the main table's runs: what all of them
            with this method have on the task names no other.
        without: Settings that name no run.
    """
    keys = [key for key in setting_columns(runs) if key not in without]
    usual: dict[tuple[str, ...], dict[str, str]] = {}
    for run in main.to_dict("records"):
        settings = {key: run[key] for key in keys}
        place = tuple(run[name] for name in COMPARED)
        usual[place] = dict(usual.get(place, settings).items() & settings.items())
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for run in runs.to_dict("records"):
        targets = RANK_IN_SLUG.sub("", run["slug"])
        groups.setdefault((*(run[name] for name in COMPARED), targets, run["start"]), []).append(run)
        tasks.setdefault(run["task"], []).append(run)
    terms = {
        task: {key for i, key in enumerate(TERMS) if len({run["terms"][i] for run in of_task}) > 1}
        for task, of_task in tasks.items()
    }
    unlike = {task: {k for k in keys if len({run[k] for run in of_task}) > 1} for task, of_task in tasks.items()}
    words: dict[str, str] = {}
    for place, group in groups.items():
        task = group[0]["task"]
        always = terms[task] & unlike[task]
        if group[0].get(NAMED_TARGETS, "null") != "null":
            always.add(NAMED_TARGETS)
        known = usual.get(place[: len(COMPARED)], {})
        varied = {key for key in keys if len({run[key] for run in group}) > 1}
        for run in group:
            own = always | ({*run["stated"]} & unlike[task])
            named = [key for key in keys if key in own or (key in varied and run[key] != known.get(key, "null"))]
            words[run["run_id"]] = ", ".join(f"{key.rpartition('.')[2]}={run[key]}" for key in named)
    return words
