"""The adapters that a sweep left, each known to be the one that its record names."""

import hashlib
from pathlib import Path

from lora.adapters.adapter import Adapter
from lora.adapters.folder import read_adapter
from lora.errors import UserError
from lora.records.record import RunRecord, adapter_path


def recorded_adapter(record: RunRecord, outputs: str | Path) -> Adapter:
    """Raises: UserError: If the adapter is absent, broken, or not the one that its record names."""
    path = adapter_path(outputs, record.run_id)
    adapter = read_adapter(path.parent)
    if hashlib.sha256(path.read_bytes()).hexdigest() != record.adapter:
        raise UserError(f"{path} is not the adapter that the record of {record.run_id} names")
    return adapter
