"""Check that a record may replace training: the available rows and weights must be those that it was made from.

A run_id contains neither the folder of the rows nor that of the encoder, so a run has the same name on every machine.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.encoder_files import locate, weights_name
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord
from lora.sweep.expand import PlannedRun

WAY_OUT = "for a results folder of its own, add runtime.results=FOLDER"


def check_inputs(configs: Iterable[RunConfig], records: Iterable[RunRecord] = ()) -> None:
    """Read the rows and find the weights of these runs, and compare them with those that the records were made from.

    Args:
        configs: At least one per task, number of train rows, and encoder.
        records: Records of runs with these settings. Hub weights are not compared, since a commit identifies them.
    Raises: UserError: If rows or weights cannot be read, or a record was made from different ones.
    """
    rows: dict[tuple[str, int | None], str] = {}
    weights: dict[str, str] = {}
    for config in configs:
        key = config.task, config.data.train_rows
        if key not in rows:
            rows[key] = fingerprint(config)
        if config.model.name not in weights:
            where, _ = locate(config.model)
            if config.model.source != "hub":
                weights[config.model.name] = weights_name(where, None, config.model)
    for record in records:
        task, model = record.config["task"], record.config["model"]["name"]
        if record.provenance is None:  # a failed run
            continue
        for what, here, recorded in (
            (f"rows of {task}", rows.get((task, record.config["data"]["train_rows"])), data_of(record)),
            (f"weights of {model}", weights.get(model), record.provenance["weights"]),
        ):
            if here is not None and here != recorded:
                raise UserError(
                    f"the {what} are not those that {record.run_id} was trained on ({here[:20]} here, {recorded[:20]} "
                    f"in its record of {record.started_at[:10]}); {WAY_OUT}"
                )


def distinct(runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> list[RunConfig]:
    """One run per task, number of train rows, and encoder, for `check_inputs` before a sweep.

    Finished runs with rows on the hub are skipped: a revision identifies the rows, and a clone with records needs no
    network.
    """
    found = {(run.task, run.train_rows, run.model): run for run in (*runs, *todo)}
    unfinished = {run.run_id for run in todo}
    configs = {run.run_id: compose_run(run.overrides) for run in found.values()}
    return [config for run_id, config in configs.items() if run_id in unfinished or config.data.source != "hub"]


def data_of(record: RunRecord) -> str:
    return record.provenance["data"]["fingerprint"]


def fingerprint(config: RunConfig) -> str:
    """The fingerprint of the rows that a run is trained and evaluated on."""
    from lora.data.read import read  # loads the datasets library

    data = config.data
    path = Path(data.path) if data.path else None
    return read(TASKS[config.task], data.source, path, data.revision, data.train_rows).fingerprint
