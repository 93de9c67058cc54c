"""The processes that train one run together, started by torchrun or `accelerate launch`. It does not import torch."""

import os

from lora.config.sections import TrainConfig
from lora.errors import UserError


def processes() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def check_processes() -> None:
    """Check the environment variables that state this process's rank.

    A process with a rank but no world size would train alone and write nothing.

    Raises: UserError: If a variable is not a number, or they contradict each other.
    """
    values = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ}
    if all(value.isdecimal() for value in values.values()):
        complete = len(values) == 3 or processes() == 1
        if complete and rank() < processes() and local_rank() < processes():
            return
    stated = ", ".join(f"{name}={value}" for name, value in values.items())
    raise UserError(
        f"{stated} is invalid: expected integers, RANK and LOCAL_RANK below WORLD_SIZE. Start several processes with "
        f"torchrun or `accelerate launch`, which set these variables, or unset them for a single one"
    )


def check_batch(train: TrainConfig, count: int) -> None:
    """Raises: UserError: If the global batch is not divisible by processes x accumulation steps."""
    shares = count * train.accumulation
    if train.batch % shares:
        raise UserError(
            f"train.batch must be a multiple of processes x train.accumulation ({count} x {train.accumulation}), "
            f"because it is the global batch, got {train.batch}"
        )
