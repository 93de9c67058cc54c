"""The processes that train one run together, started by torchrun or `accelerate launch`."""

import os

from lora.config.run import TrainConfig
from lora.errors import UserError


def processes() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_processes() -> None:
    """Check the environment variables that state this process's rank.

    A process with a rank but no world size would train alone and write nothing.

    Raises: UserError: If a variable is not a valid number, or variables are missing or contradict each other.
    """
    places, problems = {}, []
    for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
        text = os.environ.get(name)
        if text is None:
            continue
        if not text.isdecimal() or int(text) < least:
            problems.append(f"{name} must be an integer >= {least}, got {text!r}")
        else:
            places[name] = int(text)
    if not problems:
        count, rank, local_rank = places.get("WORLD_SIZE", 1), places.get("RANK", 0), places.get("LOCAL_RANK", 0)
        given = "" if "WORLD_SIZE" in places else " (1, since it is not set)"
        missing = [name for name in ("RANK", "LOCAL_RANK") if count > 1 and name not in places]
        problems += [f"WORLD_SIZE is {count}, but {name} is not set" for name in missing]
        if rank >= count:
            problems.append(f"RANK must be < WORLD_SIZE{given}, got {rank}")
        if places.get("LOCAL_WORLD_SIZE", 1) > count:
            problems.append(f"LOCAL_WORLD_SIZE must be <= WORLD_SIZE{given}, got {places['LOCAL_WORLD_SIZE']}")
        if local_rank >= places.get("LOCAL_WORLD_SIZE", count):
            bound = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in places else f"WORLD_SIZE{given}"
            problems.append(f"LOCAL_RANK must be < {bound}, got {local_rank}")
    if problems:
        raise UserError(
            f"{'; '.join(problems)}: start several processes with torchrun or `accelerate launch`, which set these "
            f"variables, or unset them for a single one"
        )


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def check_batch(train: TrainConfig, count: int) -> None:
    """Raises: UserError: If the global batch is not divisible by processes x accumulation steps."""
    shares = count * train.accumulation
    if train.batch % shares:
        raise UserError(
            f"train.batch must be a multiple of processes x train.accumulation ({count} x {train.accumulation}), "
            f"because it is the global batch, got {train.batch}"
        )
