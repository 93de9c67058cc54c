"""What a launch will run and what it will cost, said before it starts."""

from collections.abc import Sequence

from lora.config.compose import compose_run
from lora.config.kernel_choice import choose_kernels
from lora.config.precision_choice import choose_precision
from lora.config.run import RunConfig
from lora.files import REFERENCE, RESULTS
from lora.records.record import RunRecord, load_records
from lora.sweep.expand import Cell, State
from lora.sweep.progress import duration
from lora.sweep.tracking import destination

PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}
SUSTAINED_FLOPS = 100e12  # about a third of an A100's bf16 peak


def reference_records() -> list[RunRecord]:
    """Records that came with the clone: how long a cell takes is estimated from them."""
    folders = [*sorted(RESULTS.glob("*/runs")), *sorted((RESULTS / REFERENCE).glob("*/runs"))]
    return [record for folder in folders for record in load_records(folder.parent)[0]]


def announcement(
    profile: str,
    cells: Sequence[Cell],
    now: State,
    todo: Sequence[Cell],
    expected: dict[str, float | None],
    workers: int,
    results: str,
) -> str:
    """What will run and how long it will take, said before it starts; or whose records stand in for it."""
    if not todo:
        return f"profile {profile}: nothing to train, all {len(cells)} runs are in {results} already" + origin(now)
    known = [value for value in expected.values() if value is not None]
    seconds = sum(known) / len(known) * len(todo) / min(workers, len(todo)) if known else None
    tasks, slugs = dict.fromkeys(c.task for c in todo), dict.fromkeys(c.slug for c in todo)
    estimate = f"unknown, since there is no record of this encoder yet; {compute_bound(todo)}"
    if seconds:
        estimate = f"about {duration(seconds)}, judging by records of the same encoder (another machine may differ)"
    return (
        f"profile {profile}: {len(todo)} of {len(cells)} cells to run ({len(now.ok)} done, {len(now.failed)} failed), "
        f"{workers} at a time\n"
        f"  tasks:   {', '.join(tasks)}\n  methods: {', '.join(slugs)}\n"
        f"  time:    {estimate}\n" + means([compose_run(cell.overrides) for cell in one_of_each(todo)])
    )


def one_of_each(cells: Sequence[Cell]) -> list[Cell]:
    """A cell for every encoder and choice of kernels and precision."""
    keys = ("train.kernels=", "train.precision=")
    found = {(cell.model, *(o for o in cell.overrides if o.startswith(keys))): cell for cell in cells}
    return list(found.values())


def means(configs: Sequence[RunConfig]) -> str:
    """With which kernels and in which precision these runs compute, and where copies of them go; a line each."""
    kernels = dict.fromkeys(map(kernels_of, configs))
    precisions = dict.fromkeys(map(precision_of, configs))
    lines = [f"  kernels: {'; '.join(kernels)}", f"  precision: {'; '.join(precisions)}"]
    runtime = configs[0].runtime
    place = destination(runtime.tracking, runtime.outputs)
    if place is not None:
        lines.append(f"  copies:  for W&B, to {place} (runtime.tracking=off makes none)")
    return "\n".join(lines)


def kernels_of(config: RunConfig) -> str:
    """The kernels of a run, and why they are what `train.kernels=auto` takes, if they are."""
    kernels, why = choose_kernels(config.model, config.runtime.device)
    return f"{kernels} ({why})" if config.train.kernels == kernels else config.train.kernels


def precision_of(config: RunConfig) -> str:
    """The precision of a run, and what is known here of the faster one; nothing is measured for it."""
    asked, runtime = config.train, config.runtime
    found = choose_precision(config.model, asked.kernels, runtime.device, runtime.results, measure=False)
    return f"{asked.precision} ({found[1]})" if found is not None else asked.precision


def origin(now: State) -> str:
    """When, where and on what the records were made."""
    records = [*now.ok.values(), *now.failed.values()]
    if not records:
        return ""
    days = sorted({record.started_at[:10] for record in records})
    made = [record.provenance for record in now.ok.values()]
    devices = dict.fromkeys(one["device"] for one in made)
    rows = dict.fromkeys(one["data"]["source"] for one in made)
    models = dict.fromkeys(record.config["model"]["name"] for record in records)
    failed = f"; {len(now.failed)} of them failed (RETRY_FAILED=1 trains these again)" if now.failed else ""
    return (
        f"\n  made:    {' to '.join(dict.fromkeys((days[0], days[-1])))}, on {', '.join(devices) or 'no device'}\n"
        f"  of:      {', '.join(models)}, rows from {', '.join(rows) or 'nowhere'}{failed}"
    )


def compute_seconds(cell: Cell) -> float | None:
    """What a cell takes at most, where nothing was measured: 6 operations per parameter and token, padding included.

    Source: of the sizes, the paper's Table 2; of the factor, forward 2 and backward 4 (LoRA needs about 4 of the 6).

    Returns: None if the encoder's size is not known.
    """
    if cell.model not in PARAMETERS:
        return None
    return 6 * PARAMETERS[cell.model] * cell.tokens / SUSTAINED_FLOPS


def compute_bound(todo: Sequence[Cell]) -> str:
    """`compute_seconds` of all cells, per model."""
    if any(cell.model not in PARAMETERS for cell in todo) or not todo:
        return f"{sum(cell.examples for cell in todo):,} training examples"
    days = {
        model: sum(compute_seconds(cell) for cell in todo if cell.model == model) / 86400
        for model in PARAMETERS
        if any(cell.model == model for cell in todo)
    }
    listed = ", ".join(f"{model} {value:,.0f}" for model, value in days.items())
    return (
        f"at most {sum(days.values()):,.0f} GPU-days at {SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained ({listed}), "
        f"an assumption, not a measurement"
    )
