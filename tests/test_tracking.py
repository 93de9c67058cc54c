"""W&B's copy of a run, offline, read back with W&B's own command and compared with the record."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from comparing import equal_science
from test_sweeps import wait_for

from lora import cli
from lora.files import ROOT
from lora.sweep import tracking, worker
from lora.sweep.worker import ensure_record
from lora.training import signals
from lora.training.signals import InterruptedRunError

FAST = ("method=bitfit", "data.train_rows=8")  # one step per epoch: 400 epochs are 100 kB of messages


@pytest.fixture
def offline(tiny_config, monkeypatch):
    """A function from overrides to the configuration of a copied run. Writer processes end with the test."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(tracking, "senders", {})
    yield lambda *overrides: tiny_config("runtime.tracking=offline", "runtime.group=glue_table2", *overrides)
    for sender in tracking.senders.values():
        sender.close()


def copies(config):
    """The folders of W&B's copies of a run, oldest first, once the writer processes have ended."""
    for sender in tracking.senders.values():
        sender.close()
    return sorted((ROOT / config.runtime.outputs / "wandb").glob(f"offline-run-*-{config.run_id}"))


def inspected(folder, *options):
    (file,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(folder):
    return json.loads(inspected(folder, "--summary"))


def as_kept(config):
    """The configuration as W&B keeps it: JSON, without empty mappings."""
    kept = {key: as_kept(value) if isinstance(value, dict) else value for key, value in config.items()}
    return json.loads(json.dumps({key: value for key, value in kept.items() if value != {}}))


def test_copies_hold_what_the_records_hold(offline):
    """Two runs through one writer process: names, group, configuration, epochs, selection and cost."""
    configs = [offline("method=lora", f"seed={seed}") for seed in (1, 2)]
    records = [ensure_record(config, mistakes_fail=False) for config in configs]
    (sender,) = tracking.senders.values()
    assert sender.process.poll() is None
    for config, record in zip(configs, records, strict=True):
        (folder,) = copies(config)
        copy = summary(folder)
        assert (copy["run_id"], copy["name"]) == (record.run_id, record.run_id)
        assert copy["config"] == as_kept(record.config)
        found = copy["summary"]
        assert (found["status"], found["seconds"], found["params"]) == ("ok", record.seconds, record.params)
        chosen = {rule: record.selected[rule]["value"] for rule in ("best", "last")}
        assert {rule: found[rule] for rule in chosen} == chosen
        assert found["best_epoch"] == record.selected["best"]["epoch"]
        assert {k.removeprefix("cost/"): v for k, v in found.items() if k.startswith("cost/")} == record.cost
        text = inspected(folder)
        assert "glue_table2" in text
        for epoch in record.epochs:
            assert str(epoch["train_loss"]) in text, "every epoch is there"


def test_an_interrupted_run_goes_on_under_its_id_and_every_copy_is_whole(offline, listening):
    config = offline("train.epochs=3", "runtime.checkpoint_minutes=null")
    steps = []
    real = worker.Note.__call__

    def note(self, progress):
        real(self, progress)
        steps.append(progress.step)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Note, "__call__", note)
        with pytest.raises(InterruptedRunError):
            ensure_record(config, mistakes_fail=False)
        signals.noted.clear()
        (sender,) = tracking.senders.values()
        runs = ROOT / config.runtime.outputs / "wandb"
        wait_for(lambda: list(runs.glob("offline-run-*/*.wandb")), sender.process)
        time.sleep(1.1)  # W&B names a run's folder by the second
        record = ensure_record(config, mistakes_fail=False)
    stopped, whole = map(summary, copies(config))
    assert stopped["run_id"] == whole["run_id"] == config.run_id
    assert (stopped["summary"]["status"], whole["summary"]["status"]) == ("interrupted", "ok")
    assert stopped["summary"]["epoch"] == 1
    for epoch in record.epochs:
        assert str(epoch["train_loss"]) in inspected(copies(config)[1])


