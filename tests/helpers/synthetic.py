"""Records of no training: one for every run of a profile, with values drawn from the run_id."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from lora.config.plan import add_to_plan
from lora.config.run import PlannedRun
from lora.data.tasks import TASKS
from lora.files import write_atomically
from lora.records.record import RunRecord, predictions_path, write_record
from lora.report.labels import setting_columns
from lora.report.runs import FACTS, LORA, with_records
from lora.sweep.request import select_runs

EPOCHS = 4
LEVELS = dict.fromkeys(("peft", "full", "lora"), 0.70)
LEVELS |= {"houlsby": 0.62, "pfeiffer": 0.66, "bitfit": 0.64, "adapterdrop": 0.6}
TRAINABLE = {"full": 22_565_376, "bitfit": 40_000, "houlsby": 78_432, "pfeiffer": 80_000, "adapterdrop": 60_000}


def populate(
    results: Path,
    profile: str,
    overrides: Sequence[str] = (),
    value: Callable[[PlannedRun], float] | None = None,
    predictions: bool = False,
) -> list[PlannedRun]:
    """Write the plan and the records of all runs that the overrides request.

    Args:
        value: The best epoch's metric of a run, a fraction. None: by method, with noise per run.
    """
    runs = select_runs(profile, list(overrides))
    add_to_plan(results, runs)
    for run in runs:
        write_run(results, run, (value or default_value)(run), predictions)
    return runs


def default_value(run: PlannedRun) -> float:
    return LEVELS[run.method] + 0.02 * noise(run.run_id) + 0.05 * noise(run.task.name)


def noise(name: str) -> float:
    """A number between -1 and 1, the same for the same name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**47 - 1


def write_run(results: Path, run: PlannedRun, best: float, predictions: bool = False) -> RunRecord:
    digest = None
    if predictions:
        splits = run.task.validation_splits
        values = {f"{epoch}.{split}": np.zeros(4, np.int16) for epoch in (3, 4) for split in splits}
        digest = keep_predictions(results, run, values)
    record = synthetic_record(run, best, digest)
    write_record(results, record)
    return record


def keep_predictions(results: Path, run: PlannedRun, values: dict[str, np.ndarray]) -> str:
    """Write a run's file of predictions, "epoch.split" -> those of its rows. Returns: The hash for its record."""
    content = save(values)
    write_atomically(predictions_path(results, run.run_id), content)
    return hashlib.sha256(content).hexdigest()


def synthetic_record(run: PlannedRun, best: float, predictions: str | None = None) -> RunRecord:
    """A record of four epochs: the third is the best, the last a little lower."""
    split = "validation_matched" if run.task.name == "mnli" else "validation"
    values = [best - 0.05, best - 0.01, best, best - 0.004 * (1 + noise(f"last {run.run_id}"))]
    epochs = [
        {"epoch": i, "step": 10 * i, "train_loss": 1 / i, "metrics": {split: {"headline": value}}}
        for i, value in enumerate(values, start=1)
    ]
    rows = {"train": 1000, split: 100}
    data = {"source": "tsv", "is_part": False, "rows": rows, "official_rows": rows}
    data["fingerprint"] = hashlib.sha256(run.task.name.encode()).hexdigest()
    provenance = {"code": {"commit": "0" * 40, "dirty": False}, "packages": {"torch": "2"}}
    provenance |= {"device": "none", "weights": "sha256:0", "data": data}
    selected = {"best": {"epoch": 3, "value": values[2]}, "last": {"epoch": EPOCHS, "value": values[3]}}
    return RunRecord(
        run_id=run.run_id,
        status="ok",
        error=None,
        started_at="2026-01-01T00:00:00+00:00",
        seconds=60.0,
        config=run.config.for_record(),
        params={"trainable_method": TRAINABLE.get(run.method, 73_728), "trainable_head": 148_610, "total": 22_787_714},
        epochs=epochs,
        selected={"metric": "headline", "split": split} | selected,
        cost={"step_ms": 1.0, "checkpoint_bytes": 4 * (TRAINABLE.get(run.method, 73_728) + 148_610)},
        provenance=provenance,
        predictions=predictions,
    )


def runs_of(facts: Iterable[Mapping[str, Any]], records: pd.DataFrame) -> pd.DataFrame:
    """The report's frame of runs: run_id, `FACTS`, and experiment and settings if they matter, with their records."""
    usual = {"experiment": "glue_table2", "model": "minilm", "protocol": "ours", "start": "pretrained"}
    columns = dict.fromkeys(["experiment", "run_id", *FACTS, "metric", "terms", "stated", *LORA])
    usual |= {"terms": ("usual", "usual", "null", "fixed"), "stated": (), "targets": "", "rank": 0}
    rows = [usual | {"metric": TASKS[one["task"]].metric} | dict(one) for one in facts]
    columns |= dict.fromkeys(key for row in rows for key in setting_columns(row))
    runs = pd.DataFrame(rows, columns=[*columns])
    return with_records(runs, records if "collapsed" in records else records.assign(collapsed=math.nan)).assign(
        edge=False
    )
