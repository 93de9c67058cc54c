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
    experiments, starts = side.get("experiment", (claim.experiment,)), side.get("start", ())
    every = {p.run_id: p for name in experiments for p in planned.get(name, ()) if p.model == model}
    found = [p for p in every.values() if fits(p, side)]
    if not any(p.start in starts[:1] for p in found):
        return [] if starts else found
    first = {p.task: min(starts.index(q.start) for q in found if q.task == p.task) for p in found}
    return [p for p in found if p.start == starts[first[p.task]]]


def fits(p: Planned, side: Side) -> bool:
    of_cell = all(getattr(p, key) in side[key] for key in SELECTORS if key in side)
    return of_cell and all(p.columns.get(key, "null") in values for key, values in side.items() if "." in key)


def several(found: Sequence[Planned]) -> str:
    """Why runs are not one side of a comparison: they have several slugs or protocols, or settings on a task; or ""."""
    groups = [("slugs", [p.slug for p in found]), ("protocols", [p.protocol for p in found])]
    for task in dict.fromkeys(p.task for p in found):  # settings may differ between tasks, as hyperparameters do
        of_task = [p.columns for p in found if p.task == task]
        keys = dict.fromkeys(key for columns in of_task for key in columns)
        differ = [key for key in keys if len({columns.get(key, "null") for columns in of_task}) > 1]
        texts = [", ".join(f"{key}={columns.get(key, 'null')}" for key in differ) for columns in of_task]
        groups.append(("settings", texts))
    for what, values in groups:
        if len(set(values)) > 1:
            return f"one side has the {what} {' and '.join(dict.fromkeys(values))}, and a comparison is of one"
    return ""


def labels(one: Sequence[Planned], other: Sequence[Planned], tasks: Sequence[str]) -> list[str]:
    """The labels of the two sides on these tasks. They name the starts if either side has a cell from MNLI."""
    sides = [[p for p in side if p.task in tasks] or side for side in (one, other)]
    from_mnli = any(p.start == "mnli" for side in sides for p in side)
    return [with_start(side) if from_mnli else side[0].label for side in sides]


def with_start(side: Sequence[Planned]) -> str:
    """A side's label with its start, which the label of a row may already name; `from MNLI (RTE)` with several."""
    label, start = side[0].label, f"from {START_TITLES[side[0].start]}"
    if len({p.start for p in side}) > 1:
        tasks = [TASKS[task].title for task in TASKS if any((p.task, p.start) == (task, "mnli") for p in side)]
        start = f"from {START_TITLES['mnli']} ({', '.join(tasks)})"
    return label if label.endswith(f", {start}") else f"{label} {start}"


def described(side: Side) -> str:
    """The label of a side without cells, from its conditions: `LoRA (qkvoif, r1)`, `Full fine-tuning from MNLI`."""
    named = [slug_label(slug) for slug in side.get("slug", ())]
    named = named or [METHOD_TITLES.get(name, name) for name in side.get("method", ("any method",))]
    start = [f"from {START_TITLES.get(name, name)}" for name in side.get("start", ())[:1]]
    return " ".join([" or ".join(named), *start])
