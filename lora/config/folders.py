"""A folder that a command names is read, or the command is refused."""

from collections.abc import Sequence
from pathlib import Path

from lora.config.options import values_given
from lora.config.run import RunConfig
from lora.errors import UserError


class UnreadFolderError(UserError):
    """A mistake in a whole command, not in one of its runs."""


def reading(config: RunConfig) -> RunConfig:
    """The same configuration, if it reads every folder that it names.

    `RunConfig` has no such rule, because older records may name a folder that was not read.

    Raises: UnreadFolderError: If data.path or model.path is given, and the source of the data or model has no folder.
    """
    data, model = config.data, config.model
    if data.path is not None and data.source in ("embedded", "hub"):
        raise UnreadFolderError(
            f"data.path={data.path} would not be read, because data.source is {data.source}: add data.source=tsv (the "
            f"official layout) or data.source=parquet (the hub's), or leave it out (GLUE_DIR= stands for both)"
        )
    if model.path is not None and model.source != "local":
        raise UnreadFolderError(
            f"model.path={model.path} would not be read, because the source of model {model.name} is {model.source}: "
            f"add model=local, or leave it out (MODEL_DIR= stands for both)"
        )
    return config


def check_data_folder(overrides: Sequence[str]) -> None:
    """For commands that read no rows. Raises: UserError: If overrides name a folder of data that does not exist."""
    for path in values_given("data.path", overrides):
        if path is not None and not Path(str(path)).expanduser().is_dir():
            raise UserError(f"data folder {path} does not exist; set GLUE_DIR= (data.path) to a folder of GLUE's files")
