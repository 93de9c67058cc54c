"""A clone of the repository as a user works in it: GLUE through `make`, a reference that grows, and git's view of both.

Each test has a clone of its own, with this environment and with tiny encoders and texts.
"""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from commands import lora
from makefile import make, script

from lora.data import embedded
from lora.files import ROOT
from lora.records.record import load_records

pytestmark = pytest.mark.alone

SELECTION = ("experiment=glue_table2", "task=cola", "method=lora")
FAST = (
    *("train.epochs=1", "train.batch=8", "train.kernels=stock", "data.max_length=32"),
    *("launcher.workers=1", "runtime.tracking=off"),
)


def git(folder: Path, *arguments: str, **extra) -> bytes:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, **extra).stdout


def changed(folder: Path) -> list[str]:
    """The files that git would commit, each after its state."""
    return git(folder, "status", "--porcelain", "--untracked-files=all").decode().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone after setup. What is changed in the working tree, but not what git does not know, is committed in it."""
    folder = tmp_path / "clone"
    git(ROOT, "clone", "--quiet", "--local", str(ROOT), str(folder))
    if changes := git(ROOT, "diff", "--binary", "HEAD"):
        git(folder, "apply", "--index", input=changes)
        somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
        git(folder, *somebody, "commit", "--quiet", "--no-verify", "--message=Change files")
    script(folder / ".venv/bin/python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv/ready").touch()
    assert changed(folder) == []
    return folder


def test_glue_trains_an_encoder_that_shares_a_table_with_another_and_git_sees_none_of_it(
    clone: Path, glue_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    other = tiny.folder(tmp_path / "other", "roberta")
    earlier = ("profile=small", "model=local", f"model.path={model_dir}", f"data.path={glue_dir}", *SELECTION[1:])
    assert lora(*earlier, *FAST, "seed=1", f"runtime.results={clone}/results/small").returncode == 0

    def reproduce(glue: Path) -> subprocess.CompletedProcess:
        folders = (f"GLUE_DIR={glue}", f"MODEL_DIR={other}")
        overrides = " ".join((*SELECTION, "seed=1", *FAST))
        own = {"LORA_EMBEDDED_DIR": str(embedded.folder()), "LC_ALL": "C"}
        done = make(clone, "reproduce-glue", "PROFILE=small", *folders, f"ARGS={overrides}", timeout=300, **own)
        assert changed(clone) == []
        return done

    both = reproduce(glue_dir)
    assert both.returncode == 0 and "1 to train" in both.stdout, both.stderr
    records, problems = load_records(clone / "results/small")
    names = [record.config["model"]["name"] for record in records]
    assert not problems and [record.status for record in records] == ["ok", "ok"]
    assert [name.rpartition("-")[0] for name in names] == [model_dir.name, "other"]
    rows = re.findall(r"^\| (.*LoRA \(qv, r8\)) \| 2k \| 1k \| 1 \| -?\d+\.\d", both.stdout, re.MULTILINE)
    assert rows == ["LoRA (qv, r8)"], "the sweep's own; the page has both"
    assert "page: results/small/report.html" in both.stdout
    assert all(name in (clone / "results/small/report.html").read_text() for name in names)
    with (clone / "results/small/tables/table2_part.csv").open() as file:
        assert [row["Model"] for row in csv.DictReader(file)] == names

    refused = reproduce(Path("/nonexistent"))
    of_make, said = [], []
    for line in refused.stderr.splitlines():
        (of_make if line.startswith("make: ") else said).append(line)
    assert len(said) == 1 and re.match("error: /nonexistent/.* does not exist .*; GLUE_DIR= sets the folder", said[0])
    assert len(of_make) == 1 and of_make[0].endswith("Error 2"), "the exit code of the sweep"
    assert refused.returncode == 2
    assert len(load_records(clone / "results/small")[0]) == 2
