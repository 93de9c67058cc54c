"""Training the cells that a launcher hands to a worker: one record each, whatever happens."""

import contextlib
import json
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.files import discard, write_atomically
from lora.records.record import RunRecord, adapter_path, checkpoint_path, read_record, record_path, write_record
from lora.sweep.announce import means
from lora.sweep.locks import Heartbeat, HeldError, held, lock_path
from lora.sweep.progress import Note
from lora.sweep.stand_in import check_inputs
from lora.sweep.tracking import Tracked, track
from lora.training import signals
from lora.training.processes import check_batch, is_main_process, processes
from lora.training.signals import InterruptedRunError

PACK = "+cells="  # the override that hands several cells to one job


def run_cell(config: RunConfig, mistakes_fail: bool) -> RunRecord:
    """The run's record: the one that is there, or a new one. What goes wrong in training makes a `failed` record.

    Args:
        mistakes_fail: A user's mistake makes a `failed` record too, so that the other cells of a sweep go on.
    Raises: UserError: Otherwise; nothing is then written. HeldError: If another worker trains it.
        InterruptedRunError: If a signal asked for it.
    """
    record = usable_record(config)
    if not mistakes_fail and (record is None or config.data.source != "hub"):  # else a launcher has looked already
        check_inputs([config], [record] if record is not None else [])  # before torch is loaded, which takes seconds
    if record is not None:
        return record
    check_batch(config.train, processes())  # before the lock, which leaves a folder
    if not is_main_process():
        return train(config, mistakes_fail, None)
    if not mistakes_fail:
        print(f"{config.run_id}:\n{means([config])}", flush=True)
    with held(lock_path(config.runtime.outputs, config.run_id)) as heart:
        return usable_record(config) or train(config, mistakes_fail, heart)  # another worker may just have ended


def usable_record(config: RunConfig) -> RunRecord | None:
    """The record that makes training needless: a failed one does, unless it is to be tried again."""
    runtime = config.runtime
    path = record_path(runtime.results, config.run_id)
    if not path.exists():
        return None
    record = read_record(path)
    usable = record.status == "ok" and (
        adapter_path(runtime.outputs, config.run_id).exists() or not runtime.save_adapter
    )
    return record if usable or (record.status == "failed" and not runtime.retry_failed) else None


def train(config: RunConfig, mistakes_fail: bool, heart: Heartbeat | None) -> RunRecord:
    """Train, and write what came of it.

    Args:
        heart: Of the cell's lock; None in a process that only helps another (`lora.training.processes`).
    """
    from lora.training.loop import NonFiniteLossError, run  # loads torch, which a finished cell does not need

    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    runtime = config.runtime
    copy = track(config) if heart is not None else None
    with reporting(config, heart, copy) as report:
        try:
            record, predictions, files = run(config, report)
        except (InterruptedRunError, HeldError):
            if copy is not None:
                copy.end(None)
            raise
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
    if heart is None:
        return record
    refuse_if_lost(config, heart)
    if predictions is not None:
        write_atomically(Path(runtime.results) / "predictions" / f"{config.run_id}.safetensors", predictions)
    if files is not None:
        from lora.adapters.folder import write_folder

        write_folder(adapter_path(runtime.outputs, config.run_id).parent, files)
    write_record(runtime.results, record)
    discard(checkpoint_path(runtime.outputs, config.run_id))
    copy.end(record)
    return record


@contextlib.contextmanager
def reporting(config: RunConfig, heart: Heartbeat | None, copy: Tracked | None) -> Iterator[Any]:
    """What `run` calls after every step: the note of where it is, the look at the lock, the copy of what is new."""
    if heart is None:
        yield lambda progress: None
        return
    with Note(config.runtime.outputs, config.run_id) as note:

        def report(progress: Any) -> None:
            if heart.lost.is_set():
                refuse_if_lost(config, heart)
            note(progress)
            copy.epochs(progress.epochs)

        yield report


def refuse_if_lost(config: RunConfig, heart: Heartbeat) -> None:
    """
    Raises: HeldError: If another worker has taken the cell over, since this one was silent for long.
    """
    if not heart.mine():
        raise HeldError(f"{config.run_id} was taken over by another worker, which saw no heartbeat of this one")


def run_job(overrides: Sequence[str]) -> dict[str, str]:
    """The cells of one job of a launcher, one after another.

    Returns: run_id -> `ok`, `failed`, `held` by another worker, or why there is no record. Nothing is raised, since
        several launchers lose the other cells' outcomes with an exception.
    """
    outcomes = {}
    for cell in unpacked(overrides):
        try:
            config = compose_run(cell)
            run_id = config.run_id
        except UserError as error:  # conf/ was edited under the sweep
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        try:
            if signals.noted:
                raise InterruptedRunError("the sweep was interrupted")
            outcomes[run_id] = run_cell(config, mistakes_fail=True).status
        except HeldError:
            outcomes[run_id] = "held"
        except (UserError, InterruptedRunError) as error:
            outcomes[run_id] = str(error)
            if isinstance(error, UserError):
                print(f"error: {run_id}: {error}", file=sys.stderr, flush=True)
    signals.end_of_job()
    return outcomes


def packed(cells: Sequence[Sequence[str]], per_job: int) -> list[list[str]]:
    """Overrides of cells -> overrides of jobs, of up to `per_job` cells each."""
    if per_job == 1:
        return [list(cell) for cell in cells]
    groups = [cells[start : start + per_job] for start in range(0, len(cells), per_job)]
    return [[*shared(group), PACK + quoted(json.dumps([list(cell) for cell in group]))] for group in groups]


def shared(cells: Sequence[Sequence[str]]) -> list[str]:
    """What a job of these cells is composed with: how it runs, not what."""
    return [override for override in cells[0] if override.startswith(("profile=", "launcher", "runtime."))]


def quoted(text: str) -> str:
    r"""A value in Hydra's single quotes, where `\'` stands for a quote and a backslash before one is doubled."""
    return "'" + re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", text) + "'"


def unpacked(overrides: Sequence[str]) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in overrides:
        if override.startswith(PACK):
            return json.loads(OverridesParser.create().parse_override(override).value())
    return [list(overrides)]
