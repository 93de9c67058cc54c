"""Folders of this project, and files that are written whole or not at all."""

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lora.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"  # a user's own runs and measurements, which git ignores, but for:
REFERENCE = "reference"  # the folder there whose runs and measurements are committed


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a complete file, or leave it as it was: a reader never sees a part.

    Raises: UserError: With the file and the reason, if it cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when the block has ended well; otherwise nothing of it is left.

    Raises: UserError: With the file and the reason, if it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; nothing was left half-written") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file, and what writers that were killed in the middle left of it."""
    path.unlink(missing_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        left.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Make a file there and remove it. Its name is unique: several sweeps may start at once.

    Raises: UserError: If no file can be written there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable.", dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
