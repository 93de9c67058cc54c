"""`python -m lora plan PROFILE`: estimate the cost of a sweep, in device hours and checkpoints."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lora.files import RESULTS
from lora.models.sizes import SIZES, closed_form
from lora.records.record import RunRecord, load_records
from lora.sweep.expand import PlannedRun
from lora.sweep.progress import duration
from lora.sweep.request import select_runs, sweep_settings

DEVICES = (1, 8, 64)
CHECKPOINT_BYTES = 12  # per trainable parameter: itself and AdamW's two moments, float32
PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}  # the paper's Table 2
SUSTAINED_FLOPS = 100e12  # about a third of an A100's bf16 peak


def own_records(results: str | Path) -> list[RunRecord]:
    """The user's successful records, from which a run's time can be estimated: other machines made the reference."""
    folders = {path.parent.resolve() for path in RESULTS.glob("*/runs")} | {Path(results).resolve()}
    return [record for folder in sorted(folders) for record in load_records(folder)[0] if record.status == "ok"]


def estimator(known: Iterable[RunRecord]) -> Callable[[PlannedRun], float | None]:
    """A function that estimates a run's time from records.

    Returns: Run -> the median seconds per train example of the records of the same model, task and method, else of the
        same model, times the run's examples. None without a record of the model.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for record in known:
        config = record.config
        seen = record.provenance["data"]["rows"]["train"] * config["train"]["epochs"]
        alike = (config["model"]["name"], config["task"], config["method"]["name"])
        for key in (alike, alike[:1]):
            rates.setdefault(key, []).append(record.seconds / seen)
    medians = {key: sorted(values)[len(values) // 2] for key, values in rates.items()}

    def seconds(run: PlannedRun) -> float | None:
        rate = medians.get((run.model, run.task, run.method), medians.get((run.model,)))
        return None if rate is None else rate * run.examples

    return seconds


def compute_seconds(run: PlannedRun) -> float | None:
    """Upper bound of a run's seconds without records: 6 operations per parameter and token, padding included.

    The factor is 2 for forward and 4 for backward; LoRA needs about 4 of 6.

    Returns: None if the encoder's size is unknown.
    """
    tokens = run.examples * run.config.data.max_length
    return 6 * PARAMETERS[run.model] * tokens / SUSTAINED_FLOPS if run.model in PARAMETERS else None


def checkpoint_bytes(run: PlannedRun) -> float | None:
    """Disk space of a run while it trains; a third of it for good if others start from it. None if unknown.

    It excludes the head, which is less than 5% of the parameters that any method trains.
    """
    return CHECKPOINT_BYTES * closed_form(run.model, run.config.method) if run.model in SIZES else None


def text(profile: str, runs: Sequence[PlannedRun], known: Sequence[RunRecord]) -> str:
    """
    Args:
        known: The user's records (`own_records`).
    """
    import pandas as pd

    measured = {run.run_id: seconds for run, seconds in zip(runs, map(estimator(known), runs), strict=True)}
    seconds = {run.run_id: measured[run.run_id] or compute_seconds(run) for run in runs}
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        times, sizes = [seconds[run.run_id] for run in own], [*map(checkpoint_bytes, own)]
        rows.append(
            {
                "Model": model,
                "Runs": len(own),
                "Train examples": f"{sum(run.examples for run in own):,}",
                "Device hours": "-" if None in times else f"{sum(times) / 3600:,.1f}",
                "From records": f"{sum(measured[run.run_id] is not None for run in own)} of {len(own)} runs",
                "Largest checkpoint": "-" if None in sizes else f"{max(sizes) / 1e6:,.1f} MB",
            }
        )
    lines = [f"# Plan of {profile}: {len(runs)} runs", "", pd.DataFrame(rows).to_markdown(index=False), ""]
    if any(measured[run_id] is None and value is not None for run_id, value in seconds.items()):
        lines += [
            f"Without records of an encoder, hours are an upper bound: 6 operations per parameter and token, padding "
            f"included, at {SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s sustained. This is an assumption, not a measurement.",
            "",
        ]
    if None in seconds.values():
        return "\n".join([*lines, "The time of `-` is unknown until its first run here has ended.", ""])
    total, longest = sum(seconds.values()), max(seconds.values())
    hours = ", ".join(f"{n}: {duration(max(total / n, longest))}" for n in DEVICES)
    lines.append(f"Time by number of devices, one run on each: {hours}.")
    return "\n".join([*lines, "Each device holds a checkpoint; MNLI runs keep a third of theirs for others.", ""])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep will be launched with")


def main(arguments: argparse.Namespace) -> None:
    """Exit codes: 0, or 2 for a mistake in the command."""
    runs = select_runs(arguments.profile, arguments.overrides)
    known = own_records(sweep_settings(arguments.profile, arguments.overrides).runtime.results)
    print(text(arguments.profile, runs, known))
