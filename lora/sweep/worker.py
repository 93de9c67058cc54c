"""Train runs, one by one or as jobs of a launcher. Every finished or failed run leaves one record."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lora.config.encoder_files import locate, refuse_longer, tokenizer_name, weights_name
from lora.config.plan import add_to_plan, read_plan
from lora.config.run import PlannedRun, RunConfig
from lora.data.facts import class_counts
from lora.data.read import RunRows, read_for_run
from lora.errors import DivergedError, UnfinishedError, UserError, listed
from lora.files import check_writable, discard_leftovers, read_object, write_atomically
from lora.records.record import (
    RunRecord,
    adapter_path,
    checkpoint_path,
    has_adapter,
    load_records,
    note_path,
    predictions_path,
    read_record,
    record_path,
    write_record,
)
from lora.sweep.notes import HeldError, Note, held
from lora.sweep.progress import Display, about, count_of
from lora.training import processes
from lora.training.processes import InterruptedRunError, check_batch, rank, world_size


def ensure_record(run: PlannedRun, mistakes_fail: bool) -> RunRecord:
    """Return the run's record, training the run first if necessary. A failure in training makes a `failed` record.

    Args:
        mistakes_fail: Set in a sweep: a user's mistake makes a `failed` record too, so that the other runs are trained.
            A single run raises the mistake, and shows its progress or where its record comes from.
    Raises: UserError: In a single run, without a record. HeldError: If another worker trains the run.
        InterruptedRunError: If a signal interrupts it. UnfinishedError: If it has a record, and not its adapter.
    """
    config, runtime = run.config, run.config.runtime
    record, rows = usable_record(config), None
    if not mistakes_fail:  # the launcher of a sweep has already checked
        records, _ = load_records(runtime.results)
        rows = verify_inputs([run], records, {config.run_id} if record is None else ())  # before loading torch
    if record is not None:
        if not mistakes_fail and rank() == 0:
            clean_up(runtime.results, runtime.outputs, config.run_id)
        return record
    check_batch(config.train, world_size())  # before the lock, which creates a folder
    if rank() != 0:
        return train(run, mistakes_fail, rows=rows)
    for folder in (runtime.results, runtime.outputs):
        check_writable(folder)
    if not mistakes_fail:
        again = (before := kept_record(config)) is not None and before.status == "ok"
        print("\n".join([f"{config.run_id}:", *about([run], int(again))]), flush=True)
    with held(runtime.outputs, config.run_id) as note:
        record = usable_record(config) or train(run, mistakes_fail, note, rows)  # another may just have ended
    if record.status == "ok" and usable_record(config) is None:
        raise UnfinishedError("its record is written, but not its adapter; the same command trains it again for that")
    return record


def kept_record(config: RunConfig) -> RunRecord | None:
    path = record_path(config.runtime.results, config.run_id)
    return read_record(path) if path.exists() else None


def usable_record(config: RunConfig) -> RunRecord | None:
    """The run's record if the run is done, with its adapter if requested, or failed and is not to be retried."""
    record, runtime = kept_record(config), config.runtime
    if record is None or (record.status == "failed" and runtime.retry_failed):
        return None
    lacks_adapter = record.status == "ok" and runtime.save_adapter and not has_adapter(record, runtime.outputs)
    return None if lacks_adapter else record


def train(run: PlannedRun, mistakes_fail: bool, note: Note | None = None, rows: RunRows | None = None) -> RunRecord:
    """Train, and write the record, predictions and adapter.

    Args:
        note: Only the main process, which has one, writes and shows anything.
        rows: Those of the run, if they are read already.
    """
    from lora.training import loop  # loads torch, which a finished run does not need

    config = run.config
    started = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    watchers: list[Any] = []  # called after every step, and at the end with the record, or None if there is none
    called: list[Callable[[Any], None]] = [note] if note is not None else []
    if note is not None and config.runtime.tracking != "off":
        from lora.sweep.tracking import Tracked

        watchers.append(Tracked(config))
    if note is not None and not mistakes_fail:
        watchers.append(Display(run, note))
        planned = cache(lambda: add_runs(config.runtime.results, [run]))
        called.append(lambda progress: planned())  # at the first step: a mistake in its settings has shown by then
    called, written = [*watchers, *called], None
    try:
        try:
            record, predictions, files = loop.run(
                config, run.task, lambda progress: [call(progress) for call in called], rows
            )
        except InterruptedRunError:
            raise
        except Exception as error:
            if isinstance(error, UserError) and not mistakes_fail:
                raise
            reason = str(error)
            if not isinstance(error, UserError | DivergedError):
                traceback.print_exc()  # a bug: the record's single line is not enough
                reason = f"{type(error).__name__}: {error}"
            seconds = round(time.monotonic() - started, 3)
            record = RunRecord(config.run_id, "failed", reason, started_at, seconds, config.for_record())
            predictions = files = None
        written = record if note is None else write_run(run, record, predictions, files)
        return written
    finally:
        for watcher in watchers:
            watcher.end(written)


