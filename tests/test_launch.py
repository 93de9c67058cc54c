"""The order in which a sweep hands runs to the launcher: the longest first, so that none is left to run alone."""

import pytest
from hydra.plugins.launcher import Launcher

from lora.config.compose import compose_config
from lora.sweep import launch
from lora.sweep.expand import expand

EPOCHS = (2, 7, 3, 5)  # neither up nor down


def epochs_of(overrides) -> int:
    (epochs,) = [o for o in overrides if o.startswith("train.epochs=")]
    return int(epochs.partition("=")[2])


class Recorder(Launcher):
    """A launcher that records the requested runs and starts none."""

    def __init__(self):
        self.epochs: list[int] = []
        self.joblib: dict[str, object] = {}  # like Hydra's own launcher for this machine

    def setup(self, *, hydra_context, task_function, config):
        raise NotImplementedError

    def launch(self, job_overrides, initial_job_idx):
        self.epochs = [epochs_of(job) for job in job_overrides]
        raise KeyboardInterrupt


def arguments(tiny_overrides: list[str]) -> list[str]:
    kept = [o for o in tiny_overrides[1:] if not o.startswith("train.epochs")]
    return [*kept, "method=bitfit", f"train.epochs={','.join(map(str, EPOCHS))}", "seed=1"]


def launched(tiny_overrides: list[str]) -> list[int]:
    config = compose_config([*tiny_overrides, "method=bitfit", "launcher.workers=1"])
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        launch.launch_sweep(recorder, config, arguments(tiny_overrides))
    return recorder.epochs


def test_runs_are_expanded_longest_first(tiny_overrides):
    runs = expand("small", arguments(tiny_overrides), adhoc=True)
    epochs = [epochs_of(run.overrides) for run in runs]
    assert epochs == sorted(EPOCHS, reverse=True)


@pytest.mark.parametrize("longest", [max, min], ids=["as their examples say", "against their examples"])
def test_runs_are_launched_longest_first_by_what_is_expected(tiny_overrides, monkeypatch, longest):
    """By seconds if records give them, which need not follow the number of examples."""
    sign = 1 if longest is max else -1
    monkeypatch.setattr(launch, "estimator", lambda records: lambda run: 1e6 + sign * run.examples)
    assert launched(tiny_overrides) == sorted(EPOCHS, reverse=longest is max)


def test_runs_of_unknown_length_are_launched_by_their_examples(tiny_overrides, monkeypatch):
    monkeypatch.setattr(launch, "estimator", lambda records: lambda run: None)
    assert launched(tiny_overrides) == sorted(EPOCHS, reverse=True)
