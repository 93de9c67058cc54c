"""The processes that train one cell together, as torchrun and `accelerate launch` start them."""

import os

from lora.config import TrainConfig
from lora.errors import UserError


def processes() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one of them that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def check_batch(train: TrainConfig, count: int) -> None:
    """Raises: UserError: If the global batch is no multiple of processes times passes."""
    parts = count * train.accumulation
    if train.batch % parts:
        raise UserError(
            f"train.batch must be a multiple of processes x train.accumulation ({count} x {train.accumulation}), since "
            f"it is the batch of all of them together, got {train.batch}"
        )
