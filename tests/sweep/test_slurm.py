"""Sweeps on a real Slurm cluster of four virtual nodes: requeued, lost, cancelled and killed jobs."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from sweeping import assert_complete, finish, frozen, grid, quiet, start, wait_for

from lora.files import ROOT
from lora.records.record import checkpoint_path, load_records
from lora.sweep.notes import read_notes

CLUSTER = ROOT / "tests" / "helpers" / "slurm_cluster.sh"
pytestmark = [pytest.mark.cluster("slurm"), pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch")]
RUNS = ("launcher=slurm", "method=bitfit", "task=cola", "runtime.checkpoint_minutes=null", "train.epochs=30")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([CLUSTER, "start", folder], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("OMP_NUM_THREADS", "1")
            yield folder
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True)


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def training(folder, process, runs):
    """`frozen` runs: run_id -> pid and job, in the order of their jobs. `resume` lets them go on."""
    stopped = frozen(folder, process, runs)
    notes = read_notes(folder / "outputs")
    found = {run_id: (pid, notes[run_id]["where"].rpartition("slurm ")[2]) for run_id, pid in stopped.items()}
    return dict(sorted(found.items(), key=lambda item: item[1][1]))


def resume(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def said(process, start):
    """The first line of a command's output that begins with `start`."""
    return next(line for line in process.stdout if line.startswith(start))


def test_cancelled_jobs_are_not_launched_again_and_the_next_command_trains_them(tiny_overrides, tmp_path):
    """One runs, one waits."""
    runs = (*RUNS, "seed=1,2")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs[1:]))
    folder = tmp_path / "slurm"
    overrides = grid(tiny_overrides, folder, *runs)
    process = start([*overrides, "launcher.workers=1"])
    ((cancelled, (pid, job)),) = training(folder, process, runs=1).items()
    (waiting,) = {record.run_id for record in expected} - {cancelled}
    slurm("scancel", job.partition("_")[0])
    resume(pid)
    checkpoint = checkpoint_path(folder / "outputs", cancelled)
    wait_for(checkpoint.exists, process)  # written at Slurm's SIGTERM
    os.kill(pid, signal.SIGSTOP)  # otherwise it ends before Slurm's SIGKILL
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert f"missing: {cancelled} (its job was cancelled)" in output
    assert f"missing: {waiting} (its job was cancelled)" in output
    assert not load_records(folder / "results")[0]
    code, output = finish(overrides)
    assert code == 0, output
    records = assert_complete(folder, expected)
    assert {record.run_id: record.provenance["resumed"] for record in records} == {cancelled: 1, waiting: 0}


def test_ctrl_c_says_how_to_stop_the_jobs_which_keep_running(tiny_overrides, tmp_path):
    overrides = grid(tiny_overrides, tmp_path, *RUNS, "seed=1,2")
    process = start(overrides, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    found = training(tmp_path, process, runs=2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert all(f"  {run_id}\n" in output for run_id in found)
    (name,) = re.findall(r"scancel --name=(\S+)", output)
    assert len(slurm("squeue", "--noheader", f"--name={name}").splitlines()) == 2
    process = start(overrides)  # while they run: nothing is trained twice
    said(process, "waiting for runs that another sweep trains")
    resume(*(pid for pid, _ in found.values()))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert {r.provenance["resumed"] for r in load_records(tmp_path / "results")[0]} == {0}
    slurm("scancel", f"--name={name}")
    deadline = time.monotonic() + 60
    while slurm("squeue", "--noheader", f"--name={name}"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_slurm_puts_back_into_its_queue_is_done_by_the_same_command(tiny_overrides, tmp_path, cluster):
    """After USR2, as near a job's time limit, a run resumes where it was; after the loss of its node, on another.

    The locks of a lost node are free at once. The command itself launches a run again that the kernel kills.
    """
    runs = (*RUNS, "seed=1,2,3")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs[1:]))
    folder = tmp_path / "slurm"
    process = start(grid(tiny_overrides, folder, *runs))
    found = training(folder, process, runs=3)
    requeued, lost, killed = found
    (one, job), (_, other), (last, _) = found.values()
    os.kill(last, signal.SIGKILL)
    slurm("scancel", "--signal=USR2", job)
    node = slurm("squeue", "--noheader", "--format=%N", f"--jobs={other}")
    subprocess.run([CLUSTER, "lose", cluster, node], check=True)
    resume(one)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"{killed}: its worker was killed, attempt 1 of 3" in output
    assert slurm("sinfo", "--noheader", "--format=%T", f"--nodes={node}").startswith("down")
    records = assert_complete(folder, expected)
    assert {record.run_id: record.provenance["resumed"] for record in records} == {requeued: 1, lost: 0, killed: 0}
    for job_id, state in ((job, "REQUEUED"), (other, "NODE_FAIL")):
        states = slurm("sacct", "--duplicates", "--noheader", "--format=State%20", f"--jobs={job_id}")
        assert state in states


def test_jobs_that_the_cluster_refuses_leave_nothing(tiny_overrides, tmp_path):
    code, output = finish(grid(tiny_overrides, tmp_path, *RUNS, "seed=1,2", "launcher.partition=absent"))
    assert code == 2 and "error: Slurm refused the jobs: sbatch: error: " in output
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"plan.json", "plan.lock", "launch.json"}, "what was asked for, and no run"


def test_a_sweep_with_parents_completes_in_packs(tiny_overrides, tmp_path):
    """Two MNLI runs first, then the runs that start from them, two to a job."""
    runs = ("method=lora", "start=mnli", "task=rte", "seed=1,2")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs))
    assert len(expected) == 4
    more = ("launcher=slurm", "launcher.runs_per_job=2", "launcher.sbatch={comment:packs}")
    overrides = grid(tiny_overrides, tmp_path / "slurm", *runs, *more)
    code, output = finish(overrides)
    assert code == 0, output
    for record in assert_complete(tmp_path / "slurm", expected):
        assert record.config["runtime"]["threads"] == 1
    code, output = finish(overrides)
    assert code == 0 and "nothing to train, all 4 runs are in" in output
