"""Remove what killed workers leave of finished runs: locks, checkpoints, notes and half-written files."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lora.errors import UserError
from lora.files import discard, discard_leftovers
from lora.records.record import adapter_path, checkpoint_path, note_path, predictions_path, record_path
from lora.sweep.locks import HeldError, held, lock_path


def clear(results: str | Path, outputs: str | Path, run_id: str) -> None:
    """Remove a finished run's checkpoint and note, and what workers left that were killed while they wrote.

    The caller holds the run's lock.
    """
    for path in (checkpoint_path(outputs, run_id), note_path(outputs, run_id)):
        discard(path)
    for path in (record_path(results, run_id), predictions_path(results, run_id), adapter_path(outputs, run_id).parent):
        discard_leftovers(path)


def clean_up(results: str | Path, outputs: str | Path, run_ids: Iterable[str]) -> None:
    """Clear finished runs whose worker was killed between writing the record and releasing the lock.

    A run that another worker holds is left to it, and a folder that cannot be written stays as it is.
    """
    for run_id in run_ids:
        if lock_path(outputs, run_id).exists():
            with suppress(HeldError, UserError, OSError), held(lock_path(outputs, run_id)):
                clear(results, outputs, run_id)
