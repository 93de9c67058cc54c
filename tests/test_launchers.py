"""The requirements of launchers, and the settings that they share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweeps import finish, grid

from lora.config.compose import compose_config
from lora.config.hydra_messages import explain
from lora.errors import UserError
from lora.files import ROOT

HIDE = """
import pkgutil, sys
walk, hidden = pkgutil.walk_packages, sys.argv[1]  # how Hydra finds its plugins
pkgutil.walk_packages = lambda *a, **k: (found for found in walk(*a, **k) if not found.name.startswith(hidden))
sys.argv = ["lora", *sys.argv[2:]]
from lora.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("launcher", "plugin"), [("slurm", "hydra_plugins.hydra_submitit"), ("ray", "hydra_plugins.hydra_ray")]
)
def test_a_launcher_whose_plugin_is_not_installed_names_its_extra(tiny_overrides, tmp_path, launcher, plugin):
    arguments = ["-m", *grid(tiny_overrides, tmp_path, "seed=1,2", "task=cola"), f"launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, "-c", HIDE, plugin, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"launcher={launcher} needs its Hydra plugin" in done.stderr and f"'.[{launcher}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_slurm_without_sbatch_is_refused_before_anything_runs(tiny_overrides, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    code, output = finish(grid(tiny_overrides, tmp_path, "seed=1,2", "task=cola", "launcher=slurm"))
    assert code == 2
    assert "error: launcher=slurm needs Slurm's sbatch on the PATH" in output
    assert not (tmp_path / "results").exists()


def test_local_workers_times_threads_fit_the_cores():
    cores = len(os.sched_getaffinity(0))
    for threads in (1, cores, 2 * cores):
        settings = compose_config([f"launcher.threads={threads}"])
        assert settings.runtime.threads == threads
        assert settings.launcher.workers == max(1, cores // threads)


def test_another_missing_option_keeps_its_own_message():
    with pytest.raises(UserError, match="launcher must be one of local, ray, slurm, got 'pbs'"):
        compose_config(["launcher=pbs"])
    assert explain(ValueError("something else")) == "something else"
