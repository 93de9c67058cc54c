"""`python -m lora`: one cell, or with `-m` a sweep over the cells of a profile."""

import os
import sys
import time
import traceback
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora.compose import CONF, compose_run, explain, register_resolvers
from lora.config import RunConfig
from lora.errors import UserError
from lora.launch import UnfinishedError
from lora.processes import is_main_process, processes
from lora.progress import Note, shown
from lora.results import RunRecord, adapter_path, read_record, record_path, write_atomically, write_record


def run_cell(config: RunConfig, mistakes_fail: bool) -> RunRecord:
    """The cell's record: the one that is there, or a new one. What goes wrong in training makes a `failed` record.

    Args:
        mistakes_fail: A user's mistake makes a `failed` record too, so that the other cells of a sweep go on.
    Raises: UserError: Otherwise; nothing is then written.
    """
    runtime = config.runtime
    path, adapter = record_path(runtime.results, config.run_id), adapter_path(runtime.outputs, config.run_id)
    if path.exists():
        record = read_record(path)
        usable = record.status == "ok" and (adapter.exists() or not runtime.save_adapter)
        if usable or (record.status == "failed" and not runtime.retry_failed):
            return record
    from lora.train import NonFiniteLossError, run  # loads torch, which a finished cell does not need

    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with Note(runtime.outputs, config.run_id) if is_main_process() else nullcontext(lambda progress: None) as note:
        try:
            record, predictions, files = run(config, note)
        except Exception as error:
            if isinstance(error, UserError) and not mistakes_fail:
                raise
            if not isinstance(error, UserError | NonFiniteLossError):
                traceback.print_exc()  # a defect of ours: the record's one line would not be enough
            reason = (
                str(error) if isinstance(error, UserError | NonFiniteLossError) else f"{type(error).__name__}: {error}"
            )
            seconds = round(time.monotonic() - started, 3)
            record = RunRecord(config.run_id, "failed", reason, started_at, seconds, config.for_record())
            predictions = files = None
    if not is_main_process():
        return record
    if predictions is not None:
        write_atomically(Path(runtime.results) / "predictions" / f"{config.run_id}.safetensors", predictions)
    if files is not None:
        from lora.adapters.files import write_folder

        write_folder(adapter.parent, files)
    write_record(runtime.results, record)
    return record


def outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"{record.error} (runtime.retry_failed=true trains it again)"
    best, last = (shown(record.selected[rule]["value"]) for rule in ("best", "last"))
    return f"{record.selected['metric']} best {best}, last {last}"


def say(line: str, stream: TextIO) -> None:
    """Once for all processes of a cell."""
    if is_main_process():
        print(line, file=stream)


def leave_group() -> None:
    """Tell the other processes of a cell that this one ends; without it, torch warns of a leak."""
    if processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def main() -> None:
    """Exit codes: 0 done, 1 cells failed or are missing, 2 a mistake in what was asked for."""
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach the handlers below instead of Hydra's printer
    ended: list[RunRecord | UserError] = []  # of a single cell; Hydra would print its error in its own way

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def cell(config: DictConfig) -> None:
        del config  # composed once more from its overrides, with the run that it starts from
        single = HydraConfig.get().mode == RunMode.RUN
        try:
            ended.append(run_cell(compose_run(HydraConfig.get().overrides.task), mistakes_fail=not single))
        except UserError as error:
            ended.append(error)

    try:
        cell()
        for end in ended:
            if isinstance(end, UserError):
                raise end
            say(f"{end.run_id}: {end.status}, {outcome(end)}", sys.stdout)
        sys.exit(any(end.status == "failed" for end in ended))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        say(f"error: {error if isinstance(error, UserError) else explain(error)}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted: what is finished is kept, and the same command goes on from there", sys.stderr)
        sys.exit(130)
    except UnfinishedError as error:
        say(f"unfinished:\n{error}", sys.stderr)
        sys.exit(1)
    finally:
        leave_group()


if __name__ == "__main__":
    main()
