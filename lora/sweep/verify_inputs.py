"""Check that a record may replace training: the available rows and weights must be those that it was made from.

A run_id contains neither the folder of the rows nor that of the encoder, so a run has the same name on every machine.
"""

import dataclasses
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from lora.config.encoder_files import check_length, hub_commit, locate, tokenizer_name, weights_name
from lora.config.run import RunConfig
from lora.config.sections import DataConfig, ModelConfig
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.records.record import RunRecord, read_record, record_path

WAY_OUT = "for a results folder of its own, add runtime.results=FOLDER"
COMMIT = re.compile("[0-9a-f]{40}")


def check_inputs(
    configs: Iterable[RunConfig], records: Iterable[RunRecord] = (), todo: Container[str] = (), online: bool = True
) -> None:
    """Read the rows and find the weights of these runs, and compare them with those that the records were made from.

    The hub is asked for the rows of runs in `todo`, and where a record's settings do not identify its rows or weights.

    Args:
        configs: At least one per task, number of train rows, and encoder (`distinct`).
        records: Records of runs with these settings.
        todo: The run_ids to train.
        online: Whether the hub may be asked. A report compares only what lies in folders.
    Raises: UserError: If rows or weights cannot be read, or a record was made from different ones.
    """
    asked: dict[tuple[str, int | None, str], RunConfig] = {}
    rows: dict[tuple[str, int | None], str] = {}
    weights: dict[str, str] = {}
    tokenizers: dict[str, str] = {}
    for config in configs:
        part, model = (config.task, config.data.train_rows), config.model
        asked[*part, model.name] = config
        if part not in rows and (config.data.source != "hub" or config.run_id in todo):
            rows[part] = fingerprint(config)
        if model.name not in weights:
            where, _ = locate(model)
            if model.source != "hub":
                weights[model.name], tokenizers[model.name] = (
                    weights_name(where, None, model),
                    tokenizer_name(where, None),
                )
        check_length(model, config.data.max_length)
    for record in records:
        task, data, model = (record.config[key] for key in ("task", "data", "model"))
        part, name = (task, data["train_rows"]), model["name"]
        config = asked.get((*part, name))
        if config is None or record.provenance is None:  # of another part of the rows; of a failed run
            continue
        if online and part not in rows and not is_pinned(config.data, data):
            rows[part] = fingerprint(config)
        if online and name not in weights and not is_pinned(config.model, model):
            weights[name] = f"commit:{hub_commit(*locate(config.model))}"
        made_from = record.provenance["weights"]
        if config.model.source == "hub":  # the commit, because a pickle's hash would need a download
            made_from = f"commit:{record.provenance['revision']}"
        for what, here, recorded in (
            (f"rows of {task}", rows.get(part), record.provenance["data"]["fingerprint"]),
            (f"weights of {name}", weights.get(name), made_from),
            (f"tokenizer files of {name}", tokenizers.get(name), record.provenance.get("tokenizer")),
        ):
            if None not in (here, recorded) and here != recorded:
                raise UserError(
                    f"the {what} are not those that {record.run_id} was trained on ({here[:20]} here, {recorded[:20]} "
                    f"in its record of {record.started_at[:10]}); {WAY_OUT}"
                )


def is_pinned(asked: DataConfig | ModelConfig, recorded: Mapping[str, Any]) -> bool:
    """Whether the settings of a run and of a record name the same commit on the hub, which never changes."""
    same = all(recorded[key] == getattr(asked, key) for key in ("source", "revision"))
    same &= recorded.get("hub_id") == getattr(asked, "hub_id", None)
    return same and asked.source == "hub" and COMMIT.fullmatch(asked.revision or "") is not None


def check_single(config: RunConfig, record: RunRecord | None) -> None:
    """`check_inputs` for a single run, and for the MNLI run that it starts from, whose record stands in for training.

    Args:
        record: The run's record, unless the run is to be trained.
    """
    configs, records = [config], [] if record is None else [record]
    path = record_path(config.runtime.results, config.start_run) if config.start_run is not None else None
    parent = read_record(path) if path is not None and path.exists() else None
    if parent is not None and parent.status == "ok":  # else only a run that is done may go on
        data = dataclasses.replace(config.data, train_rows=parent.config["data"]["train_rows"])
        first = dataclasses.replace(
            config, task=parent.config["task"], start="pretrained", start_seed=None, start_run=None, data=data
        )
        configs, records = [first, config], [parent, *records]  # the run's own rows last: they are kept for training
    check_inputs(configs, records, () if record is not None else {config.run_id})


def fingerprint(config: RunConfig) -> str:
    """The fingerprint of the rows that a run is trained and evaluated on."""
    from lora.data.read import read  # loads the datasets library

    data = config.data
    path = Path(data.path) if data.path else None
    return read(TASKS[config.task], data.source, path, data.revision, data.train_rows).fingerprint