def test_a_copy_survives_the_kill_of_its_worker(tiny_overrides, tmp_path):
    """The writer process notices the end of its pipe."""
    overrides = [*tiny_overrides, "train.epochs=2000", "runtime.tracking=offline"]
    process = subprocess.Popen([sys.executable, "-m", "lora", *overrides], cwd=ROOT)
    runs = tmp_path / "outputs" / "wandb"
    wait_for(lambda: list(runs.glob("offline-run-*/*.wandb")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = runs.glob("offline-run-*")
    deadline = time.monotonic() + 120
    while summary(folder)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert summary(folder)["summary"]["status"] == "interrupted"


@pytest.mark.parametrize("broken", ["no process", "a process that dies", "a process that does not read"])
def test_no_failure_reaches_the_run(offline, tiny_config, monkeypatch, tmp_path, broken):
    command = {
        "no process": ["/no/such/program"],
        "a process that dies": [sys.executable, "-c", "raise SystemExit(3)"],
        "a process that does not read": [sys.executable, "-c", "import time; time.sleep(1000)"],
    }[broken]
    real, started = subprocess.Popen, []

    def popen(arguments, **options):
        started.append(real(command if "lora.sweep.wandb_writer" in arguments else arguments, **options))
        return started[-1]

    monkeypatch.setattr(tracking.subprocess, "Popen", popen)
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.1)
    epochs = 400 if broken == "a process that does not read" else 20  # 400 are more than a pipe holds
    long = (f"train.epochs={epochs}", *FAST)
    record = ensure_record(offline(*long), mistakes_fail=False)
    for process in started:
        process.kill()
        process.wait()
    assert record.status == "ok"
    quiet = ensure_record(tiny_config(*long, f"runtime.results={tmp_path}/quiet"), mistakes_fail=False)
    assert equal_science(record, quiet)


def test_where_copies_go_is_what_wandb_itself_would_do(monkeypatch, tmp_path):
    """Against W&B's own account of its settings: with a key, without one, and when W&B cannot be asked."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    folder = f"the folder {tmp_path}/wandb, sent nowhere"
    assert tracking.destination("off", str(tmp_path)) is None
    assert tracking.destination("offline", str(tmp_path)) == folder
    assert tracking.destination("auto", str(tmp_path)) == f"{folder} (W&B has no key)"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    said = tracking.destination("auto", str(tmp_path))
    assert said == "https://wandb.example.com, project lora-glue of the key's owner"
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_PROJECT", "glue")
    assert tracking.destination("auto", str(tmp_path)) == "https://wandb.example.com, project team/glue"
    assert tracking.destination("offline", str(tmp_path)) == folder
    monkeypatch.setattr(tracking.sys, "executable", "/no/such/program")
    assert (
        tracking.destination("auto", str(tmp_path)) == f"W&B's server if it has a key, else {folder} (W&B did not say)"
    )


def test_copies_are_announced_before_a_run_and_before_a_sweep(tiny_overrides, tmp_path):
    place = (
        f"  copies:  for W&B, to the folder {tmp_path}/outputs/wandb, sent nowhere (none with runtime.tracking=off)\n"
    )
    asked = [*tiny_overrides, "train.epochs=1", "runtime.tracking=offline"]
    one = subprocess.run([sys.executable, "-m", "lora", *asked], cwd=ROOT, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    assert "  kernels: stock" in one.stdout and place in one.stdout
    assert one.stdout.index(place) < one.stdout.index(": ok, ")
    sweep = [sys.executable, "-m", "lora", "-m", *asked[1:], "profile=small", "seed=1,2", "launcher.workers=1"]
    more = subprocess.run(sweep, cwd=ROOT, capture_output=True, text=True)
    assert more.returncode == 0, more.stderr
    assert "  kernels: stock" in more.stdout and place in more.stdout
    quiet = subprocess.run(
        [sys.executable, "-m", "lora", *tiny_overrides, "train.epochs=1", "seed=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert quiet.returncode == 0 and "copies:" not in quiet.stdout


SLOW_READER = """
import json, sys, time
time.sleep(1)  # the pipe is full by then
for line in sys.stdin:
    print(json.loads(line)["number"], flush=True)
"""


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="the size of a pipe can be set on Linux alone")
def test_lines_longer_than_a_pipe_takes_at_once_arrive_whole_or_not_at_all(monkeypatch, tmp_path):
    real = subprocess.Popen
    monkeypatch.setattr(
        tracking.subprocess, "Popen", lambda arguments, **options: real([sys.executable, "-c", SLOW_READER], **options)
    )
    sender = tracking.Sender("offline", str(tmp_path))
    fcntl.fcntl(sender.process.stdin, fcntl.F_SETPIPE_SZ, 8192)
    log, text, number = tmp_path / "wandb.log", "x" * 6000, 0
    until = time.monotonic() + 120
    while log.read_text().count("\n") < 5:  # more lines than the pipe holds
        sender.send({"number": number, "text": text})
        number += 1
        time.sleep(0.01)
        assert sender.process.poll() is None and time.monotonic() < until, log.read_text()
    sender.close()
    assert sender.process.returncode == 0, log.read_text()
    arrived = [int(line) for line in log.read_text().splitlines()]
    assert arrived[0] == 0 and arrived == sorted(set(arrived)), "in order, each once"
    assert len(arrived) < number, "those for which the pipe had no room are left out"


def test_a_message_of_any_length_is_there_when_the_process_ends(tmp_path):
    """The list of a sweep's files is longer than a pipe holds."""
    sender = tracking.Sender("offline", str(tmp_path))
    (tmp_path / "tables").mkdir()
    files = []
    for number in range(700):
        files.append(str(tmp_path / "tables" / f"{number:04d}-{'n' * 150}.md"))
        (tmp_path / "tables" / files[-1]).write_text(f"{number}")
    message = {"artifact": "small", "root": str(tmp_path), "files": files}
    assert len(json.dumps(message)) > 2 * 65536
    sender.send(message)
    sender.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    text = inspected(folder)
    assert "results-small" in text and "0000-n" in text and "0699-n" in text


def test_a_torn_line_does_not_stop_the_process_beside(tiny_config, tmp_path):
    """A worker that is killed while it writes leaves a torn line. Torn lines are between whole ones and at the end."""
    config = tiny_config()
    messages = [{"begin": config.run_id, "group": None, "config": config.for_record()}]
    messages += [{"epoch": {"epoch": 1, "step": 5, "train_loss": 0.625, "metrics": {}}}]
    messages += [{"end": "ok", "error": None, "seconds": 1.5, "params": None, "selected": None, "cost": None}]
    begin, epoch, end = (f"{json.dumps(message)}\n" for message in messages)
    text = "".join((begin, epoch[:20], "\n", epoch, "7\n", end, begin[:50]))
    command = [sys.executable, "-m", "lora.sweep.wandb_writer", "offline", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is skipped") == 3
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    found = summary(folder)["summary"]
    assert (found["status"], found["train_loss"], found["seconds"]) == ("ok", 0.625, 1.5)


def test_off_never_loads_wandb(tiny_overrides, tmp_path):
    code = (
        "import sys; from lora.sweep.worker import run_job; print(run_job(sys.argv[1:])); "
        "sys.exit('wandb' in sys.modules or bool(__import__('lora.sweep.tracking').sweep.tracking.senders))"
    )
    command = [sys.executable, "-c", code, *tiny_overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'ok'" in done.stdout and not (tmp_path / "outputs" / "wandb").exists()


def test_an_upload_names_its_destination_before_it_sends(tmp_path, monkeypatch, capsys):
    """Also where the sweep had nothing to train, and so announced no copies."""
    said = []

    class Sender:
        def __init__(self, mode, outputs):
            said.append(capsys.readouterr().out)

        def send(self, message):
            pass

        def close(self):
            pass

    monkeypatch.setattr(tracking, "Sender", Sender)
    monkeypatch.setattr(tracking, "destination", lambda mode, outputs: f"a server ({mode})")
    assert cli.main(["upload", "small", f"runtime.results={tmp_path}", f"runtime.outputs={tmp_path}"]) == 0
    assert said == [
        "copies: tables and figures of small (0 in all) for W&B, to a server (auto) (none with runtime.tracking=off)\n"
    ]


def test_the_tables_of_a_sweep_are_an_artifact(tmp_path):
    (tmp_path / "results" / "tables").mkdir(parents=True)
    (tmp_path / "results" / "tables" / "table2.md").write_text("| a table |")
    places = [f"runtime.results={tmp_path}/results", f"runtime.outputs={tmp_path}/outputs"]
    command = [sys.executable, "-m", "lora", "upload", "small", *places]
    quiet = subprocess.run([*command, "runtime.tracking=off"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not (tmp_path / "outputs").exists() and not quiet.stdout
    sent = subprocess.run([*command, "runtime.tracking=offline"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert sent.stdout == (
        f"copies: tables and figures of small (1 in all) for W&B, to the folder {tmp_path}/outputs/wandb, sent nowhere "
        f"(none with runtime.tracking=off)\n"
    )
    (folder,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    text = inspected(folder)
    assert "results-small" in text and "table2.md" in text
