"""Whether a record may stand in for training: only if the rows and the weights at hand are those it was made from.

A run_id names neither the folder of the rows nor that of the encoder, so that a run has one name everywhere.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.encoder_files import locate, weights_name
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord
from lora.sweep.expand import Cell

WAY_OUT = "for a results folder of its own, add runtime.results=FOLDER"


def check_inputs(configs: Iterable[RunConfig], records: Iterable[RunRecord] = ()) -> None:
    """Read the rows and find the weights of these runs, and compare them with those that the records were made from.

    Args:
        configs: One for every task, number of train rows and encoder at least.
        records: Of runs with these settings. Weights on the hub are not compared: a commit names them.
    Raises: UserError: If rows or weights cannot be read, or a record was made from others.
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
        if record.provenance is None:  # of a failed run
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


def distinct(cells: Sequence[Cell], todo: Sequence[Cell]) -> list[RunConfig]:
    """A run for every task, number of train rows and encoder, to be looked at before a sweep starts or is shown.

    Of what is done, rows on the hub are left out: a revision names them, and a clone with records needs no network.
    """
    found = {(cell.task, cell.train_rows, cell.model): cell for cell in (*cells, *todo)}
    open_cells = {cell.run_id for cell in todo}
    configs = {cell.run_id: compose_run(cell.overrides) for cell in found.values()}
    return [config for run_id, config in configs.items() if run_id in open_cells or config.data.source != "hub"]


def data_of(record: RunRecord) -> str:
    return record.provenance["data"]["fingerprint"]


def fingerprint(config: RunConfig) -> str:
    """Of the rows that this run trains and is evaluated on."""
    from lora.data.read import read  # loads the library of data sets

    data = config.data
    path = Path(data.path) if data.path else None
    return read(TASKS[config.task], data.source, path, data.revision, data.train_rows).fingerprint
