"""Estimates of training time: from records of this machine, otherwise a bound from the number of operations."""

from collections.abc import Callable, Iterable
from pathlib import Path

from omegaconf import DictConfig

from lora.config.kernel_choice import has_gpu
from lora.files import RESULTS
from lora.records.provenance import recorded_cpu
from lora.records.record import RunRecord, load_records
from lora.sweep.expand import PlannedRun

PARAMETERS = {"roberta_base": 125e6, "roberta_large": 355e6, "deberta_v2_xxl": 1.5e9}
SUSTAINED_FLOPS = 100e12  # about a third of an A100's bf16 peak


def records_of_this_machine(config: DictConfig) -> list[RunRecord]:
    """The successful records from which a run's time can be estimated.

    The reference, below results/reference/, is excluded: other machines made it. With the local launcher, the user's
    records count if made on the kind of processor that the runs will use: a GPU, or this CPU's architecture and vector
    instructions. With other launchers, all of them count.

    Args:
        config: Contains `runtime.results`, `runtime.device` and `launcher.name`.
    """
    own = {path.parent.resolve() for path in RESULTS.glob("*/runs")} | {Path(config.runtime.results).resolve()}
    records = [record for folder in sorted(own) for record in load_records(folder)[0] if record.status == "ok"]
    if config.launcher.name != "local":
        return records
    on_gpu = config.runtime.device == "cuda" or (config.runtime.device == "auto" and has_gpu())
    cpu = recorded_cpu()
    device = cpu.split()[0] if on_gpu else cpu
    return [record for record in records if record.provenance["device"].startswith(device) != on_gpu]


def estimator(known: Iterable[RunRecord]) -> Callable[[PlannedRun], float | None]:
    """A function that estimates a run's time from records.

    Returns: Run -> the median seconds per train example of the records of the same model, task and method, else of the
        same model, times the run's examples. None without a record of the model.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for record in known:
        config = record.config
        if record.status == "ok":
            seen = record.provenance["data"]["rows"]["train"] * config["train"]["epochs"]
            alike = (config["model"]["name"], config["task"], config["method"]["name"])
            for key in (alike, alike[:1]):
                rates.setdefault(key, []).append(record.seconds / seen)
    medians = {key: sorted(values)[len(values) // 2] for key, values in rates.items()}

    def seconds(run: PlannedRun) -> float | None:
        rate = medians.get((run.model, run.task, run.method), medians.get((run.model,)))
        return None if rate is None else rate * run.examples

    return seconds


def time_together(runs: Iterable[PlannedRun], known: Iterable[RunRecord], workers: int) -> float | None:
    """The seconds that runs take, `workers` at a time, judging by records. None if the time of one is unknown."""
    seconds = [*map(estimator(known), runs)]
    return None if None in seconds else sum(seconds) / max(1, min(workers, len(seconds)))


def compute_seconds(run: PlannedRun) -> float | None:
    """Upper bound of a run's seconds without records: 6 operations per parameter and token, padding included.

    Source: the paper's Table 2 for the sizes. The factor is 2 for forward and 4 for backward; LoRA needs about 4 of 6.

    Returns: None if the encoder's size is unknown.
    """
    if run.model not in PARAMETERS:
        return None
    return 6 * PARAMETERS[run.model] * run.tokens / SUSTAINED_FLOPS
