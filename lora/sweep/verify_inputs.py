"""Check that a record may replace training: the available rows and weights must be those that it was made from.

A run_id contains neither the folder of the rows nor that of the encoder, so a run has the same name on every machine.
What lies in folders is compared by its hash; what lies on the hub, by the revision in the settings.
"""

from collections.abc import Container, Iterable
from pathlib import Path

from lora.config.encoder_files import check_length, locate, tokenizer_name, weights_name
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord

WAY_OUT = "for a results folder of its own, add runtime.results=FOLDER"


def verify_inputs(configs: Iterable[RunConfig], records: Iterable[RunRecord] = (), todo: Container[str] = ()) -> None:
    """Read the rows and find the weights of these runs, and compare them with those that the records were made from.

    Args:
        configs: At least one per task, number of train rows, and encoder (`distinct`).
        records: Records of runs with these settings.
        todo: The run_ids to train, whose rows on the hub are read too.
    Raises: UserError: If rows or weights cannot be read, or a record was made from different ones.
    """
    asked: dict[tuple[str, int | None, str], RunConfig] = {}
    rows: dict[tuple[str, int | None], str] = {}
    weights: dict[str, tuple[str, str]] = {}  # and the tokenizer
    for config in configs:
        part, model = (config.task, config.data.train_rows), config.model
        asked[*part, model.name] = config
        if part not in rows and (config.data.source != "hub" or config.run_id in todo):
            rows[part] = fingerprint(config)
        if model.name not in weights and model.source != "hub":
            where, _ = locate(model)
            weights[model.name] = weights_name(where, None, model), tokenizer_name(where, None)
        check_length(model, config.data.max_length)
    for record in records:
        task, data, name = record.config["task"], record.config["data"], record.config["model"]["name"]
        part = (task, data["train_rows"])
        config = asked.get((*part, name))
        if config is None or record.provenance is None:  # of another part of the rows; of a failed run
            continue
        made, revision = record.provenance, None
        if config.data.source == data["source"] == "hub":
            revision = config.data.revision
        model_files, tokenizer_files = weights.get(name, (None, None))
        for what, here, recorded in (
            (f"rows of {task}", rows.get(part), made["data"]["fingerprint"]),
            (f"revision of the rows of {task}", revision, data["revision"]),
            (f"weights of {name}", model_files, made["weights"]),
            (f"tokenizer files of {name}", tokenizer_files, made.get("tokenizer")),
        ):
            if None not in (here, recorded) and here != recorded:
                raise UserError(
                    f"the {what} are not those that {record.run_id} was trained on ({here[:20]} here, {recorded[:20]} "
                    f"in its record of {record.started_at[:10]}); {WAY_OUT}"
                )


def fingerprint(config: RunConfig) -> str:
    """The fingerprint of the rows that a run is trained and evaluated on."""
    from lora.data.read import read  # loads the datasets library

    data = config.data
    path = Path(data.path) if data.path else None
    return read(TASKS[config.task], data.source, path, data.revision, data.train_rows).fingerprint
