"""What a sweep hands to its launcher, what it does with the outcomes, and what it refuses."""

import os
import re
import sys
from pathlib import Path

import pytest
import tiny
from commands import lora
from launching import launched

from lora.cli import main
from lora.errors import UserError
from lora.sweep import launch
from lora.sweep.launch import launch_sweep


def test_killed_runs_are_launched_three_times_and_mistakes_once(tiny_overrides, monkeypatch, capsys):
    (*waves, ended) = launched(monkeypatch, tiny_overrides, "seed=1,2", outcomes=[{}, {}, {}])
    assert [len(jobs) for jobs, _, _ in waves] == [2, 2, 2]
    assert ended.count("(its worker was killed)") == 2
    assert capsys.readouterr().err.count("its worker was killed, attempt") == 6
    (*waves, ended) = launched(monkeypatch, tiny_overrides, "seed=1,2", outcomes=["cannot write it"])
    assert len(waves) == 1 and ended.count("(cannot write it)") == 2
    (*waves, ended) = launched(monkeypatch, tiny_overrides, "seed=1,2", outcomes=["held"] * 4)
    assert len(waves) == 5 and ended is None, "another sweep trains them"


def test_runs_per_job(tiny_overrides, monkeypatch):
    """The longest first."""
    kept = [override for override in tiny_overrides if not override.startswith("train.epochs")]
    asked = ("train.epochs=2,7,3,5,4", "seed=1", "launcher.runs_per_job=2")
    ((jobs, _, _), _) = launched(monkeypatch, kept, *asked)
    assert [[run.config.train.epochs for run in job.runs] for job in jobs] == [[7, 5], [4, 3], [2]]
    assert {run.config.runtime.group for job in jobs for run in job.runs} == {"adhoc"} and jobs[0].folder == os.getcwd()


# What is refused before anything runs, and leaves nothing.


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
def test_a_launcher_whose_package_is_not_installed_names_its_extra(tiny_overrides, tmp_path, monkeypatch, launcher):
    monkeypatch.setitem(sys.modules, {"slurm": "submitit"}.get(launcher, launcher), None)
    with pytest.raises(UserError, match=rf"launcher={launcher} needs .*'\.\[{launcher}\]'"):
        launched(monkeypatch, tiny_overrides, "seed=1,2", f"launcher={launcher}")
    assert not (tmp_path / "results").exists() and not (tmp_path / "outputs").exists()


def refused(tiny_overrides, *more: str) -> str:
    done = lora("-m", *tiny_overrides, "experiment=null", "method=bitfit", "seed=1,2", *more)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_slurm_without_sbatch_is_refused(tiny_overrides, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert "error: launcher=slurm needs Slurm's sbatch on the PATH" in refused(tiny_overrides, "launcher=slurm")
    assert not (tmp_path / "results").exists() and not (tmp_path / "outputs").exists()


def test_a_job_that_would_hold_a_gpu_and_train_on_the_cpu_is_refused(tiny_overrides, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match=r"launcher.gpus=1 holds GPUs, but 2 runs .* add train.kernels=stock"):
        launched(monkeypatch, tiny_overrides, "seed=1,2", "launcher=slurm", "launcher.gpus=1", "train.kernels=fused")


def test_cut_weights_are_one_message_before_the_first_run(tiny_overrides, tmp_path):
    folder = tiny.folder(tmp_path / "encoder", "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused(tiny_overrides, f"model.path={folder}", f"model.name={folder.name}")
    assert said.count("model.safetensors is not a whole file of weights") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("mode", [["-m"], []], ids=["a sweep", "one run"])
@pytest.mark.parametrize("place", ["results", "outputs"])
def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(tiny_overrides, tmp_path, capsys, place, mode):
    (tmp_path / place).write_text("in the way")
    code = main([*mode, *tiny_overrides, "method=bitfit"])
    said = capsys.readouterr().err
    assert code == 2 and re.match("error: cannot (read|write)", said) and str(tmp_path / place) in said
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_a_mistake_in_one_of_pefts_methods_ends_a_sweep_before_it(tiny_overrides, tmp_path):
    with pytest.raises(UserError, match="d_initail"):
        launch_sweep([*tiny_overrides, "experiment=null", "method=peft", "seed=1", "method.options={d_initail: 1.0}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "value"), [("workers", "0"), ("workers", "1.5"), ("runs_per_job", "two")])
def test_workers_and_runs_per_job_are_counts(tiny_overrides, tmp_path, key, value):
    launcher = "slurm" if key == "runs_per_job" else "local"
    with pytest.raises(UserError, match=rf"launcher\.{key} must be a whole number >= 1, got"):
        launch_sweep([*tiny_overrides, "experiment=null", "seed=1", f"launcher={launcher}", f"launcher.{key}={value}"])
    assert not list(tmp_path.iterdir())
