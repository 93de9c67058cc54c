"""The commands as a user runs them: their exit codes, what they print, and the files that remain."""

import functools
import re
import shlex
import signal
import subprocess
import sys

import pytest
from commands import lora
from comparing import equal_science
from sweeping import quiet, wait_for
from synthetic import populate

from lora import cli
from lora.cli import COMMANDS
from lora.config.compose import compose_run
from lora.data.tasks import TASKS
from lora.files import ROOT
from lora.methods import METHODS
from lora.records.record import load_records
from lora.report.command import print_sweep
from lora.sweep.notes import read_notes

pytestmark = pytest.mark.slow


def process(*arguments: str) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "lora", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_one_run(tiny_overrides, tmp_path):
    done = process(*tiny_overrides)
    assert done.returncode == 0, done.stderr
    (record,) = load_records(tmp_path / "results")[0]
    assert f"{record.run_id}: ok, matthews best" in done.stdout and "  trained in " in done.stdout
    assert f"  record:  {tmp_path}/results/runs/{record.run_id}.json" in done.stdout
    assert "  adapter: - (runtime.save_adapter=true saves it)" in done.stdout
    assert re.findall(r"^epoch (\d) of 2: matthews", done.stderr, re.MULTILINE) == ["1", "2"], "no terminal: lines"
    assert (tmp_path / "results" / "predictions" / f"{record.run_id}.safetensors").exists()
    assert not list((tmp_path / "outputs" / "running").glob("*"))
    before = (tmp_path / "results" / "runs" / f"{record.run_id}.json").stat().st_mtime_ns
    again = lora(*tiny_overrides)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{record.run_id}: ok, matthews best")
    assert f"  already done: trained on {record.started_at[:10]} in " in again.stdout
    assert (tmp_path / "results" / "runs" / f"{record.run_id}.json").stat().st_mtime_ns == before


def test_an_interrupted_run_resumes_and_says_from_where(tiny_overrides, tmp_path):
    """The terminal of the first process is closed once it has reported a step."""
    arguments = [*tiny_overrides, "method=bitfit", "train.epochs=60", "runtime.save_adapter=true"]
    call = [sys.executable, "-m", "lora", *arguments]
    hears = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731  also under nohup
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = subprocess.Popen(call, cwd=ROOT, preexec_fn=hears, **streams)
    wait_for(lambda: any(note["step"] > 0 for note in read_notes(tmp_path / "outputs").values()), first)
    first.send_signal(signal.SIGHUP)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 130 and "the same command resumes the rest" in output, output
    second = lora(*arguments)
    assert second.returncode == 0, second.stderr
    assert re.search(r"resumes in epoch \d+ of \d+: step \d+ of \d+", second.stderr), second.stderr
    (record,) = load_records(tmp_path / "results")[0]
    assert record.provenance["resumed"] == 1
    assert f"adapter: {tmp_path}/outputs/adapters/{record.run_id}" in second.stdout


def test_a_sweep_ends_with_its_table_and_the_next_command(tmp_path, capsys):
    """The table shows the requested runs only, although the folder has records of other experiments."""
    for experiment, tasks in (("glue_table2", "cola,rte"), ("lora_ranks", "cola")):
        populate(tmp_path / "small", "small", [f"experiment={experiment}", f"task={tasks}", "seed=1"])
    capsys.readouterr()
    arguments = ["experiment=glue_table2", "task=cola", "seed=1", f"runtime.results={tmp_path}/small"]
    print_sweep("small", ["profile=small", *arguments])
    shown = capsys.readouterr().out
    assert "| CoLA" in shown and "RTE" not in shown and "rank" not in shown.partition("next: ")[0].lower()
    command = shlex.join([sys.executable, "-m", "lora", "report", "small", *arguments])
    print_sweep("small", arguments, brief=True)  # as make does, which then runs that command
    assert shown == f"{capsys.readouterr().out}next: {command}  # figures and report.html\n"


