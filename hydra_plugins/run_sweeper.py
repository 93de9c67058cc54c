"""Hydra's sweeper for this project's runs. Hydra finds it by the name of this package."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lora.config.options import NO_EXPERIMENT


class RunSweeper(Sweeper):
    """Expands the experiments of the profile, skips finished runs, and launches the rest.

    `lora.sweep.launch` launches them, without Hydra's launchers: a job is a function, and its runs are composed once.

    Hydra's own sweeper expands one grid from the command line. A profile has several, which share runs.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        arguments = ["experiment=null" if one == NO_EXPERIMENT else one for one in arguments]
        from lora.errors import UnfinishedError
        from lora.sweep.launch import launch_sweep

        try:
            state = launch_sweep(self.config, arguments)
        except UnfinishedError:
            self.show(arguments)
            raise
        self.show(arguments)
        return state

    def show(self, arguments: list[str]) -> None:
        """Print the sweep's tables."""
        from lora.report.write import print_sweep  # loads scipy, which the first run should not wait for

        print_sweep(self.config.profile.name, arguments)


class TuneSweeper(RunSweeper):
    """Chooses learning rates: `python -m lora tune`."""

    def sweep(self, arguments: list[str]) -> None:
        from lora.sweep.tune import tune_sweep

        tune_sweep(self.config, arguments)
