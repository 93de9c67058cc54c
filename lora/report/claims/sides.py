"""The cells that a side of a comparison names, and their labels."""

import pandas as pd

from lora.data.tasks import TASKS
from lora.methods.titles import METHOD_TITLES
from lora.report.claims.statements import SELECTORS, Claim, Side
from lora.report.titles import START_TITLES, slug_label


def select(runs: pd.DataFrame, claim: Claim, side: Side, model: str) -> pd.DataFrame:
    """The runs of an encoder that meet all conditions of a side, each once.

    Returns: Empty if no cell has the first start that the side names.
    """
    experiments, starts = side.get("experiment", (claim.experiment,)), side.get("start", ())
    found = runs[runs["experiment"].isin(experiments) & (runs["model"] == model)].drop_duplicates("run_id")
    for key, values in side.items():
        if key in SELECTORS:
            found = found[found[key].isin(values)]
        elif "." in key:
            found = found.loc[[columns.get(key, "null") in values for columns in found["columns"]]]
    if not starts or starts[0] not in set(found["start"]):
        return found[: 0 if starts else None]
    place = found["start"].map(starts.index)
    return found[place == place.groupby(found["task"]).transform("min")]


def several(side: pd.DataFrame) -> str:
    """Why runs are not one side of a comparison; ""  if they are."""
    if side.duplicated(["task", "seed"]).any() or side["slug"].nunique() > 1 or side["protocol"].nunique() > 1:
        rows = dict.fromkeys(f"{run.label} ({run.protocol})" for run in side.itertuples())
        return f"one side has {' and '.join(rows)}, and a comparison is of one"
    return ""


def labels(one: pd.DataFrame, other: pd.DataFrame, tasks: list[str]) -> list[str]:
    """The labels of the two sides on these tasks. They name the starts if either side has a cell from MNLI."""
    sides = [on_tasks if len(on_tasks := side[side["task"].isin(tasks)]) else side for side in (one, other)]
    from_mnli = any(side["start"].eq("mnli").any() for side in sides)
    return [with_start(side) if from_mnli else side["label"].iloc[0] for side in sides]


def with_start(side: pd.DataFrame) -> str:
    """A side's label with its start, which the label of a row may already name; `from MNLI (RTE)` with several."""
    label, start = side["label"].iloc[0], f"from {START_TITLES[side['start'].iloc[0]]}"
    if side["start"].nunique() > 1:
        started = set(side.loc[side["start"] == "mnli", "task"])
        start = f"from {START_TITLES['mnli']} ({', '.join(TASKS[task].title for task in TASKS if task in started)})"
    return label if label.endswith(f", {start}") else f"{label} {start}"


def described(side: Side) -> str:
    """The label of a side without cells, from its conditions: `LoRA (qkvoif, r1)`, `Full fine-tuning from MNLI`."""
    named = [slug_label(slug) for slug in side.get("slug", ())]
    named = named or [METHOD_TITLES.get(name, name) for name in side.get("method", ("any method",))]
    start = [f"from {START_TITLES.get(name, name)}" for name in side.get("start", ())[:1]]
    return " ".join([" or ".join(named), *start])
