"""Sweeps of real processes that are killed, stopped and started twice: no run is lost, repeated or missing."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from sweeping import assert_complete, finish, frozen, grid, meanwhile, owners, quiet, start, wait_for

from lora.records.record import load_records
from lora.sweep.request import select_runs

pytestmark = pytest.mark.slow


def test_a_storm(tiny_overrides, tmp_path):
    """14 SIGKILLs at random times, of workers, of the process that starts them, of a launcher, alone and with all of
    these. The sweep is launched until it is complete.

    Every other worker is killed only after it has written a checkpoint.
    """
    runs = ("method=bitfit,lora", "task=cola,stsb", "seed=1,2,3", "train.epochs=10")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs))
    assert len(expected) == 12
    folder, source, launches = tmp_path / "storm", random.Random(1), 0
    overrides = grid(tiny_overrides, folder, *runs, "runtime.checkpoint_minutes=0", "launcher.workers=2")
    victims = ["worker"] * 11 + ["server", "launcher", "all"]
    source.shuffle(victims)

    def kill(process):
        """Kill the next victim, once a worker trains."""
        checkpoints = {path.stem for path in (folder / "outputs" / "checkpoints").glob("[!.]*")}
        workers = [pid for run_id, pid in sorted(owners(folder).items()) if run_id in checkpoints or len(victims) % 2]
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # the launcher or the victim has just ended
            children = [one for one in psutil.Process(process.pid).children() if one.status() != psutil.STATUS_ZOMBIE]
            servers = [one.pid for one in children if "forkserver" in " ".join(one.cmdline())]
            found = {"worker": workers, "server": servers}.get(victims[-1], [process.pid])
            if workers and found:
                (os.killpg if victims[-1] == "all" else os.kill)(source.choice(found), signal.SIGKILL)
                victims.pop()

    ended = None
    while ended != 0:
        launches += 1
        process = start(overrides, start_new_session=True)
        while process.poll() is None:
            if victims:
                kill(process)
            time.sleep(0.15 * source.random())
        output, _ = process.communicate()
        ended = process.returncode
        assert ended in (0, 1, -signal.SIGKILL) and launches < 12, output
    assert not victims, (victims, launches)
    records = assert_complete(folder, expected)
    assert sum(record.provenance["resumed"] for record in records) >= 1


def test_two_sweeps_at_once_share_the_work(tiny_overrides, tmp_path):
    """A job has several runs. Both sweeps succeed, and only one of them trains each run.

    A lock may be held by both: a worker that waited for it, or that clears up, finds the record and trains nothing.
    """
    runs = ("method=bitfit", "task=cola", "seed=1,2,3,4", "train.epochs=20")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs))
    folder = tmp_path / "both"
    overrides = grid(tiny_overrides, folder, *runs, "launcher.workers=1", "launcher.runs_per_job=2")
    trained: dict[str, set[int]] = {}  # run_id -> who held its lock while it reported progress
    written: dict[str, set[int]] = {}  # run_id -> times of its record

    def look():
        holding = owners(folder)
        for note in (folder / "outputs" / "running").glob("[!.]*.json"):
            if note.stem in holding:
                trained.setdefault(note.stem, set()).add(holding[note.stem])
        for record in (folder / "results" / "runs").glob("[!.]*.json"):
            written.setdefault(record.stem, set()).add(record.stat().st_mtime_ns)

    process = start(overrides)
    with meanwhile(look):
        wait_for(lambda: trained, process)
        code, own_output = finish(overrides)
        output, _ = process.communicate()
    assert code == process.returncode == 0, own_output + output
    assert "failed:" not in own_output + output
    records = assert_complete(folder, expected)
    assert set(trained) == set(written) == {record.run_id for record in records}
    assert all(len(seen) == 1 for seen in (*trained.values(), *written.values())), (trained, written)


def test_a_stopped_launcher_leaves_checkpoints_says_what_ran_and_the_next_goes_on(tiny_overrides, tmp_path):
    """Stopped by Ctrl-C, or by `kill` if a script started it, so that it ignores SIGINT."""
    overrides = grid(tiny_overrides, tmp_path, "method=bitfit", "task=cola", "seed=1,2", "train.epochs=40")
    checkpoints = tmp_path / "outputs" / "checkpoints"
    lives: dict[str, int] = {}
    for workers, stop in ((1, signal.SIGTERM), (2, signal.SIGINT)):
        background = stop == signal.SIGTERM
        how = signal.SIG_IGN if background else signal.default_int_handler

        def hears(how=how):
            signal.signal(signal.SIGINT, how)

        process = start([*overrides, f"launcher.workers={workers}"], start_new_session=True, preexec_fn=hears)
        training = frozen(tmp_path, process, workers)
        begun = set(training)
        assert len(begun) == workers
        if background:
            os.kill(process.pid, stop)
        else:
            os.killpg(process.pid, stop)  # as a terminal does, to the launcher and its workers
        for worker in training.values():
            os.kill(worker, signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        assert "stopped immediately" not in output
        told = output.split("interrupted; still training")[1]
        stopped = set(re.findall(r"^  (bert-\w{6}\.bitfit\S+)$", told, re.MULTILINE))
        # a terminal's Ctrl-C reaches the workers too: one may have stopped before its launcher lists them
        assert stopped == begun if background else stopped <= begun
        lives |= {run_id: lives.get(run_id, 0) + 1 for run_id in begun}
        assert {path.stem for path in checkpoints.iterdir()} == set(lives)
        assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["checkpoints"], "no locks, no notes"
        assert not load_records(tmp_path / "results")[0]
    code, output = finish([*overrides, "launcher.workers=2"])
    assert code == 0, output
    records, _ = load_records(tmp_path / "results")
    resumed = {record.run_id: record.provenance["resumed"] for record in records}
    assert len(resumed) == 2 and {run_id: n for run_id, n in resumed.items() if n} == lives


def test_a_killed_launcher_takes_its_workers_along_and_the_next_goes_on(tiny_overrides, tmp_path):
    """Three workers, one of them idle. The launcher is killed as by the OOM killer; the workers leave checkpoints."""
    runs = ("method=bitfit", "task=cola", "seed=1,2", "train.epochs=40", "runtime.checkpoint_minutes=null")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs))
    folder = tmp_path / "killed"
    overrides = grid(tiny_overrides, folder, *runs)
    process = start([*overrides, "launcher.workers=3"])
    training = frozen(folder, process, 2)
    left = psutil.Process(process.pid).children(recursive=True)
    assert set(owners(folder).values()) < {child.pid for child in left}
    process.kill()
    for worker in training.values():
        os.kill(worker, signal.SIGCONT)
    _, alive = psutil.wait_procs(left, timeout=10)  # PARENT_SECONDS + LEAVE_SECONDS is 6
    assert not alive, [child.cmdline() for child in alive]
    process.communicate()
    assert not owners(folder) and not load_records(folder / "results")[0]
    assert len(list((folder / "outputs" / "checkpoints").glob("[!.]*"))) == 2
    code, output = finish([*overrides, "launcher.workers=2"])
    assert code == 0, output
    assert {record.provenance["resumed"] for record in assert_complete(folder, expected)} == {1}


def test_a_run_that_kills_its_worker_is_tried_a_bounded_number_of_times(tiny_overrides, tmp_path):
    """The others complete. The message names the run and the reason why it has no record."""
    overrides = grid(tiny_overrides, tmp_path, "method=bitfit", "task=cola", "seed=1,2", "launcher.workers=2")
    (victim, *_) = select_runs("small", [*overrides[1:], "experiment=null"])
    killed = set()

    def kill():
        pid = owners(tmp_path).get(victim.run_id)
        if pid is not None and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)

    with meanwhile(kill):
        code, output = finish(overrides)
    assert code == 1, output
    assert len(killed) == 3
    assert f"missing: {victim.run_id} (its worker was killed)" in output
    assert len(load_records(tmp_path / "results")[0]) == 1


def test_a_sweep_survives_the_process_that_starts_its_workers(tiny_overrides, tmp_path):
    """It is killed while it loads the libraries for the first worker. That is told at once, not when all has ended."""
    process = start(grid(tiny_overrides, tmp_path, "method=bitfit", "task=cola", "seed=1,2", "launcher.workers=1"))
    children = psutil.Process(process.pid).children
    (server,) = wait_for(lambda: [one for one in children() if "forkserver" in " ".join(one.cmdline())], process)
    server.kill()
    output, _ = process.communicate()
    assert process.returncode == 0 and "Traceback" not in output, output
    victim = re.search(r"a worker was killed while it trained (\S+)", output)
    assert victim and output.index(victim[0]) < output.index("[  1/2]")
    assert len(load_records(tmp_path / "results")[0]) == 2


def test_a_sweep_with_folders_elsewhere_writes_nothing_where_it_is_typed(tiny_overrides, tmp_path, monkeypatch):
    """Files replace the usual folders, since root may write to read-only ones."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("outputs", "results"):
        (here / name).write_text("in the way")
    monkeypatch.chdir(here)
    overrides = grid(tiny_overrides, tmp_path / "elsewhere", "task=cola", "method=bitfit", "seed=1")
    code, output = finish(overrides)
    assert code == 0, output
    assert len(load_records(tmp_path / "elsewhere" / "results")[0]) == 1
    assert sorted(path.name for path in here.iterdir()) == ["outputs", "results"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk is mounted by root")
def test_a_full_disk_leaves_no_part_and_the_next_launch_completes(tiny_overrides, tmp_path):
    disk, folder = tmp_path / "disk", tmp_path / "full"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk could be mounted: {mounted.stderr.strip()}")
    try:
        runs = ("seed=1,2", "task=cola", "method=bitfit", "launcher.workers=1")
        overrides = grid(tiny_overrides, folder, *runs, f"runtime.results={disk}/results")
        filler = disk / "filler"
        (disk / "results").mkdir()
        assert finish(overrides)[0] == 0
        for name in ("runs", "predictions"):
            shutil.rmtree(disk / "results" / name)  # the plan stays
        before = {p for p in disk.rglob("*") if p.is_file()}
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"x" * 512 * 1024)  # to the last byte
        code, output = finish(overrides)
        assert code == 1, output
        assert output.count("cannot write") >= 2 and "No space left on device" in output
        assert re.search(r"missing: bert-\w{6}\.bitfit\.cola\.s1", output) and "Traceback" not in output
        assert {p for p in disk.rglob("*") if p.is_file()} == before | {filler}
        filler.unlink()
        assert finish(overrides)[0] == 0
        assert len(load_records(disk / "results")[0]) == 2
        again = [*overrides, "runtime.save_adapter=true", f"runtime.outputs={disk}/outputs"]
        assert finish(again)[0] == 0
        shutil.rmtree(disk / "outputs" / "adapters")
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"x" * 512 * 1024)
        code, output = finish(again)
        assert code == 1 and len(re.findall("^unfinished: bert-.* not its adapter", output, re.MULTILINE)) == 2, output
    finally:
        subprocess.run(["umount", disk], check=True)
