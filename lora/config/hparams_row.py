"""Find the row of hyperparameters for a task. Any source that is to precede conf/ belongs in this module."""

from omegaconf import DictConfig

DEFAULT = "default"  # the row of tasks without their own


def row_of(config: DictConfig, task: str) -> tuple[DictConfig | None, bool]:
    """The row of a task in the hyperparameters of a composed configuration.

    Returns: The row, and whether its learning rate was chosen for this task. The row is None if the file has neither
        a row for the task nor a default one.
    """
    hparams = config.hparams
    return (hparams[task], True) if task in hparams else (hparams.get(DEFAULT), False)
