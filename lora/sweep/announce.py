"""What is said about runs before they are trained: how many, the time, encoder, rates, rows; or that they are done."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lora.config.kernel_choice import not_covered, takes_gpu
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import listed
from lora.records.record import RunRecord
from lora.sweep.progress import counted, duration

if TYPE_CHECKING:
    from lora.sweep.expand import PlannedRun
    from lora.sweep.state import State

RETRY = "runtime.retry_failed=true, RETRY_FAILED=1 with make, trains these again"
ORIGINS = {
    "conf": "from conf/hparams",
    "default": "untuned rates: those of the line `default` in conf/hparams, not chosen for this task",
    "tuned": "tuned, from rates.yaml (`rates`)",
    "stated": "as stated",
}


def announcement(
    profile: str,
    runs: Sequence["PlannedRun"],
    now: "State",
    todo: Sequence["PlannedRun"],
    seconds: float | None,
    workers: int,
    results: str,
) -> str:
    """The runs to train and their estimated time or, if all have records, the origin of the records.

    Args:
        seconds: The estimated time of all runs together; None if no record of this machine allows an estimate.
    """
    if not todo:
        return nothing_to_train(f"profile {profile}", results, [*now.ok.values(), *now.failed.values()])
    tasks, slugs = dict.fromkeys(run.task for run in todo), dict.fromkeys(run.slug for run in todo)
    parents = listed(sorted({run.parent for run in runs if run.parent} & {run.run_id for run in todo}))
    by_records = "judging by your records of the same encoder on this kind of machine"
    lines = [
        f"profile {profile}: {counted(len(runs), 'run')}: {len(now.ok)} done, {len(now.failed)} failed, "
        f"{len(todo)} to train, {workers} at a time",
        f"  tasks:   {', '.join(tasks)}",
        f"  methods: {', '.join(slugs)}",
        *([f"  MNLI:    {parents}, which others start from"] if parents else []),
        f"  time:    {'unknown until the first run has ended' if seconds is None else f'about {duration(seconds)}'}"
        f"{'' if seconds is None else f', {by_records}'}",
        *about([run.config for run in todo]),
    ]
    return "\n".join(lines)


def about(configs: Sequence[RunConfig]) -> list[str]:
    """Lines about runs to train: encoder, epochs, rates, rows of user-defined tasks, kernels, precision, W&B copies."""
    models = dict.fromkeys(config.model.name for config in configs)
    epochs = sorted({config.train.epochs for config in configs})
    lines = [f"  encoder: {', '.join(models)}; epochs: {', '.join(map(str, epochs))}", *about_own(configs)]
    rates: dict[str, dict[str, set[float]]] = {}
    for config in configs:
        methods = rates.setdefault(config.runtime.rate_from or "stated", {})
        methods.setdefault(config.method.name, set()).add(config.train.lr)
    for origin, methods in rates.items():
        each = (f"{method} {' or '.join(f'{rate:g}' for rate in sorted(values))}" for method, values in methods.items())
        lines.append(f"  rates:   {', '.join(each)} ({ORIGINS[origin]})")
    lines.append(f"  kernels: {'; '.join(dict.fromkeys(map(kernels_of, configs)))}")
    runtime = configs[0].runtime
    if runtime.tracking != "off":
        from lora.sweep.tracking import destination

        place = destination(runtime.tracking, runtime.outputs)
        lines.append(f"  copies:  for W&B, to {place} (none with runtime.tracking=off)")
    return lines


def about_own(configs: Iterable[RunConfig]) -> list[str]:
    """Lines about user-defined tasks: rows per split, rows shared with train, and the majority label."""
    lines = []
    for config in {config.task: config for config in configs if TASKS[config.task].own is not None}.values():
        from lora.data.own_task import KEYS, duplicates, most_frequent

        task = TASKS[config.task]
        rows = task.official_rows | {"train": config.train_rows}
        counts = ", ".join(f"{KEYS[split]} {count:,}" for split, count in rows.items())
        shared = [f"{count:,} of {KEYS[split]}" for split, count in duplicates(task).items() if count]
        also = f"also in train: {' and '.join(shared)}" if shared else "no row is also in train"
        lines.append(f"  rows:    {task.name}: {counts}; {also}")
        if task.labels:
            word, share = most_frequent(task, "validation")
            lines.append(f"           {share:.0%} of dev are {word}, its most frequent label")
    return lines


def kernels_of(config: RunConfig) -> str:
    """A run's kernels and precision, with the reason for stock kernels on a CPU."""
    train = config.train
    if train.kernels == "fused" or takes_gpu(train.kernels, config.runtime.device):
        return f"{train.kernels}, {train.precision}"
    reason = None if config.model.source == "hub" else not_covered(config.model)
    return f"{train.kernels}, {train.precision}{f' (fused kernels do not cover {reason})' if reason else ''}"


def nothing_to_train(what: str, results: str, records: Sequence[RunRecord]) -> str:
    """That all runs have records, and the dates and devices of these.

    Args:
        what: The profile or run that was asked for.
    """
    runs = f"all {len(records)} runs are" if len(records) > 1 else "its run is"
    days = sorted({record.started_at[:10] for record in records})
    devices = dict.fromkeys(record.provenance["device"] for record in records if record.provenance is not None)
    count = sum(record.status == "failed" for record in records)
    failed = f"; {count} of them failed ({RETRY})" if count else ""
    return (
        f"{what}: nothing to train, {runs} in {results} already\n"
        f"  made:    {' to '.join(dict.fromkeys((days[0], days[-1])))}, on {', '.join(devices) or 'no device'}{failed}"
    )