def test_a_sweep_records_what_failed_skips_what_is_done_and_retries_when_asked(tiny_overrides, tmp_path):
    """Two workers and two learning rates: all runs succeed at one and fail at the other."""
    kept = [o for o in tiny_overrides if not o.startswith(("task=", "train.lr="))]
    runs = [*kept, "method=full,lora", "task=cola", "train.clip_norm=1e30"]
    expected = quiet([*runs, "train.lr=1e-3", f"runtime.results={tmp_path}/quiet"])
    arguments = ["-m", "experiment=null", *runs, "train.lr=1e-3,1e30"]
    done = lora(*arguments)
    assert done.returncode == 1
    assert "4 runs: 0 done, 0 failed, 4 to train" in done.stdout and "Traceback" not in done.stderr
    records, problems = load_records(tmp_path / "results")
    assert not problems
    failed = [record for record in records if record.status == "failed"]
    assert len(failed) == 2
    for record in failed:
        assert "not finite at step" in record.error
        assert f"failed: {record.run_id}: {record.error}" in done.stderr

    good = [record for record in records if record.status == "ok"]
    for one, other in zip(expected, good, strict=True):
        assert equal_science(one, other)
        assert one.config | {"runtime": None} == other.config | {"runtime": None}
    again = lora(*arguments)
    assert again.returncode == 1
    assert "nothing to train, all 4 runs are in" in again.stdout and "2 of them failed" in again.stdout
    retried = lora(*arguments, "runtime.retry_failed=true")
    assert retried.returncode == 1
    assert "4 runs: 2 done, 2 failed, 2 to train" in retried.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.targets=[q,w]"], "target 'w' is not in BertForSequenceClassification.*q, k, v, o"),
        (["method.alpha=-1", "train.batch=0"], "method.alpha must be > 0.*\n.*train.batch must be >= 1"),
        (["task=rte", "start=mnli"], "starts from .*mnli.*, which is not trained: .* experiment=null .* trains both"),
    ],
)
def test_a_users_mistake_is_one_message_exit_2_and_nothing_written(tiny_overrides, tmp_path, overrides, message):
    done = lora(*tiny_overrides, *overrides)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert done.stderr.startswith("error: ")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_an_option_may_stand_between_two_overrides(tiny_overrides, tmp_path):
    done = lora(tiny_overrides[0], "-m", *tiny_overrides[1:], "method.rnk=3")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: method.rnk is not a setting") and done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
    shown = lora("seed=3", "--cfg", "job", "method=bitfit")
    assert shown.returncode == 0 and "\nseed: 3\n" in shown.stdout and "method:\n  name: bitfit\n" in shown.stdout
    assert "${" not in shown.stdout and f"  lr: {compose_run(['method=bitfit']).train.lr}\n" in shown.stdout


def test_the_first_screen_names_every_command_task_and_method():
    done = process("--help")
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
    assert "'statsu mini' is not a command; choose from status" in capsys.readouterr().err
    assert cli.main(["memory", "task=mnli"]) == 2
    assert capsys.readouterr().err == "error: memory is now python -m lora parameters --memory task=mnli\n"
    assert cli.main(["predit", "--adapter", "x"]) == 2
    assert capsys.readouterr().err.endswith("choose from predict\n")
    assert cli.main(["analyse"]) == 2
    assert "choose from analyse intervals, analyse rows, analyse subspaces, analyse swaps" in capsys.readouterr().err


def test_ctrl_c_while_a_run_loads_is_answered_at_once(tiny_overrides):
    command = [sys.executable, "-m", "lora", *tiny_overrides]
    ours = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # even if a script ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ours) as run:
        run.stdout.readline()  # its name
        run.send_signal(signal.SIGINT)
        lines = run.communicate(timeout=300)[1].split()
    assert run.returncode == 130 and lines.count("interrupted:") == 2, "when it was heard, and when it ends"


def test_ctrl_c_while_a_command_is_loaded_is_one_message(monkeypatch, capsys):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", stopped)
    assert cli.main(["status", "mini"]) == 130 and capsys.readouterr().err.startswith("interrupted")
