"""`python -m lora`: one cell, or with `-m` a sweep over the cells of a profile."""

import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora.compose import CONF, explain, register_resolvers, settle
from lora.config import RunConfig
from lora.errors import UserError
from lora.launch import UnfinishedError
from lora.progress import Note, shown
from lora.results import RunRecord, read_record, record_path, write_atomically, write_record


def run_cell(config: RunConfig) -> RunRecord:
    """The cell's record: the one that is there, or a new one.

    A `failed` record is written for anything that goes wrong once the cell has started, and then raised.
    """
    runtime = config.runtime
    path = record_path(runtime.results, config.run_id)
    if path.exists():
        record = read_record(path)
        if record.status == "ok" or not runtime.retry_failed:
            return record
    from lora.train import run  # loads torch, which a finished cell does not need

    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with Note(runtime.outputs, config.run_id) as note:
        try:
            record, predictions = run(config, note)
        except Exception as error:
            failed = RunRecord(
                config.run_id, "failed", f"{type(error).__name__}: {error}", started_at, 0.0, 1, config.as_dict()
            )
            write_record(runtime.results, failed)
            raise
    write_atomically(Path(runtime.results) / "predictions" / f"{config.run_id}.safetensors", predictions)
    write_record(runtime.results, record)
    return record


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def compose_and_run(config: DictConfig) -> None:
    single = HydraConfig.get().mode == RunMode.RUN
    try:
        record = run_cell(settle(config))
    except Exception as error:
        if single:
            raise
        if not isinstance(error, UserError):  # a user's mistake is told by the record alone
            traceback.print_exc()
        return
    if single:
        print(f"{record.run_id}: {record.status}, {outcome(record)}")


def outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"{record.error} (runtime.retry_failed=true trains it again)"
    best, last = (shown(record.selected[rule]["value"]) for rule in ("best", "last"))
    return f"{record.selected['metric']} best {best}, last {last}"


def main() -> None:
    """Exit codes: 0 done, 1 cells failed or are missing, 2 a mistake in what was asked for."""
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach the handlers below instead of Hydra's printer
    try:
        compose_and_run()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error if isinstance(error, UserError) else explain(error)}", file=sys.stderr)
        sys.exit(2)
    except UnfinishedError as error:
        print(f"unfinished:\n{error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
