"""A lock has one owner at a time, whatever dies: real processes, real files."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from lora.errors import UserError
from lora.sweep import locks
from lora.sweep.locks import HeldError, held, is_held, lock_path

HOLD = (
    "import sys, time; from pathlib import Path; from lora.sweep.locks import held\n"
    "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(1000)"
)


@pytest.fixture
def path(tmp_path):
    return lock_path(tmp_path / "outputs", "a.b.c.s1-00000000")


def test_it_is_held_by_one_process_until_that_dies(path, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        assert is_held(path)
        with pytest.raises(HeldError, match=rf"^{path.stem} is being trained by process {process.pid} of "), held(path):
            pass
    finally:
        process.kill()
        process.communicate()
    assert path.exists() and not is_held(path)
    with held(path):
        assert path.read_text().startswith(f"process {os.getpid()} of ")
    assert not list(tmp_path.iterdir()), "nothing is left, not even empty folders"


TAKE = """
import sys, time
from pathlib import Path
from lora.sweep.locks import HeldError, held
total, times = Path(sys.argv[2]), 30
while times:
    try:
        with held(Path(sys.argv[1])):
            total.write_text(str(int(total.read_text()) + 1))
            times -= 1
    except HeldError:
        time.sleep(0.001)
"""


def test_of_many_that_take_it_at_once_one_gets_it(path, tmp_path):
    """Its file and folder are removed at each release, while others open and lock them."""
    total = tmp_path / "total"
    total.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", TAKE, str(path), str(total)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert total.read_text() == "120"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_once_and_runs_go_on(path, monkeypatch, capsys, code):
    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._say_without_locks.cache_clear()
    for _ in range(2):
        with held(path):
            assert not is_held(path)
    said = f"has no file locks ({os.strerror(code)}): a run may be trained twice, to the same record\n"
    assert capsys.readouterr().err == f"{path.parent} {said}"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "locks").write_text("")
    with pytest.raises(UserError, match="cannot write the lock"), held(lock_path(tmp_path, "x")):
        pass
