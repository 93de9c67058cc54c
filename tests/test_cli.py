"""The commands, as a user runs them: real processes, exit codes, what is left behind."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import equal_science
from test_sweeps import quiet

from lora import cli
from lora.cli import COMMANDS
from lora.data.tasks import TASKS
from lora.methods import METHODS
from lora.records.record import load_records

ROOT = Path(__file__).resolve().parents[1]
ONE = "launcher.workers=1"  # each worker takes seconds to load its libraries


def command(module: str, *arguments: str, **extra) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", module, *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **extra)


def sweep_arguments(tiny_overrides, *more: str) -> list[str]:
    kept = [o for o in tiny_overrides if not o.startswith("task=")]
    return ["-m", *kept, "method=full,lora", "task=cola,stsb", "seed=1,2", *more]


def test_one_cell(tiny_overrides, tmp_path):
    done = command("lora", *tiny_overrides)
    assert done.returncode == 0, done.stderr
    (record,) = load_records(tmp_path / "results")[0]
    assert f"{record.run_id}: ok, matthews best" in done.stdout
    assert (tmp_path / "results" / "predictions" / f"{record.run_id}.safetensors").exists()
    assert not list((tmp_path / "outputs" / "running").iterdir())
    before = (tmp_path / "results" / "runs" / f"{record.run_id}.json").stat().st_mtime_ns
    again = command("lora", *tiny_overrides)
    assert again.returncode == 0
    assert (tmp_path / "results" / "runs" / f"{record.run_id}.json").stat().st_mtime_ns == before


def test_a_sweep_records_what_failed_skips_what_is_done_and_retries_when_asked(tiny_overrides, tmp_path):
    """Two workers; a learning rate that no cell survives beside one that all do."""
    kept = [o for o in tiny_overrides if not o.startswith(("task=", "train.lr="))]
    cells = [*kept, "method=full,lora", "task=cola,stsb", "train.clip_norm=1e30"]
    expected = quiet([*cells, "train.lr=1e-3", f"runtime.results={tmp_path}/quiet"])
    arguments = ["-m", *cells, "train.lr=1e-3,1e30"]
    done = command("lora", *arguments)
    assert done.returncode == 1
    assert "8 of 8 cells to run" in done.stdout and "Traceback" not in done.stderr
    records, problems = load_records(tmp_path / "results")
    assert not problems
    failed = [record for record in records if record.status == "failed"]
    assert len(failed) == 4
    for record in failed:
        assert "not finite at step" in record.error
        assert f"failed: {record.run_id}: {record.error}" in done.stderr

    def at_one_place(record):
        return {**record.config, "runtime": None}

    good = [record for record in records if record.status == "ok"]
    for one, other in zip(expected, good, strict=True):
        assert equal_science(one, other)
        assert at_one_place(one) == at_one_place(other)
    again = command("lora", *arguments)
    assert again.returncode == 1
    assert "nothing to train, all 8 runs are in" in again.stdout and "4 of them failed" in again.stdout
    retried = command("lora", *arguments, "runtime.retry_failed=true", ONE)
    assert retried.returncode == 1
    assert "4 of 8 cells to run" in retried.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=lorra"], "method must be one of .*full.*lora.*, got 'lorra'"),
        (["method=null"], "method must be one of .*full.*lora.*, got null"),
        (["method=[full,lora]"], r"method must be one of .*full.*lora.*, got \[full,lora\]"),
        (["method.targets=[q,w]"], "target 'w' is not in BertForSequenceClassification.*q, k, v, o"),
        (["method.alpha=-1", "train.batch=0"], "method.alpha must be > 0.*\n.*train.batch must be >= 1"),
        (["data.path=null"], "GLUE_DIR"),
        (["model.path=/no/such/model"], "no such folder"),
        (["nonsense"], "nonsense"),
        (["-m", "--cfg", "job"], "Only one of .*--multirun, --cfg"),
    ],
)
def test_a_users_mistake_is_one_message_exit_2_and_nothing_written(tiny_overrides, tmp_path, overrides, message):
    done = command("lora", *tiny_overrides, *overrides)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert done.stderr.startswith("error: ")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_sweep_of_invalid_cells_lists_them_all_and_starts_none(tiny_overrides, tmp_path):
    done = command("lora", *sweep_arguments(tiny_overrides, "train.epochs=0,1"))
    assert done.returncode == 2
    assert "8 cells are invalid" in done.stderr
    assert done.stderr.count("train.epochs must be >= 1, got 0") == 8
    assert not (tmp_path / "results").exists()


def test_other_rows_under_the_same_name_are_refused(tiny_overrides, tmp_path, glue_dir):
    assert (
        command("lora", *sweep_arguments(tiny_overrides, "method=bitfit", "task=cola", "seed=1,2", ONE)).returncode == 0
    )
    other = shutil.copytree(glue_dir, tmp_path / "glue")
    lines = (other / "CoLA" / "train.tsv").read_text().splitlines()
    (other / "CoLA" / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
    done = command(
        "lora", *sweep_arguments(tiny_overrides, "method=bitfit", "task=cola", "seed=1,3", f"data.path={other}")
    )
    assert done.returncode == 2
    assert "rows of cola are not those that" in done.stderr


def test_the_report_of_a_profile_without_records_names_what_is_missing():
    done = command("lora", "report", "paper_that_is_not", "task=cola")
    assert done.returncode == 2
    assert "profile 'paper_that_is_not' does not exist; here are:" in done.stderr


def test_the_first_screen_names_every_command_task_and_method():
    done = command("lora", "--help")
    assert done.returncode == 0 and not done.stderr
    for word in (*COMMANDS, *TASKS, *METHODS, "python -m lora -m"):
        assert word in done.stdout, word


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help_and_refuses_an_unknown_argument(name, capsys):
    for arguments, code in ((["--help"], 0), (["--no-such-argument"], 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main([*name.split(), *arguments])
        assert ended.value.code == code
    assert f"usage: python -m lora {name}" in capsys.readouterr().out


def test_an_unknown_command_is_one_message(capsys):
    assert cli.main(["statsu", "mini"]) == 2
    assert "'statsu mini' is not a command; use one of status" in capsys.readouterr().err
    assert cli.main(["analyse"]) == 2
    assert "use one of analyse intervals, analyse subspaces, analyse swaps" in capsys.readouterr().err