def write_run(
    run: PlannedRun, record: RunRecord, predictions: bytes | None, files: dict[str, bytes] | None
) -> RunRecord:
    """Write what a run has made, the record last, or what was trained again for its adapter. Returns: The record.

    Raises: UserError: If a file cannot be written, or the run was trained again for its adapter with another outcome.
    """
    config = run.config
    runtime = run.config.runtime
    before = kept_record(run.config)
    again = before is not None and before.status == "ok"
    if again and record.predictions != before.predictions:
        why = record.error or "its predictions differ from those of its record, as on another machine"
        raise UserError(
            f"{config.run_id} was trained again for its adapter, which is not saved: {why}; the record is kept; add "
            f"runtime.results=FOLDER to train it anew"
        )
    if predictions is not None and not again:
        write_atomically(predictions_path(runtime.results, config.run_id), predictions)
    if files is not None:
        from lora.adapters.folder import write_folder

        try:
            write_folder(adapter_path(runtime.outputs, config.run_id).parent, files)
        except UserError as error:  # a full disk costs the adapter, not the finished run
            print(f"{config.run_id}: continuing without its adapter: {error}", file=sys.stderr, flush=True)
            record, files = replace(record, adapter=None), None
    if again:
        record = replace(before, adapter=record.adapter or before.adapter)
    if files is not None or not again:
        write_record(runtime.results, record)
    clear(runtime.results, runtime.outputs, config.run_id)
    return record


def add_runs(results: str | Path, runs: Sequence[PlannedRun]) -> Mapping[str, PlannedRun]:
    """Add runs to a folder's plan, and say which planned runs they replace. Returns: All runs of the plan."""
    before, planned = read_plan(results).runs, add_to_plan(results, runs).runs
    if replaced := [run_id for run_id, run in before.items() if run.experiments and not planned[run_id].experiments]:
        what = count_of(len(replaced), "planned run")
        print(f"replaced: {what}, by other rates, epochs or lines of conf/ ({replaced[0]}, ...)", flush=True)
    return planned


def clear(results: str | Path, outputs: str | Path, run_id: str) -> None:
    """Remove a finished run's checkpoint, and the half-written files of killed workers. The caller holds its lock."""
    checkpoint = checkpoint_path(outputs, run_id)
    adapter = adapter_path(outputs, run_id).parent
    checkpoint.unlink(missing_ok=True)
    for path in (record_path(results, run_id), predictions_path(results, run_id), adapter, checkpoint):
        discard_leftovers(path)


def clean_up(results: str | Path, outputs: str | Path, run_id: str) -> None:
    """Clear a finished run whose worker was killed after it had written the record.

    A run that another worker holds is left to it, and a folder that cannot be written stays as it is.
    """
    if checkpoint_path(outputs, run_id).exists() or note_path(outputs, run_id).exists():
        with suppress(UserError, OSError), held(outputs, run_id):
            clear(results, outputs, run_id)


@dataclass(frozen=True)
class Job:
    """Runs that a worker trains one after another.

    Args:
        folder: The working directory of the sweep, to which its relative folders refer.
    """

    runs: tuple[PlannedRun, ...]
    folder: str

    @property
    def run_ids(self) -> list[str]:
        return [run.run_id for run in self.runs]


def run_job(job: Job) -> dict[str, str]:
    """Train the runs of a launcher's job, one after another.

    Returns: run_id -> `ok`, `failed`, `held` (by another worker), or why it lacks its record or its adapter.
        Interrupted runs are left out. Nothing is raised, since a launcher may lose the other runs' outcomes then.
    """
    os.chdir(job.folder)
    processes.listen()
    outcomes = {}
    for run in job.runs:
        if processes.noted:
            break
        try:
            outcomes[run.run_id] = ensure_record(run, mistakes_fail=True).status
        except HeldError:
            outcomes[run.run_id] = "held"
        except InterruptedRunError:
            continue
        except (UserError, UnfinishedError) as error:
            outcomes[run.run_id] = str(error)
            print(f"error: {run.run_id}: {error}", file=sys.stderr, flush=True)
    processes.end_of_job()
    return outcomes


