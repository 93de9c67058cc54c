"""Sweeps on a real Slurm cluster of four virtual nodes: requeued, lost, cancelled and killed jobs."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from test_sweeps import assert_complete, finish, grid, owners, quiet, start, wait_for

from lora.provenance import ROOT
from lora.results import RunRecord, load_records

CLUSTER = ROOT / "tests" / "slurm_cluster.sh"
pytestmark = pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch")
known: list[RunRecord] = []
LONG = ("launcher=slurm", "method=bitfit", "task=cola", "train.epochs=60", "runtime.checkpoint_minutes=null")


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


def training(folder, process, cells):
    """The owners of the locks, once so many cells have taken a step."""
    running = folder / "outputs" / "running"
    wait_for(lambda: len(list(running.glob("[!.]*.json"))) >= cells, process)
    return owners(folder)


def uninterrupted(tiny_overrides, tmp_path):
    """The records of the two long cells, trained once for all tests."""
    if not known:
        known.extend(quiet(grid(tiny_overrides, tmp_path / "quiet", *LONG[1:], "seed=1,2")))
    return known


def job_of(owner):
    return owner.job.removeprefix("slurm ")


def test_a_sweep_with_parents_completes_in_packs(tiny_overrides, tmp_path):
    """Two MNLI runs first, then the cells that start from them, two to a job."""
    cells = ("method=lora", "start=mnli", "task=rte,mrpc", "seed=1,2")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *cells))
    assert len(expected) == 6
    overrides = grid(tiny_overrides, tmp_path / "slurm", "launcher=slurm", *cells, "launcher.cells_per_job=2")
    code, output = finish(overrides)
    assert code == 0, output
    for record in assert_complete(tmp_path / "slurm", expected):
        assert record.config["runtime"]["threads"] == 1
    code, output = finish(overrides)
    assert code == 0 and "all 6 cells are there already" in output


def test_a_requeued_job_goes_on_where_it_was(tiny_overrides, tmp_path):
    """USR2, as near the end of a job's time."""
    process = start(grid(tiny_overrides, tmp_path / "slurm", *LONG, "seed=1,2"))
    victim, owner = next(iter(training(tmp_path / "slurm", process, cells=2).items()))
    slurm("scancel", "--signal=USR2", job_of(owner))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    records = assert_complete(tmp_path / "slurm", uninterrupted(tiny_overrides, tmp_path))
    assert {r.run_id for r in records if r.provenance["resumed"] == 1} == {victim}
    assert "REQUEUED" in slurm("sacct", "--duplicates", "--noheader", "--format=State%20", f"--jobs={job_of(owner)}")


def test_a_lost_node_loses_nothing(tiny_overrides, tmp_path, cluster):
    """Slurm puts its job back into the queue by itself, and another node trains the cell. It stays lost."""
    process = start(grid(tiny_overrides, tmp_path / "slurm", *LONG, "seed=1,2"))
    owner = next(iter(training(tmp_path / "slurm", process, cells=2).values()))
    node = slurm("squeue", "--noheader", "--format=%N", f"--jobs={job_of(owner)}")
    subprocess.run([CLUSTER, "lose", cluster, node], check=True)
    output, _ = process.communicate(timeout=300)
    assert slurm("sinfo", "--noheader", "--format=%T", f"--nodes={node}").startswith("down")
    assert process.returncode == 0, output
    assert_complete(tmp_path / "slurm", uninterrupted(tiny_overrides, tmp_path))
    assert "NODE_FAIL" in slurm("sacct", "--duplicates", "--noheader", "--format=State%20", f"--jobs={job_of(owner)}")


@pytest.mark.parametrize("how", ["scancel", "kill -9"])
def test_what_a_user_or_a_kernel_kills_is_done_by_the_next_launch(tiny_overrides, tmp_path, how):
    """scancel: the command ends and names the cell. A killed process: the same command tries it again."""
    folder = tmp_path / "slurm"
    overrides = grid(tiny_overrides, folder, *LONG, "seed=1,2")
    process = start(overrides)
    found = training(folder, process, cells=2)
    victim, owner = next(iter(found.items()))
    if how == "scancel":
        slurm("scancel", job_of(owner))
    else:
        os.kill(owner.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    if how == "scancel":
        assert process.returncode == 1, output
        assert f"missing: {victim} (its job was cancelled)" in output
        assert (folder / "outputs" / "checkpoints" / f"{victim}.safetensors").exists(), "Slurm's SIGTERM left one"
        assert [record.run_id for record in load_records(folder / "results")[0]] == [i for i in found if i != victim]
        code, output = finish(overrides)
        assert code == 0, output
    else:
        assert process.returncode == 0, output
    records = assert_complete(folder, uninterrupted(tiny_overrides, tmp_path))
    assert {r.run_id: r.provenance["resumed"] for r in records}[victim] == (1 if how == "scancel" else 0)


def test_ctrl_c_says_how_to_stop_the_jobs_which_run_on(tiny_overrides, tmp_path):
    overrides = grid(tiny_overrides, tmp_path, *LONG, "seed=1,2", "train.epochs=200")  # the second launch meets them
    process = start(overrides, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    found = training(tmp_path, process, cells=2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert all(f"  {run_id}\n" in output for run_id in found)
    (command,) = [line.split("to stop them: ")[1] for line in output.splitlines() if "to stop them: " in line]
    name = command.removeprefix("scancel --name=")
    assert len(slurm("squeue", "--noheader", f"--name={name}").splitlines()) == 2
    code, output = finish(overrides)  # while they run: nothing is trained twice
    assert code == 0, output
    assert "waiting for 2 cells that another sweep trains" in output
    assert {r.provenance["resumed"] for r in load_records(tmp_path / "results")[0]} == {0}
    slurm(*command.split())
    deadline = time.monotonic() + 60
    while slurm("squeue", "--noheader", f"--name={name}"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
