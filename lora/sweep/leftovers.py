"""What killed workers leave of runs that are finished: locks, checkpoints, notes and half-written files."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lora.errors import UserError
from lora.files import discard, discard_leftovers
from lora.records.record import adapter_path, checkpoint_path, note_path, predictions_path, record_path
from lora.sweep.locks import HeldError, held, lock_path

LOCK = re.compile(r"\.*(?P<run_id>.+-[0-9a-f]{8})\.")  # a lock, or with dots a worker's that tries to take it


def clear(results: str | Path, outputs: str | Path, run_id: str) -> None:
    """Remove a finished run's checkpoint and note, and what workers left that were killed while they wrote.

    The caller holds the run's lock.
    """
    for path in (checkpoint_path(outputs, run_id), note_path(outputs, run_id)):
        discard(path)
    for path in (record_path(results, run_id), predictions_path(results, run_id), adapter_path(outputs, run_id).parent):
        discard_leftovers(path)


def tidy(results: str | Path, outputs: str | Path, run_ids: Iterable[str]) -> None:
    """Clear finished runs whose worker was killed between writing the record and releasing the lock.

    No worker takes them again. A run that another worker holds is left to it, and a folder that cannot be written stays
    as it is.
    """
    try:
        names = os.listdir(lock_path(outputs, "").parent)
    except OSError:
        return
    locked = {match["run_id"] for match in map(LOCK.match, names) if match}
    for run_id in sorted(locked & set(run_ids)):
        with suppress(HeldError, UserError, OSError), held(lock_path(outputs, run_id)):
            clear(results, outputs, run_id)
