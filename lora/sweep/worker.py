"""Train runs, one by one or as jobs of a launcher. Every finished or failed run leaves one record."""

import contextlib
import dataclasses
import json
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.data.own_task import keep_task
from lora.data.tasks import TASKS
from lora.errors import DivergedError, UserError
from lora.files import write_atomically
from lora.records.record import RunRecord, adapter_path, predictions_path, read_record, record_path, write_record
from lora.sweep.announce import about_own, means, nothing_to_train
from lora.sweep.leftovers import clear, tidy
from lora.sweep.locks import Heartbeat, HeldError, held, lock_path
from lora.sweep.progress import Display, Note
from lora.sweep.stand_in import check_single
from lora.sweep.tracking import Tracked, track
from lora.training import signals
from lora.training.processes import check_batch, is_main_process, processes
from lora.training.signals import InterruptedRunError

PACK = "+cells="  # the override with the runs of a job; fixed, since jobs of earlier versions wait in queues


def ensure_record(config: RunConfig, mistakes_fail: bool, untuned: bool = False) -> RunRecord:
    """Return the run's record, training the run first if necessary. A failure in training makes a `failed` record.

    Args:
        mistakes_fail: Set in a sweep: a user's mistake makes a `failed` record too, so that the other runs are trained.
            A single run raises the mistake, and shows its progress or where its record comes from.
        untuned: As in `about_own`, for the announcement of a single run.
    Raises: UserError: In a single run, without a record. HeldError: If another worker trains the run.
        InterruptedRunError: If a signal interrupts it.
    """
    record = usable_record(config)
    if not mistakes_fail:  # the launcher of a sweep has already checked
        check_single(config, record)  # before loading torch, which takes seconds
    if record is not None:
        if not mistakes_fail and is_main_process():
            tidy(config.runtime.results, config.runtime.outputs, [config.run_id])
            print(nothing_to_train(config.run_id, 1, config.runtime.results, [record]), flush=True)
        return record
    check_batch(config.train, processes())  # before the lock, which creates a folder
    if not is_main_process():
        return train(config, mistakes_fail, None)
    if not mistakes_fail:
        print("\n".join([f"{config.run_id}:", *about_own([config.task], untuned), means([config])]), flush=True)
    with held(lock_path(config.runtime.outputs, config.run_id)) as heart:
        return usable_record(config) or train(config, mistakes_fail, heart)  # another may just have ended


def usable_record(config: RunConfig) -> RunRecord | None:
    """The run's record if the run is done, with its adapter if requested, or failed and is not to be retried."""
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
    """Train, and write the record, predictions and adapter.

    Args:
        heart: Heartbeat of the run's lock; None outside the main process (`lora.training.processes`).
    """
    from lora.training.loop import run  # loads torch, which a finished run does not need

    started, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    runtime = config.runtime
    if heart is not None and TASKS[config.task].own is not None:
        keep_task(TASKS[config.task], runtime.results)  # before its first record: reports cannot read one without it
    copy = track(config) if heart is not None else None
    display = Display(config) if heart is not None and not mistakes_fail else None
    with reporting(config, heart, copy, display) as report:
        try:
            record, predictions, files = run(config, report)
        except (InterruptedRunError, HeldError):
            if copy is not None:
                copy.end(None)
            raise
        except Exception as error:
            if isinstance(error, UserError) and not mistakes_fail:
                raise
            if not isinstance(error, UserError | DivergedError):
                traceback.print_exc()  # a bug: the record's single line is not enough
            reason = str(error) if isinstance(error, UserError | DivergedError) else f"{type(error).__name__}: {error}"
            seconds = round(time.monotonic() - started, 3)
            record = RunRecord(config.run_id, "failed", reason, started_at, seconds, config.for_record())
            predictions = files = None
    if heart is None:
        return record
    refuse_if_lost(config, heart)
    if predictions is not None:
        write_atomically(predictions_path(runtime.results, config.run_id), predictions)
    if files is not None:
        from lora.adapters.folder import write_folder

        try:
            write_folder(adapter_path(runtime.outputs, config.run_id).parent, files)
        except UserError as error:  # a full disk costs the adapter, not the finished run
            print(f"{config.run_id}: continuing without its adapter: {error}", file=sys.stderr, flush=True)
            record = dataclasses.replace(record, adapter=None)
    if display is not None:
        display.end(record)
    write_record(runtime.results, record)
    clear(runtime.results, runtime.outputs, config.run_id)
    copy.end(record)
    return record


@contextlib.contextmanager
def reporting(
    config: RunConfig, heart: Heartbeat | None, copy: Tracked | None, display: Display | None
) -> Iterator[Any]:
    """The function that `run` calls after every step: check the lock, then update the note, copy and display."""
    if heart is None:
        yield lambda progress: None
        return
    with Note(config.runtime.outputs, config.run_id) as note, display or contextlib.nullcontext():

        def report(progress: Any) -> None:
            if heart.lost.is_set():
                refuse_if_lost(config, heart)
            note(progress)
            copy.epochs(progress.epochs)
            if display is not None:
                display(progress)

        yield report


def refuse_if_lost(config: RunConfig, heart: Heartbeat) -> None:
    """
    Raises: HeldError: If another worker has taken the run over, because this one's heartbeat was too old.
    """
    if not heart.mine():
        raise HeldError(f"{config.run_id} was taken over by another worker, which saw no heartbeat from this one")


def run_job(overrides: Sequence[str]) -> dict[str, str]:
    """Train the runs of a launcher's job, one after another.

    Returns: run_id -> `ok`, `failed`, `held` (by another worker), or the reason for a missing record. Mistakes and
        interruptions are not raised, since several launchers then lose the other runs' outcomes.
    """
    outcomes = {}
    for run in unpacked(overrides):
        try:
            config = compose_run(run)
            run_id = config.run_id
        except UserError as error:  # conf/ was edited while the sweep ran
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        try:
            if signals.noted:
                raise InterruptedRunError("the sweep was interrupted")
            outcomes[run_id] = ensure_record(config, mistakes_fail=True).status
        except HeldError:
            outcomes[run_id] = "held"
        except (UserError, InterruptedRunError) as error:
            outcomes[run_id] = str(error)
            if isinstance(error, UserError):
                print(f"error: {run_id}: {error}", file=sys.stderr, flush=True)
    signals.end_of_job()
    return outcomes


def packed(runs: Sequence[Sequence[str]], per_job: int) -> list[list[str]]:
    """The overrides of jobs with up to `per_job` runs each."""
    if per_job == 1:
        return [list(run) for run in runs]
    groups = [runs[start : start + per_job] for start in range(0, len(runs), per_job)]
    return [[*shared(group), PACK + quoted(json.dumps([list(run) for run in group]))] for group in groups]


def shared(runs: Sequence[Sequence[str]]) -> list[str]:
    """The overrides that compose a job of these runs: those that state how it runs."""
    return [override for override in runs[0] if override.startswith(("profile=", "launcher", "runtime."))]


def quoted(text: str) -> str:
    r"""A value in Hydra's single quotes: `\'` stands for a quote, and backslashes before a quote are doubled."""
    return "'" + re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", text) + "'"


def unpacked(overrides: Sequence[str]) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in overrides:
        if override.startswith(PACK):
            return json.loads(OverridesParser.create().parse_override(override).value())
    return [list(overrides)]
