"""The processes that train one cell together, as torchrun and `accelerate launch` start them."""

import os


def processes() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one of them that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0
