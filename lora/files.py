"""The project's folders, atomic writes, strict JSON and file hashes."""

import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lora.errors import UserError, first_line, listed

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"  # the user's runs and measurements, which git ignores, except for:
REFERENCE = "reference"  # the folder in it that holds the committed runs and measurements


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` with a complete file, or leave it as it was. Readers never see a partial file.

    Raises: UserError: If it cannot be written; the message names the file and the reason.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_changed(path: Path, content: bytes) -> None:
    """`write_atomically`, unless the file has this content: on a full disk, nothing needs to be written again."""
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that becomes `path` if the block succeeds and is removed if it fails.

    It lies in a folder of its own, with what a writer creates beside it: `discard_leftovers` finds it by its name.

    Raises: UserError: If it cannot be written; the message names the file and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(None, f".{path.name}.", path.parent, ignore_cleanup_errors=True) as folder:
            temporary = Path(folder) / "new"
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was left half-written") from error


def at_home(path: str | Path) -> Path:
    """A path with `~` expanded. Raises: UserError: If its user does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {first_line(error)}") from error


def listing(folder: Path) -> str:
    try:
        return listed(sorted(os.listdir(folder))) or "nothing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        return getattr(error, "strerror", None) or "no such folder"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: UserError: If the file is not a JSON object of finite numbers."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def rounded(value: Any) -> Any:
    """The value with floats at 6 significant digits and NaN as None, so that its JSON is the same on every machine."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file of its own. Raises: UserError: If it cannot be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise UserError(f"cannot write {lock}: {error.strerror}") from error
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def discard_leftovers(path: Path) -> None:
    """Remove what writers that were killed while they wrote `path` have left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        shutil.rmtree(left, ignore_errors=True)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_by_file(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """A function of a file that reads it again only if its inode, size, mtime or ctime, which no tool sets, change."""
    cached = functools.lru_cache(maxsize=64)(lambda path, *state: read(path))

    def call(path: Path) -> T:
        status = path.stat()
        return cached(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    return call


def remove_empty(folder: Path) -> None:
    """Remove a folder and the one around it, as far as they are empty."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def outputs_of(results: str) -> str:
    """`outputs/NAME` for `results/NAME`, else `FOLDER/outputs`: two folders of results never share checkpoints."""
    path = Path(results)
    for folder in (Path(RESULTS.name), RESULTS):
        if path != folder and path.is_relative_to(folder):
            return str(folder.with_name("outputs") / path.relative_to(folder))
    return str(path / "outputs")


def check_writable(folder: str | Path) -> None:
    """Raises: UserError: If the folder, or the nearest one around it that exists, cannot be written."""
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"cannot write to {folder}: {nearest} is not a folder that you may write to")