def verify_inputs(runs: Sequence[PlannedRun], records: Iterable[RunRecord], todo: Container[str]) -> RunRows | None:
    """Check that the rows and weights found here are those that the records of the same folder were made from, and say
    which of these runs did not score test rows that have labels by now.

    A run has the same name on every machine, wherever its rows and encoder lie. What lies in folders is compared by its
    hash; what lies on the hub, by the revision in the settings.

    Args:
        records: Records of these runs, which may replace training, and of others, which will share a report.
        todo: The run_ids to train, whose rows on the hub are read too.
    Returns: The rows that were read last: those of a single run. None if none were.
    Raises: UserError: If rows or weights cannot be read, or a record was made from different ones.
    """
    last, asked = None, {}  # configurations by task
    rows: dict[tuple[Any, ...], str | None] = {}  # by task, part of the train rows and draw, or by task and split
    weights: dict[str, tuple[str, str]] = {}  # and the tokenizer
    known = {run.run_id for run in runs}
    unscored = []
    for run in sorted(runs, key=lambda run: (run.run_id not in todo, run.config.train.class_weights is None)):
        config, model = run.config, run.config.model
        part = (config.task, config.data.train_rows, config.rows["draw"])
        asked.setdefault(config.task, config)
        if part not in rows and (config.data.source != "hub" or config.run_id in todo):
            last = read_for_run(run.task, config.rows, config.train.selection)
            rows[part], rows[config.task, "dev"] = last[0].fingerprint, last[0].dev_fingerprint
            rows[config.task, "train"] = last[0].train_fingerprint
            rows |= {(config.task, "test"): last[1]["test"].fingerprint} if "test" in last[1] else {}
            if config.train.class_weights:
                class_counts(run.task, last[0].splits["train"]["label"])
        if model.source != "hub":  # the hub's files are checked when they are loaded
            where, _ = locate(model)
            weights[model.name] = weights_name(where, None, model), tokenizer_name(where, None)
            refuse_longer(model.name, read_object(Path(where) / "config.json"), config.data.max_length)
    for record in records:
        task = record.config["task"]
        data = record.config["data"]
        name = record.config["model"]["name"]
        config, made = asked.get(task), record.provenance
        draw = record.config["seed"] if data.get("train_draw") == "seed" else None
        if config is None or made is None:  # of another task; of a failed run
            continue
        on_hub = config.data.source == data["source"] == "hub"
        if record.run_id in known and (task, "test") in rows and made["data"].get("test_fingerprint") is None:
            unscored.append(record.run_id)
        versions = peft_version() if record.run_id in known else None, made.get("peft", {}).get("version")
        model_files, tokenizer_files = weights.get(name, (None, None))
        for what, here, recorded in (
            (f"dev rows of {task}", rows.get((task, "dev")), made["data"].get("dev_fingerprint")),
            (f"train rows of {task}", rows.get((task, "train")), made["data"].get("train_fingerprint")),
            (f"test rows of {task}", rows.get((task, "test")), made["data"].get("test_fingerprint")),
            (f"rows of {task}", rows.get((task, data["train_rows"], draw)), made["data"]["fingerprint"]),
            (f"revision of the rows of {task}", config.data.revision if on_hub else None, data["revision"]),
            (f"weights of {name}", model_files, made["weights"]),
            (f"tokenizer files of {name}", tokenizer_files, made.get("tokenizer")),
            ("PEFT versions", *versions),
        ):
            if None not in (here, recorded) and here != recorded:
                raise UserError(
                    f"the {what} are not those that {record.run_id} was trained on ({here[:20]} here, {recorded[:20]} "
                    f"in its record of {record.started_at[:10]}); for a results folder of its own, add "
                    f"runtime.results=FOLDER"
                )
    if unscored and rank() == 0:
        print(
            f"{count_of(len(unscored), 'finished run')} did not score the test rows, which had no labels then: "
            f"{listed(unscored)}; status --forget --records removes runs, and the next launch trains them again",
            file=sys.stderr,
        )
    return last


def peft_version() -> str | None:
    """The version of PEFT, which decides what its methods compute. None if it is not installed."""
    with suppress(PackageNotFoundError):
        return version("peft")
    return None
