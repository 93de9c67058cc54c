"""The Makefile's commands and the stages of `make test`, without creating an environment or training."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from makefile import MAKEFILE, make, script

from lora.files import ROOT

TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
RECORDER = """#!/bin/sh
printf '[%s]' "$@" >> calls
echo >> calls
case "$2 $3" in "lora -m") exit "${SWEEP:-0}";; "lora report") exit "${REPORT:-0}";; esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a fresh clone that `make` needs, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/setup"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def ready_clone(clone: Path) -> Path:
    """A clone after setup. Its Python is a script that writes its arguments to the file `calls`."""
    script(clone / ".venv/bin/python", RECORDER)
    (clone / ".venv/ready").touch()
    return clone


def calls(folder: Path) -> list[list[str]]:
    return [line[1:-1].split("][") for line in (folder / "calls").read_text().splitlines()]


def test_make_alone_lists_every_target_and_every_variable_with_an_example(clone: Path) -> None:
    listed = make(clone)
    assert listed.returncode == 0, listed.stderr
    targets, _, variables = listed.stdout.partition("\n\nVariables, each with an example:\n")
    assert [line.split()[0] for line in targets.splitlines()] == TARGETS
    examples = dict(re.findall(r'^([A-Z_]+)=("[^"]+"|\S+) +\S', variables, re.MULTILINE))
    known = re.search(r"^KNOWN := (.*)", MAKEFILE, re.MULTILINE)[1].split()
    assert sorted(examples) == known and len(variables.splitlines()) == len(known)
    assert len(TARGETS) >= 6
    assert make(clone, "help").stdout == listed.stdout
    assert re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[1].split() == [*TARGETS, "FORCE"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 3.9; exit 1", r"missing: Python >= 3\.11 \(tried .*/python: 3\.9\)"),
        ("exit 1", r"missing: Python >= 3\.11 \(tried .*/python: not there\)"),
        (
            'case "$2" in *ensurepip*) exit 1;; esac; echo 3.12',
            r"missing: the modules venv and ensurepip of .*/python, which is 3\.12",
        ),
    ],
    ids=["too old", "not there", "no venv"],
)
def test_setup_says_what_is_missing(text: str, message: str, clone: Path, tmp_path: Path) -> None:
    python = script(tmp_path / "python", f"#!/bin/sh\n{text}\n")
    refused = make(clone, "setup", f"PYTHON={python}")
    assert refused.returncode == 2
    assert re.search(message, refused.stderr), refused.stderr
    assert "sudo apt-get install git make python3 python3-venv\n" in refused.stderr
    assert not (clone / ".venv").exists()


PIP = """#!/bin/sh
case "$2 $3" in
"venv --clear") mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
"pip install") echo "Collecting part-1"; echo "ERROR: no part-2"; exit 1;;
*) echo 3.12;;
esac
"""


def test_setup_keeps_what_pip_says_in_a_file_that_an_error_names(clone: Path, tmp_path: Path) -> None:
    done = make(clone, "setup", f"PYTHON={script(tmp_path / 'python', PIP)}")
    assert done.returncode == 2 and "Collecting" not in done.stdout + done.stderr
    assert done.stderr.startswith("ERROR: no part-2\npip failed: see .venv/pip.log\n")
    assert (clone / ".venv/pip.log").read_text() == "Collecting part-1\nERROR: no part-2\n"


def test_a_finished_setup_only_checks_the_embedded_files_and_ignores_what_the_shell_has_activated(
    ready_clone: Path,
) -> None:
    assert make(ready_clone, "setup").returncode == 0
    assert calls(ready_clone) == [["-m", "lora", "fetch"]]
    script(ready_clone / ".venv/bin/python", '#!/bin/sh\necho "<$PYTHONPATH$VIRTUAL_ENV$PYTHONHOME>"\n')
    shown = make(ready_clone, "setup", PYTHONPATH="/elsewhere", VIRTUAL_ENV="/elsewhere", PYTHONHOME="/elsewhere")
    assert shown.stdout == "<>\n"


def test_reproduce_glue_hands_folders_to_the_sweep_and_the_report(ready_clone: Path) -> None:
    done = make(
        ready_clone,
        "reproduce-glue",
        "PROFILE=small",
        "GLUE_DIR=/my data/glue=1,it's",
        "MODEL_DIR=/a b",
        "RETRY_FAILED=1",
        "ARGS=task=cola,mrpc 'seed=1'",
    )
    assert done.returncode == 0, done.stderr
    folders = ["data.source=tsv", r"data.path='/my data/glue=1,it\'s'", "model=local", "model.path='/a b'"]
    settings = [*folders, "task=cola,mrpc", "seed=1"]  # the user's own overrides last, so that they win
    assert calls(ready_clone)[1:] == [
        ["-m", "lora", "-m", "--brief", "profile=small", *settings, "runtime.retry_failed=true"],
        ["-m", "lora", "report", "--brief", "small", *settings],
    ]


