"""The run record, one JSON per run and the source of every table, and the frame read from a folder of records."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora.errors import UserError, listed
from lora.files import hash_file, read_object, write_atomically

if TYPE_CHECKING:
    import pandas

# 1: predictions of the best and the last epoch alone, and no score `split_half`. 2: that score from 20 divisions of the
# dev set instead of 200, and no dev loss.
RECORD_SCHEMA = 3
RUN_ID = re.compile(r"^[A-Za-z0-9_.-]+-[0-9a-f]{8}$")


@dataclass(frozen=True)
class RunRecord:
    """One run, as written to its JSON file.

    Args:
        status: `ok`, or `failed` with the reason in `error`.
        config: The whole resolved RunConfig.
        params: trainable_method, trainable_head, total (the paper's counts exclude the head).
        epochs: For each epoch: epoch, step, train_loss, metrics {split: {metric: value or null}} and, since schema 3,
            loss {split: value}, the mean over the rows (`lora.training.evaluation.predict`).
        selected: For `best` and `last`: epoch, and headline metric on the selecting split. Since schema 2, for
            `split_half` that metric with the epoch chosen on other rows (`lora.training.evaluation.split_half`). For
            `test`, where a user's task has a labelled test split, that metric of `best` there, and the number of rows.
        cost: Seconds, step time, throughput, bytes. They vary between repetitions and are not results.
        provenance: Code, packages, device, weights, rows and their fingerprint.
        predictions: SHA-256 of the file with the dev predictions of every epoch; in schema 1, of `best` and `last`.
        adapter: SHA-256 of the tensor file of the `best` adapter; None if the run saved none.
    """

    run_id: str
    status: Literal["ok", "failed"]
    error: str | None
    started_at: str
    seconds: float
    config: dict[str, Any]
    params: dict[str, int] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    predictions: str | None = None
    adapter: str | None = None
    schema: int = RECORD_SCHEMA

    @property
    def scored(self) -> str:
        """What its scores follow from: the hash of its predictions and, in newer records, that of its dev rows."""
        data = (self.provenance or {}).get("data", {})
        return " ".join(filter(None, (self.predictions, data.get("dev_fingerprint"))))


ADAPTER, DESCRIPTION = "adapter.safetensors", "adapter.json"  # the files of an adapter's folder
FIELDS = frozenset(f.name for f in dataclasses.fields(RunRecord))


def record_path(results: str | Path, run_id: str) -> Path:
    return Path(results) / "runs" / f"{run_id}.json"


def predictions_path(results: str | Path, run_id: str) -> Path:
    return Path(results) / "predictions" / f"{run_id}.safetensors"


def adapter_path(outputs: str | Path, run_id: str) -> Path:
    """The tensor file of a run's adapter, in a folder with `adapter.json` (`lora.adapters.folder`)."""
    return Path(outputs) / "adapters" / run_id / ADAPTER


def has_adapter(record: "RunRecord", outputs: str | Path) -> bool:
    """Whether the adapter that a record names is in a folder of outputs, whole and unchanged."""
    path = adapter_path(outputs, record.run_id)
    return path.exists() and path.with_name(DESCRIPTION).exists() and hash_file(path) == record.adapter


def checkpoint_path(outputs: str | Path, run_id: str) -> Path:
    return Path(outputs) / "checkpoints" / f"{run_id}.pt"


def note_path(outputs: str | Path, run_id: str) -> Path:
    """The note of a running run's progress (`lora.sweep.progress.Note`)."""
    return Path(outputs) / "running" / f"{run_id}.json"


def write_record(results: str | Path, record: RunRecord) -> Path:
    """Write the record atomically. Raises: UserError: If the folder cannot be written to."""
    path = record_path(results, record.run_id)
    text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
    return path


def read_record(path: Path) -> RunRecord:
    """Read and check one record.

    Raises: UserError: If it is broken, has another schema, or its file is not named by its run_id.
    """
    content = read_object(path)
    if set(content) != FIELDS:
        different = listed(sorted(FIELDS ^ set(content)))
        raise UserError(f"{path} is not a run record: missing or unknown keys: {different}")
    if content["schema"] not in (1, 2, RECORD_SCHEMA):
        raise UserError(f"{path} has record schema {content['schema']!r}; this version reads 1, 2 and {RECORD_SCHEMA}")
    record = RunRecord(**content)
    if not isinstance(record.run_id, str) or not RUN_ID.match(record.run_id) or path.name != f"{record.run_id}.json":
        raise UserError(f"{path} holds run_id {record.run_id!r}; a record's file must be named by its run_id")
    if record.status not in ("ok", "failed"):
        raise UserError(f"{path} has status {record.status!r}; expected ok or failed")
    try:
        _ = record.config["task"], record.config["seed"] + 0, record.config["runtime"].get("group")
        if record.status == "ok":
            _row(record), _curve(record)
            of_epoch = {epoch["epoch"]: epoch["metrics"] for epoch in record.epochs}
            split, metric = record.selected["split"], record.selected["metric"]
            for rule in ("best", "last"):
                stated, scored = record.selected[rule], of_epoch[record.selected[rule]["epoch"]][split][metric]
                if stated["value"] != scored:
                    there = f"{rule} {stated['value']} where its epoch {stated['epoch']} has {scored}"
                    raise UserError(f"{path} was changed by hand: {there}; restore it, or remove it to train again")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a whole record: {error!r}; remove it, and the run is trained again") from error
    return record


def load_records(results: str | Path) -> tuple[list[RunRecord], list[str]]:
    """All records of a folder, sorted by run_id, and a message for each file that is not a record."""
    records, problems = [], []
    for path in sorted((Path(results) / "runs").glob("*.json")):
        try:
            records.append(read_record(path))
        except UserError as error:
            problems.append(str(error))
    return records, problems


FRAME_COLUMNS = (
    *("run_id", "model", "method", "slug", "task", "protocol", "start", "seed", "lr", "epochs"),
    *("best", "last", "split_half", "best_epoch", "last_loss", "lowest_loss", "test", "test_rows"),
    *("trainable_method", "trainable_head", "total", "seconds", "step_ms", "checkpoint_bytes"),
    *("is_part", "train_rows", "draw", "fingerprint", "device"),
    *("dev_fingerprint", "train_fingerprint", "test_fingerprint"),
    "truncated",
)


def load_frame(records: list[RunRecord]) -> "pandas.DataFrame":
    """A frame with one row per `ok` record; metrics are fractions and missing values NaN.

    Returns: Columns `FRAME_COLUMNS`; `best` and `last` are the headline metric of the best and of the last epoch,
        `split_half` that of epochs chosen on other rows (missing before schema 2), `last_loss` and `lowest_loss` the
        mean dev loss of the last epoch and the lowest of all epochs (missing before schema 3), `test` the best epoch's
        metric on labelled test rows, `draw` the seed that drew the train rows (-1: the same for all), `step_ms` and
        `checkpoint_bytes` the median time of a step and the size of an adapter (missing if they were not measured),
        `truncated` the fraction of the rows that are longer than data.max_length.
    """
    import pandas as pd  # half a second, which a run need not wait for

    rows = [_row(record) for record in records if record.status == "ok"]
    return pd.DataFrame(rows, columns=FRAME_COLUMNS)


def _row(record: RunRecord) -> dict[str, Any]:
    config = record.config
    selected = record.selected
    data = record.provenance["data"]
    losses = [_loss(record, epoch) for epoch in record.epochs]
    return {
        "run_id": record.run_id,
        "model": config["model"]["name"],
        "method": config["method"]["name"],
        "slug": record.run_id.split(".")[1],
        "task": config["task"],
        "protocol": config["protocol"],
        "start": config["start"],
        "seed": config["seed"],
        "lr": config["train"]["lr"],
        "epochs": config["train"]["epochs"],
        "best": _number(selected["best"]["value"]),
        "last": _number(selected["last"]["value"]),
        "split_half": _number(selected["split_half"]["value"]) if "split_half" in selected else math.nan,
        "best_epoch": selected["best"]["epoch"],
        "last_loss": losses[-1],
        "lowest_loss": min(losses),
        "test": _number(selected["test"]["value"]) if "test" in selected else math.nan,
        "test_rows": _number(selected["test"]["rows"]) if "test" in selected else math.nan,
        **record.params,
        "seconds": record.seconds,
        "step_ms": _number((record.cost or {}).get("step_ms")),
        "checkpoint_bytes": _number((record.cost or {}).get("checkpoint_bytes")),
        "is_part": data["is_part"],
        "train_rows": data["rows"]["train"],
        "fingerprint": data["fingerprint"],
        "draw": config["seed"] if config["data"].get("train_draw") == "seed" else -1,
        "dev_fingerprint": data.get("dev_fingerprint"),
        "train_fingerprint": data.get("train_fingerprint"),
        "test_fingerprint": data.get("test_fingerprint"),
        "device": record.provenance["device"],
        "truncated": sum(data["truncated"].values()) / sum(data["rows"].values()) if "truncated" in data else math.nan,
    }


def load_curves(records: list[RunRecord]) -> "pandas.DataFrame":
    """A frame with one row per epoch of each `ok` record.

    Returns: Columns run_id, epoch, step, train_loss, and, on the selecting split, loss and value: the headline metric,
        a fraction.
    """
    import pandas as pd

    rows = [row for record in records if record.status == "ok" for row in _curve(record)]
    return pd.DataFrame(rows, columns=["run_id", "epoch", "step", "train_loss", "loss", "value"])


def _curve(record: RunRecord) -> list[tuple]:
    split = record.selected["split"]
    metric = record.selected["metric"]
    rows = []
    for epoch in record.epochs:
        value = _number(epoch["metrics"][split][metric])
        rows.append((record.run_id, epoch["epoch"], epoch["step"], epoch["train_loss"], _loss(record, epoch), value))
    return rows


def _loss(record: RunRecord, epoch: dict[str, Any]) -> float:
    """The mean dev loss of an epoch on the selecting split. Pooled splits have none; nor have older records."""
    return _number(epoch.get("loss", {}).get(record.selected["split"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
