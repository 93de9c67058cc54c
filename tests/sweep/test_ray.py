"""Sweeps on a Ray head on this machine: a killed worker is retried, and the records equal those of a quiet run."""

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweeping import assert_complete, finish, grid, owners, quiet, start, wait_for

from lora.config.compose import compose_config
from lora.records.record import checkpoint_path

pytestmark = [pytest.mark.cluster("ray"), pytest.mark.skipif(find_spec("ray") is None, reason="no ray")]
RAY = Path(sys.executable).parent / "ray"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The address of a head with two CPUs. It is started in the foreground, so that it ends with its process."""
    address, folder = f"127.0.0.1:{free_port()}", Path("/tmp") / f"ray-{os.getpid()}"  # sockets need a short path
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    places = [f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}", "--object-store-memory=80000000"]
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")  # a head requires a token that not all of Ray's own commands send
    process = subprocess.Popen([RAY, "start", *options, *places], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        check = [RAY, "status", f"--address={address}"]
        wait_for(lambda: subprocess.run(check, capture_output=True).returncode == 0, process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        subprocess.run(["rm", "-rf", folder], check=True)
        patch.undo()


def test_a_worker_killed_in_mid_run_is_retried_and_the_records_are_right(tiny_overrides, tmp_path, head):
    runs = ("method=bitfit", "task=cola", "seed=1,2", "train.epochs=40")
    expected = quiet(grid(tiny_overrides, tmp_path / "quiet", *runs))
    folder, often = tmp_path / "ray", ("runtime.checkpoint_minutes=0.01",)
    overrides = grid(tiny_overrides, folder, "launcher=ray", *runs, *often, f"launcher.address='{head}'")
    process = start(overrides)
    busy = wait_for(
        lambda: [pid for i, pid in owners(folder).items() if checkpoint_path(folder / "outputs", i).exists()], process
    )
    os.kill(busy[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    records = assert_complete(folder, expected)
    assert sum(record.provenance["resumed"] for record in records) == 1
    code, output = finish(overrides)
    assert code == 0 and "nothing to train, all 2 runs are in" in output


def test_a_fraction_of_a_gpu_per_task_reaches_ray():
    settings = compose_config(["launcher=ray", "launcher.gpus=0.25", "launcher.threads=2"])
    assert (settings.launcher.gpus, settings.runtime.threads) == (0.25, 2)
