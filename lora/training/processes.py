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

    Raises: UserError: If a variable is not a valid number, or they are incomplete or contradict each other.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ[name] for name in names if name in os.environ}
    stated = ", ".join(f"{name}={value}" for name, value in values.items())
    if all(value.isdecimal() for value in values.values()):
        count, local_count = int(values.get("WORLD_SIZE", 1)), int(values.get("LOCAL_WORLD_SIZE", 1))
        complete = count == 1 or {"RANK", "LOCAL_RANK"} <= set(values)
        local_bound = local_count if "LOCAL_WORLD_SIZE" in values else count
        if complete and 1 <= local_count <= count and rank() < count and local_rank() < local_bound:
            return
    raise UserError(
        f"{stated} is invalid: expected integers, RANK and LOCAL_RANK with a WORLD_SIZE above 1, RANK < WORLD_SIZE, "
        f"and LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE. Start several processes with torchrun or "
        f"`accelerate launch`, which set these variables, or unset them for a single one"
    )


def check_batch(train: TrainConfig, count: int) -> None:
    """Raises: UserError: If the global batch is not divisible by processes x accumulation steps."""
    shares = count * train.accumulation
    if train.batch % shares:
        raise UserError(
            f"train.batch must be a multiple of processes x train.accumulation ({count} x {train.accumulation}), "
            f"because it is the global batch, got {train.batch}"
        )
