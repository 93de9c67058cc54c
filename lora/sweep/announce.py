"""The announcement of a sweep: the runs to train, and the estimated time."""

from collections.abc import Sequence

from lora.errors import listed
from lora.sweep.about import about, nothing_to_train
from lora.sweep.estimate import compute_bound
from lora.sweep.expand import PlannedRun
from lora.sweep.progress import counted, duration
from lora.sweep.state import State


def announcement(
    profile: str,
    runs: Sequence[PlannedRun],
    now: State,
    todo: Sequence[PlannedRun],
    expected: dict[str, float | None],
    workers: int,
    results: str,
) -> str:
    """The runs to train and their estimated time or, if all have records, the origin of the records.

    Args:
        expected: run_id -> estimated seconds, or None if no record of this machine allows an estimate.
    """
    if not todo:
        return nothing_to_train(f"profile {profile}", len(runs), results, [*now.ok.values(), *now.failed.values()])
    tasks, slugs = dict.fromkeys(run.task for run in todo), dict.fromkeys(run.slug for run in todo)
    parents = listed(sorted({run.parent for run in runs if run.parent} & {run.run_id for run in todo}))
    lines = [
        f"profile {profile}: {counted(len(runs), 'run')}: {len(now.ok)} done, {len(now.failed)} failed, "
        f"{len(todo)} to train, {workers} at a time",
        f"  tasks:   {', '.join(tasks)}",
        f"  methods: {', '.join(slugs)}",
        *([f"  MNLI:    {parents}, which others start from"] if parents else []),
        f"  time:    {estimate(todo, expected, workers)}",
        *about([run.config for run in todo]),
    ]
    return "\n".join(lines)


def estimate(todo: Sequence[PlannedRun], expected: dict[str, float | None], workers: int) -> str:
    """The estimated time of all runs together, in words."""
    known = [value for value in expected.values() if value is not None]
    if not known:
        return f"unknown until the first run has ended; {compute_bound(todo)}"
    seconds = sum(known) / len(known) * len(todo) / min(workers, len(todo))
    return f"about {duration(seconds)}, judging by your records of the same encoder on this kind of machine"
