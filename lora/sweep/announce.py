"""The announcement of a launch: the runs to train, the estimated time, kernels, precision and W&B copies."""

from collections.abc import Iterable, Sequence

from lora.config.compose import compose_run
from lora.config.kernel_choice import choose_kernels
from lora.config.precision_choice import choose_precision
from lora.config.run import RunConfig
from lora.data.definition import KEYS
from lora.data.own_rows import duplicates, most_frequent
from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.sweep.estimate import compute_bound
from lora.sweep.expand import PlannedRun
from lora.sweep.progress import counted, duration
from lora.sweep.state import State
from lora.sweep.tracking import destination

RETRY = "runtime.retry_failed=true, RETRY_FAILED=1 with make, trains these again"


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
    return (
        f"profile {profile}: {counted(len(runs), 'run')}: {len(now.ok)} done, {len(now.failed)} failed, "
        f"{len(todo)} to train, {workers} at a time\n"
        f"  tasks:   {', '.join(tasks)}\n  methods: {', '.join(slugs)}\n"
        f"  time:    {estimate(todo, expected, workers)}\n"
        + "".join(f"{line}\n" for line in about_own(tasks, any(run.untuned for run in todo)))
        + means([compose_run(run.overrides) for run in one_of_each(todo)])
    )


def about_own(tasks: Iterable[str], untuned: bool) -> list[str]:
    """Lines about user-defined tasks: rows per split, rows shared with train, the majority label, and untuned rates.

    Args:
        untuned: Whether any run takes a learning rate that was not chosen for its task.
    """
    lines = []
    for task in (TASKS[name] for name in tasks if TASKS[name].own is not None):
        counts = ", ".join(f"{KEYS[split]} {count:,}" for split, count in task.official_rows.items())
        found = [f"{count:,} of {KEYS[split]}" for split, count in duplicates(task).items() if count]
        shared = f"; also in train: {' and '.join(found)}" if found else "; no row is also in train"
        lines.append(f"  rows:    {task.name}: {counts}{shared}")
        if task.labels:
            word, share = most_frequent(task, "validation")
            lines.append(f"           {share:.0%} of dev are {word}, its most frequent label")
    if untuned:
        lines.append("  rates:   untuned rates: those of the line `default` in conf/hparams, not chosen for this task")
    return lines


def estimate(todo: Sequence[PlannedRun], expected: dict[str, float | None], workers: int) -> str:
    """The estimated time of all runs together, in words."""
    known = [value for value in expected.values() if value is not None]
    if not known:
        return f"unknown until the first run has ended; {compute_bound(todo)}"
    seconds = sum(known) / len(known) * len(todo) / min(workers, len(todo))
    return f"about {duration(seconds)}, judging by your records of the same encoder on this kind of machine"


def one_of_each(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """One run per combination of encoder, kernels and precision."""
    keys = ("train.kernels=", "train.precision=")
    found = {(run.model, *(o for o in run.overrides if o.startswith(keys))): run for run in runs}
    return list(found.values())


def means(configs: Sequence[RunConfig]) -> str:
    """One line each for the runs' kernels, their precision, and the destination of their W&B copies, if any."""
    kernels = dict.fromkeys(map(kernels_of, configs))
    precisions = dict.fromkeys(map(precision_of, configs))
    lines = [f"  kernels: {'; '.join(kernels)}", f"  precision: {'; '.join(precisions)}"]
    runtime = configs[0].runtime
    place = destination(runtime.tracking, runtime.outputs)
    if place is not None:
        lines.append(f"  copies:  for W&B, to {place} (none with runtime.tracking=off)")
    return "\n".join(lines)


def kernels_of(config: RunConfig) -> str:
    """A run's kernels, with the reason if `train.kernels=auto` would choose them."""
    kernels, why = choose_kernels(config.model, config.runtime.device, config.runtime.results)
    return f"{kernels} ({why})" if config.train.kernels == kernels else config.train.kernels


def precision_of(config: RunConfig) -> str:
    """A run's precision, with the reason for what `auto` would choose. Only existing measurements are used."""
    asked, runtime = config.train, config.runtime
    found = choose_precision(config.model, asked.kernels, runtime.device, runtime.results, measure=False)
    return f"{asked.precision} ({found[1]})" if found is not None else asked.precision


def nothing_to_train(what: str, count: int, results: str, records: Sequence[RunRecord]) -> str:
    """That all runs have records, and the dates, devices, encoders and data sources of these.

    Args:
        what: The profile or run that was asked for.
        count: Number of its runs.
    """
    there = f"all {count} runs are" if count > 1 else "its run is"
    return f"{what}: nothing to train, {there} in {results} already{origin(records)}"


def origin(records: Sequence[RunRecord]) -> str:
    """Dates, devices, encoders and data sources of records, and how many of them failed; "" without records."""
    if not records:
        return ""
    days = sorted({record.started_at[:10] for record in records})
    made = [record.provenance for record in records if record.provenance is not None]
    devices = dict.fromkeys(one["device"] for one in made)
    rows = dict.fromkeys(one["data"]["source"] for one in made)
    models = dict.fromkeys(record.config["model"]["name"] for record in records)
    count = sum(record.status == "failed" for record in records)
    failed = f"; {count} of them failed ({RETRY})" if count else ""
    return (
        f"\n  made:    {' to '.join(dict.fromkeys((days[0], days[-1])))}, on {', '.join(devices) or 'no device'}\n"
        f"  of:      {', '.join(models)}, data.source={', '.join(rows) or 'none'}{failed}"
    )
