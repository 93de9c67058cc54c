"""What is said about runs before they are trained: encoder, rates, rows, kernels, precision; or that they are done."""

from collections.abc import Iterable, Sequence

from lora.config.kernel_choice import encoder_sizes, not_covered, takes_gpu
from lora.config.precision_choice import stored
from lora.config.run import RunConfig
from lora.data.definition import KEYS
from lora.data.own_rows import duplicates, most_frequent
from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.sweep.tracking import destination

RETRY = "runtime.retry_failed=true, RETRY_FAILED=1 with make, trains these again"
ORIGINS = {
    "conf": "from conf/hparams",
    "default": "untuned rates: those of the line `default` in conf/hparams, not chosen for this task",
    "tuned": "tuned, from rates.yaml (`rates`)",
    "stated": "as stated",
}


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
    lines.append(f"  precision: {'; '.join(dict.fromkeys(map(precision_of, configs)))}")
    place = destination(configs[0].runtime.tracking, configs[0].runtime.outputs)
    return lines + ([f"  copies:  for W&B, to {place} (none with runtime.tracking=off)"] if place is not None else [])


def about_own(configs: Iterable[RunConfig]) -> list[str]:
    """Lines about user-defined tasks: rows per split, rows shared with train, and the majority label."""
    lines = []
    for config in {config.task: config for config in configs if TASKS[config.task].own is not None}.values():
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
    """A run's kernels, with the reason."""
    if config.train.kernels == "fused":
        return "fused (compiled, for the CPU)"
    if takes_gpu("stock", config.runtime.device):
        return "stock (for the GPU; runtime.device=cpu would take the CPU)"
    reason = None if config.model.source == "hub" else not_covered(config.model)
    return f"stock ({f'fused kernels do not cover {reason}' if reason else 'those of transformers'})"


def precision_of(config: RunConfig) -> str:
    """A run's precision, with the measurement on this CPU if there is one."""
    if config.model.source == "hub" or takes_gpu(config.train.kernels, config.runtime.device):
        return config.train.precision
    width, ffn = encoder_sizes(config.model)
    measured = stored(width, ffn)[1]
    if measured is None or measured.bf16_ms is None:
        return config.train.precision
    return (
        f"{config.train.precision} (measured on this CPU: a layer's products of {width} x {ffn} take "
        f"{measured.bf16_ms:.3g} ms in bf16 and {measured.fp32_ms:.3g} in fp32)"
    )


def nothing_to_train(what: str, count: int, results: str, records: Sequence[RunRecord]) -> str:
    """That all runs have records, and the dates, devices, encoders and data sources of these.

    Args:
        what: The profile or run that was asked for.
        count: Number of its runs.
    """
    there = f"all {count} runs are" if count > 1 else "its run is"
    text = f"{what}: nothing to train, {there} in {results} already"
    if not records:
        return text
    days = sorted({record.started_at[:10] for record in records})
    first_and_last = " to ".join(dict.fromkeys((days[0], days[-1])))
    made = [record.provenance for record in records if record.provenance is not None]
    devices = dict.fromkeys(one["device"] for one in made)
    rows = dict.fromkeys(one["data"]["source"] for one in made)
    models = dict.fromkeys(record.config["model"]["name"] for record in records)
    count = sum(record.status == "failed" for record in records)
    failed = f"; {count} of them failed ({RETRY})" if count else ""
    return (
        f"{text}\n  made:    {first_and_last}, on {', '.join(devices) or 'no device'}\n"
        f"  of:      {', '.join(models)}, data.source={', '.join(rows) or 'none'}{failed}"
    )