def test_a_task_of_ones_own_may_be_in_a_named_profile(ready_clone: Path) -> None:
    named = make(ready_clone, "reproduce-glue", "PROFILE=mini", TASK="my_task", ARGS="experiment=lora_ranks")
    assert named.returncode == 0
    assert calls(ready_clone)[-2][4:] == ["profile=mini", "task='my_task'", "experiment=lora_ranks"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((f"{name}=x", f"{name} is not a variable of this Makefile") for name in ("MODELDIR", "SEED", "METHOD")),
        *((f"{name}=yes", f"{name} must be 0 or 1, got yes") for name in ("RETRY_FAILED", "REFERENCE")),
        ("GLUE_DIR=/a", "add PROFILE=small"),
        ("GLUE_DIR=/a TASK=b", "GLUE_DIR and TASK exclude each other"),
    ],
)
def test_a_mistyped_variable_is_refused(given: str, message: str, ready_clone: Path) -> None:
    for target in ("reproduce-glue", "status"):
        refused = make(ready_clone, target, *given.split())
        assert refused.returncode == 2 and message in refused.stderr
    assert not (ready_clone / "calls").exists() or calls(ready_clone) == [["-m", "lora", "fetch"]]
    assert make(ready_clone, "status", "PROFILE=mini", "GLUE_DIR=/a", METHOD="of the environment").returncode == 0


def test_status_tune_and_sync_call_their_commands(ready_clone: Path) -> None:
    variables = ("MODEL_DIR=/a b", "TASK=my tasks/it's.yaml", "LAUNCHER=slurm", "ARGS=seed=1 --json")
    assert make(ready_clone, "status", *variables).returncode == 0
    asked = calls(ready_clone)[-1]
    assert asked[:4] == ["-m", "lora", "status", "own"] and asked[-1] == "--json"
    assert r"task='my tasks/it\'s.yaml'" in asked
    assert make(ready_clone, "reproduce-glue", *variables).returncode == 0
    assert calls(ready_clone)[-2] == ["-m", "lora", "-m", "--brief", "profile=own", *asked[4:]], "as the sweep"
    assert calls(ready_clone)[-1] == ["-m", "lora", "report", "--brief", "own", *asked[4:]]
    assert make(ready_clone, "tune", *variables).returncode == 0
    assert calls(ready_clone)[-1] == ["-m", "lora", "tune", "profile=own", *asked[4:]], "as the sweep"
    assert make(ready_clone, "wandb-sync").stdout.startswith("nothing was recorded offline in outputs; ")
    folders = ("outputs/paper", "outputs/small", "else where/outputs")  # of runtime.results='else where'
    runs = [f"{folder}/wandb/offline-run-1-a" for folder in folders]
    for run in runs:
        (ready_clone / run).mkdir(parents=True)
    for given, synced in (("seed=1", runs[:2]), ("seed=1 'runtime.results=else where'", runs)):
        assert make(ready_clone, "wandb-sync", f"ARGS={given}").returncode == 0
        assert calls(ready_clone)[-1] == ["-m", "wandb", "sync", *sorted(synced)]


@pytest.mark.parametrize(
    ("sweep", "report", "reported", "status"), [("0", "0", True, 0), ("1", "1", True, 2), ("2", "0", False, 2)]
)
def test_reproduce_glue_reports_after_failed_runs_but_not_after_a_mistake(
    sweep: str, report: str, reported: bool, status: int, ready_clone: Path
) -> None:
    done = make(ready_clone, "reproduce-glue", SWEEP=sweep, REPORT=report)
    assert done.returncode == status
    assert (["-m", "lora", "report", "--brief", "mini"] in calls(ready_clone)) is reported


def test_tables_rebuilds_each_committed_profile(ready_clone: Path) -> None:
    subprocess.run(["git", "init", "--quiet", ready_clone], check=True)
    assert "no records are committed" in make(ready_clone, "tables").stderr
    for name in ("reference/small/runs/a.json", "reference/mini/runs/b.json", "mini/runs/own.json"):
        script(ready_clone / "results" / name, "{}")
    subprocess.run(["git", "-C", ready_clone, "add", "results"], check=True)
    (ready_clone / "calls").unlink()
    assert make(ready_clone, "tables").returncode == 0
    made = [call[3:] for call in calls(ready_clone) if call[:3] == ["-m", "lora", "report"]]
    assert made == [["reference/mini", "--pages"], ["reference/small", "--pages"]]
    assert calls(ready_clone)[-1] == ["notebooks/execute.py"]
    assert make(ready_clone, "tables", REPORT="1").returncode == 0  # a reference that is still growing
    assert make(ready_clone, "tables", REPORT="2").returncode == 2
