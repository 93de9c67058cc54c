"""Launching a sweep: what is missing is announced, checked, run by Hydra's launcher, and looked at again."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from lora.compose import compose_run
from lora.config import RunConfig
from lora.errors import UserError
from lora.processes import processes
from lora.progress import Watch, duration
from lora.provenance import ROOT
from lora.results import RunRecord, adapter_path, load_records
from lora.sweep import Cell, State, estimate_seconds, requested, state

LAUNCHES = 3  # a killed worker takes the rest of its launch down with it; what is missing is launched again
PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}
SUSTAINED_FLOPS = 100e12  # about a third of an A100's bf16 peak


class UnfinishedError(Exception):
    """The sweep ended with cells that failed or are missing."""


def launch_cells(launcher: Launcher, config: DictConfig, arguments: Sequence[str]) -> State:
    """Run what is missing of the cells that the arguments ask for (`lora.sweep.requested`).

    Raises: UserError: Before anything runs, if any cell is invalid or its rows or weights are not to be had.
        UnfinishedError: At the end, if cells failed or are missing.
    """
    if processes() > 1:
        raise UserError(
            f"a sweep is started by one process, got {processes()}: `accelerate launch` and torchrun start single "
            f"cells (python -m lora without -m), a sweep has launcher.workers"
        )
    cells = requested(config.profile.name, arguments)
    results, outputs = config.runtime.results, config.runtime.outputs
    retry = bool(config.runtime.retry_failed)
    now = state(cells, results)
    for problem in now.problems:
        print(f"left out: {problem}", file=sys.stderr)
    todo = to_run(cells, now, retry, outputs)
    workers = int(config.launcher.workers)
    reference = reference_records()
    expected = {cell.run_id: estimate_seconds(cell, [*reference, *now.ok.values()]) for cell in todo}
    print(announcement(config.profile.name, cells, now, todo, expected, workers), flush=True)
    check_inputs(todo, now)
    warnings.filterwarnings(
        "ignore", "A worker stopped while some jobs", UserWarning
    )  # replaced when it grows; no job is lost
    attempts = dict.fromkeys((cell.run_id for cell in todo), 0)
    while wave := next_wave(todo, now):
        wave.sort(
            key=lambda cell: -(expected[cell.run_id] or cell.examples)
        )  # longest first: none is left to run alone
        with Watch(wave, len(now.ok), expected, workers, results, outputs):
            try:
                launcher.launch([list(cell.overrides) for cell in wave], initial_job_idx=0)
            except Exception as error:  # the launcher's own: a worker was killed, a queue refused
                reason = str(error).splitlines()[0] if str(error) else ""
                print(f"the launcher stopped early: {type(error).__name__}: {reason}", file=sys.stderr)
        for cell in wave:
            attempts[cell.run_id] += 1
        now = state(cells, results)
        again = {cell.run_id for cell in now.missing}
        todo = [cell for cell in todo if cell.run_id in again and attempts[cell.run_id] < LAUNCHES]
    if now.failed or now.missing:
        raise UnfinishedError("\n".join(unfinished(now)))
    return now


def next_wave(todo: Sequence[Cell], now: State) -> list[Cell]:
    """The cells whose parent, if they have one, is done and not itself to run."""
    waiting = {cell.run_id for cell in todo}
    return [c for c in todo if c.parent is None or (c.parent in now.ok and c.parent not in waiting)]


def unfinished(now: State) -> list[str]:
    lines = [f"failed: {run_id}: {record.error}" for run_id, record in now.failed.items()]
    for cell in now.missing:
        waits = cell.parent is not None and cell.parent not in now.ok
        reason = f" (not started: its MNLI run {cell.parent} is not ok)" if waits else ""
        lines.append(f"missing: {cell.run_id}{reason}")
    return lines


def to_run(cells: Sequence[Cell], now: State, retry_failed: bool, outputs: str) -> list[Cell]:
    """Cells without a record, failed ones if asked, and the parents of these whose trained weights are gone."""
    wanted = {cell.run_id for cell in now.missing} | (set(now.failed) if retry_failed else set())
    parents = {cell.parent for cell in cells if cell.run_id in wanted and cell.parent is not None}
    wanted |= {parent for parent in parents if parent in now.ok and not adapter_path(outputs, parent).exists()}
    return [cell for cell in cells if cell.run_id in wanted]


def reference_records() -> list[RunRecord]:
    """Records that came with the clone: how long a cell takes is estimated from them."""
    folders = [*sorted((ROOT / "results").glob("*/runs")), *sorted((ROOT / "results" / "reference").glob("*/runs"))]
    return [record for folder in folders for record in load_records(folder.parent)[0]]


def announcement(
    profile: str,
    cells: Sequence[Cell],
    now: State,
    todo: Sequence[Cell],
    expected: dict[str, float | None],
    workers: int,
) -> str:
    """What will run and how long it will take, said before it starts."""
    if not todo:
        return f"profile {profile}: all {len(cells)} cells are there already ({len(now.failed)} failed)"
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
        f"  time:    {estimate}"
    )


def compute_bound(todo: Sequence[Cell]) -> str:
    """What training costs at most, where nothing was measured: 6 operations per parameter and token, padding included.

    Source: of the sizes, the paper's Table 2; of the factor, forward 2 and backward 4 (LoRA needs about 4 of the 6).
    """
    operations = {
        model: 6 * size * sum(c.tokens for c in todo if c.model == model) for model, size in PARAMETERS.items()
    }
    total = sum(operations.values())
    if any(cell.model not in PARAMETERS for cell in todo) or not total:
        return f"{sum(cell.examples for cell in todo):,} training examples"
    days = {model: value / SUSTAINED_FLOPS / 86400 for model, value in operations.items() if value}
    listed = ", ".join(f"{model} {value:,.0f}" for model, value in days.items())
    return (
        f"at most {sum(days.values()):,.0f} GPU-days at {SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained ({listed}), "
        f"an assumption, not a measurement"
    )


def check_inputs(todo: Sequence[Cell], now: State) -> None:
    """Read every task's rows and find the weights once, before any worker starts.

    Raises: UserError: If they cannot be read, or differ from what the records at hand were made from.
    """
    from lora.data import read
    from lora.tasks import TASKS
    from lora.weights import locate, weights_name

    configs: dict[tuple, RunConfig] = {}
    for cell in todo:
        configs.setdefault((cell.task, cell.model), compose_run(cell.overrides))
    fingerprints, weights = {}, {}
    for (task, model), config in configs.items():
        if task not in fingerprints:
            data = config.data
            path = Path(data.path) if data.path else None
            fingerprints[task] = read(TASKS[task], data.source, path, data.revision, data.train_rows).fingerprint
        if model not in weights:
            where, _ = locate(config.model)
            if config.model.source != "hub":
                weights[model] = weights_name(where, None, config.model)
    for record in now.ok.values():
        task, model = record.config["task"], record.config["model"]["name"]
        for what, found, recorded in (
            (f"rows of {task}", fingerprints.get(task), record.provenance["data"]["fingerprint"]),
            (f"weights of {model}", weights.get(model), record.provenance["weights"]),
        ):
            if found is not None and found != recorded:
                raise UserError(
                    f"the {what} are not those that {record.run_id} was trained on ({found[:20]} here, {recorded[:20]} "
                    f"in the record): a sweep has one data set; give it a folder of its own with runtime.results=FOLDER"
                )
