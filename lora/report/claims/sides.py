"""The cells that a side of a comparison names, and their labels."""

from collections.abc import Mapping, Sequence

from lora.data.tasks import TASKS
from lora.methods.titles import METHOD_TITLES
from lora.report.claims.statements import SELECTORS, Claim, Side
from lora.report.runs import Planned
from lora.report.titles import START_TITLES, slug_label


def select(planned: Mapping[str, Sequence[Planned]], claim: Claim, side: Side, model: str) -> list[Planned]:
    """The runs of an encoder that meet all conditions of a side, each once.

    Args:
        planned: Experiment -> its expected runs.
    Returns: Empty if no cell has the first start that the side names.
    """
    experiments = side.get("experiment", (claim.experiment,))
    every = {p.run_id: p for name in experiments for p in planned.get(name, ()) if p.model == model}
    found = [p for p in every.values() if fits(p, side)]
    starts = side.get("start", ())
    return preferred(found, starts) if len(starts) > 1 else found


def several(found: Sequence[Planned]) -> str:
    """Why runs are not one side of a comparison: they have several slugs or protocols, or settings on a task; or ""."""
    settings = [("settings", settings_of(group)) for group in by_task(found)]
    for what, values in (("slugs", [p.slug for p in found]), ("protocols", [p.protocol for p in found]), *settings):
        if len(set(values)) > 1:
            return f"one side has the {what} {' and '.join(dict.fromkeys(values))}, and a comparison is of one"
    return ""


def by_task(found: Sequence[Planned]) -> list[list[Planned]]:
    """Group runs by task: settings may differ between tasks, as hyperparameters do."""
    return [[p for p in found if p.task == task] for task in dict.fromkeys(p.task for p in found)]


def fits(p: Planned, side: Side) -> bool:
    of_cell = all(getattr(p, key) in side[key] for key in SELECTORS if key in side)
    return of_cell and all(p.columns.get(key, "null") in values for key, values in side.items() if "." in key)


def preferred(found: Sequence[Planned], starts: Sequence[str]) -> list[Planned]:
    """For each task, the cells of the first start that it has; empty if no task has the first of all."""
    if not any(p.start == starts[0] for p in found):
        return []
    first = {p.task: min(starts.index(q.start) for q in found if q.task == p.task) for p in found}
    return [p for p in found if p.start == starts[first[p.task]]]


def settings_of(group: Sequence[Planned]) -> list[str]:
    """The settings of each run in which they differ."""
    keys = dict.fromkeys(key for p in group for key in p.columns)
    differ = [key for key in keys if len({p.columns.get(key, "null") for p in group}) > 1]
    return [", ".join(f"{key}={p.columns.get(key, 'null')}" for key in differ) for p in group]


def on(tasks: Sequence[str], side: Sequence[Planned]) -> Sequence[Planned]:
    """A side's cells on these tasks, so that its label names no start of another; the whole side if it has none."""
    return [p for p in side if p.task in tasks] or side


def labels(one: Sequence[Planned], other: Sequence[Planned]) -> list[str]:
    """The labels of the two sides. They name the starts if either side has a cell from MNLI."""
    from_mnli = any(p.start == "mnli" for p in (*one, *other))
    return [named(side) if from_mnli else side[0].label for side in (one, other)]


def named(side: Sequence[Planned]) -> str:
    """A side's label with its starts, which the label of a row may already name."""
    label, start = side[0].label, started(side)
    return label if label.endswith(f", {start}") else f"{label} {start}"


def started(side: Sequence[Planned]) -> str:
    """`from MNLI`; for a side with several starts `from MNLI (RTE, MRPC)`."""
    starts = dict.fromkeys(p.start for p in side)
    if len(starts) == 1:
        return f"from {START_TITLES[side[0].start]}"
    tasks = [TASKS[task].title for task in TASKS if any((p.task, p.start) == (task, "mnli") for p in side)]
    return f"from {START_TITLES['mnli']} ({', '.join(tasks)})"


def described(side: Side) -> str:
    """The label of a side without cells, from its conditions: `LoRA (qkvoif, r1)`, `Full fine-tuning from MNLI`."""
    named = [slug_label(slug) for slug in side.get("slug", ())]
    named = named or [METHOD_TITLES.get(name, name) for name in side.get("method", ("any method",))]
    settings = [f"{key.partition('.')[2]}={'/'.join(values)}" for key, values in side.items() if "." in key]
    start = [f"from {START_TITLES.get(name, name)}" for name in side.get("start", ())[:1]]
    return " ".join([" or ".join(named), *(one for one in settings if not one.endswith("=null")), *start])
