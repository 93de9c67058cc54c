"""A lock has one owner at a time, whatever dies: real processes, real files."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from lora.errors import UserError
from lora.records.machine import start_ticks
from lora.sweep import locks
from lora.sweep.locks import HeldError, acquire, create, held, lock_path, myself, read_owner, release

HOLD = (
    "import sys, time; from pathlib import Path; from lora.sweep.locks import held\n"
    "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(1000)"
)


@pytest.fixture
def path(tmp_path):
    return lock_path(tmp_path, "a.b.c.s1-00000000")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.5)


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(**changes):
    return dataclasses.replace(myself(), **{"host": "another", "table": "another boot", "token": "f" * 16, **changes})


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_it_is_held_by_one_and_released(path):
    with held(path):
        owner, _ = read_owner(path)
        assert (owner.pid, owner.ticks) == (os.getpid(), start_ticks(os.getpid()))
        with pytest.raises(HeldError, match=rf"being trained by process {os.getpid()} of {owner.host}, since 20"):
            acquire(path, myself())
        assert names(path) == [path.name]
    assert names(path) == []


def test_a_live_process_keeps_it_and_a_killed_one_loses_it_at_once(path):
    process = holder(path)
    try:
        with pytest.raises(HeldError, match=f"process {process.pid} "), held(path):
            pass
    finally:
        process.kill()
    while start_ticks(process.pid) is not None:  # it stays a zombie: nobody waits for it before the end
        pass
    with held(path):
        assert read_owner(path)[0].pid == os.getpid()
        assert names(path) == [path.name]
    process.communicate()


def test_what_killed_workers_left_beside_it_goes_with_it(path):
    """A half-made file, a claim on a former owner and a half-made one go. That of another run stays."""
    former, dead = "e" * 16, dataclasses.replace(myself(), ticks=1)
    path.parent.mkdir(parents=True)
    gone = (f".{path.name}.{'a' * 16}.new", f".{path.name}.{former}", f"..{path.name}.{former}.{'b' * 16}.new")
    kept, empty = f".other-{path.name.replace('00', '11')}.{former}", f".{path.name}.{'c' * 16}.new"
    for name in (*gone, kept):
        (path.parent / name).write_text(json.dumps(dataclasses.asdict(dead)))
    (path.parent / empty).touch()
    with held(path):
        assert names(path) == sorted((path.name, *gone, empty, kept))
    assert names(path) == [kept]


def test_a_claim_on_its_living_owner_stays(path):
    """Another machine may hold it for dead, and take the lock over as soon as its claim stands."""
    with held(path) as heart:
        claim = path.with_name(f".{path.name}.{heart.me.token}")
        claim.write_text(json.dumps(dataclasses.asdict(elsewhere())))
    assert names(path) == [claim.name]


@pytest.mark.parametrize("owned", [False, True], ids=["a free lock", "a dead owner's"])
@pytest.mark.parametrize("step", ["write_text", "link"])
def test_a_worker_killed_while_it_takes_a_lock_leaves_nothing_for_long(path, owned, step):
    """Killed with its file half written, or whole but not yet the lock: the next owner's release removes it."""
    if owned:
        assert create(path, dataclasses.replace(myself(), ticks=1, token="f" * 16))
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    killed = {
        "write_text": f"Path.write_text = lambda self, text: (self.touch(), {die})",
        "link": f"os.link = Path.replace = lambda *given: {die}",
    }[step]
    process = subprocess.run(
        [sys.executable, "-c", f"import os, signal; from pathlib import Path\n{killed}\n{HOLD}", str(path)]
    )
    assert process.returncode == -signal.SIGKILL
    assert any(name.endswith(".new") for name in names(path))
    with held(path):
        assert read_owner(path)[0].pid == os.getpid()
    assert names(path) == []


@pytest.mark.parametrize("owned", [False, True], ids=["a free lock", "a dead owner's"])
def test_a_worker_whose_file_is_removed_tries_again(path, owned, monkeypatch):
    """As by a worker that releases the lock at that moment."""
    if owned:
        assert create(path, dataclasses.replace(myself(), ticks=1, token="f" * 16))
    place, name = (type(path), "replace") if owned else (os, "link")
    step, removed = getattr(place, name), []

    def after_removal(whole, target):
        if not removed:
            removed.append(whole.name)
            whole.unlink()
        return step(whole, target)

    monkeypatch.setattr(place, name, after_removal)
    with held(path):
        assert read_owner(path)[0].pid == os.getpid() and removed
    assert names(path) == []


def test_a_pid_that_is_used_again_is_another_process(path):
    assert create(path, dataclasses.replace(myself(), ticks=1, token="f" * 16))
    with held(path):
        assert read_owner(path)[0].ticks == start_ticks(os.getpid())


def test_of_another_machine_the_heartbeat_decides(path, quick):
    """Its clock does not matter: the file's time is a day ahead, then a day behind."""
    for shift in (86400, -86400):
        theirs = elsewhere()
        assert create(path, theirs)
        stop = threading.Event()

        def beat(shift=shift, stop=stop):
            count = 0
            while not stop.wait(0.02):
                count += 1
                os.utime(path, (time.time() + shift + count, time.time() + shift + count))

        thread = threading.Thread(target=beat)
        thread.start()
        with pytest.raises(HeldError, match="of another, since"), held(path):
            pass
        stop.set()
        thread.join()
        with held(path):
            assert read_owner(path)[0].pid == os.getpid()


@contextmanager
def beating(path):
    """Touch the lock's file during the block, as its owner does."""
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.02):
            count += 1
            os.utime(path, (count, count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_job_that_its_queue_restarted_on_another_node_goes_on_at_once(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first = myself()  # sbatch(1): SLURM_RESTART_COUNT is set once the job was restarted
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert create(path, elsewhere(job=first.job, restarts=first.restarts))
    with held(path):  # SILENT_SECONDS is a minute in this test
        assert read_owner(path)[0].host == myself().host


@pytest.mark.parametrize("theirs", [0, 1, 2, None])
def test_a_job_of_several_nodes_does_not_take_its_own_locks(path, quick, monkeypatch, theirs):
    """Same job, another node: of the same start, of a later one, or of a version that wrote no count."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0" if theirs == 0 else "1")
    owner = elsewhere(job="slurm 17", restarts=theirs)
    assert create(path, owner)
    assert locks.lives(owner, myself()) is None
    with beating(path), pytest.raises(HeldError, match="of another, since"), held(path):
        pass
    assert read_owner(path)[0] == owner
    with held(path):  # its heartbeat has stopped
        assert read_owner(path)[0].restarts == myself().restarts


def test_outside_of_a_job_there_is_no_count(monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (myself().job, myself().restarts) == (None, None)


def test_a_lock_of_an_earlier_version_is_read(path):
    fields = dataclasses.asdict(myself())
    del fields["restarts"]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(fields))
    assert dataclasses.asdict(read_owner(path)[0]) == {**fields, "restarts": None}
    with pytest.raises(HeldError), held(path):
        pass


def test_a_file_system_that_reports_one_link_for_every_file(path, monkeypatch):
    """Some FUSE and cloud file systems do so. The kernel's answer is replaced, since none can be mounted in a test."""
    real = os.stat

    def one_link(*arguments, **options):
        fields = list(real(*arguments, **options))
        fields[stat.ST_NLINK] = 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "stat", one_link)
    with held(path):
        assert path.stat().st_nlink == 1
        assert read_owner(path)[0].pid == os.getpid()
        with pytest.raises(HeldError):
            acquire(path, myself())
    assert names(path) == []


def test_whoever_was_taken_for_dead_notices(path, quick):
    with held(path) as heart:
        with locks.signed(path, elsewhere()) as whole:
            whole.replace(path)
        assert heart.lost.wait(30)
        assert not heart.mine()
    assert read_owner(path)[0].token == "f" * 16, "another's lock is not released"


def test_of_many_that_find_a_dead_owner_one_gets_it(path):
    """Threads stand for processes: each has its own owner, and the previous owner is dead."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for _ in range(20):
        assert create(path, dataclasses.replace(myself(), pid=int(gone.stdout), ticks=1, token="e" * 16))
        owners, won = [myself() for _ in range(8)], []
        start = threading.Barrier(len(owners))

        def take(me, start=start, won=won):
            start.wait()
            try:
                acquire(path, me)
                won.append(me)
            except HeldError:
                pass

        threads = [threading.Thread(target=take, args=(me,)) for me in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = won
        assert read_owner(path)[0].token == winner.token
        assert names(path) == [path.name]
        release(path, winner)


@pytest.mark.parametrize("content", ["", "[]", '{"host": "x"}', "not json"])
def test_a_foreign_file_in_its_place_is_named_and_left(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match="is not a lock of this program"), held(path):
        pass
    assert path.read_text() == content


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "locks").write_text("")
    with pytest.raises(UserError, match="cannot write the lock"), held(lock_path(tmp_path, "x")):
        pass
