"""Grids over the number of train rows: the sizes that follow from a task's, and the epochs that follow from a size."""

import itertools
import math
from collections.abc import Mapping, Sequence

from lora.config.compose import compose_family
from lora.config.run import DRAW, EPOCHS, SIZE, TrainConfig
from lora.data.tasks import Task
from lora.errors import UserError
from lora.sweep.expand import Values

HALVES = "halves"  # in place of sizes: all rows, half of them, a quarter, ...
LEAST, PARTS = 32, 16  # ours: down to this many rows, and to this part of all
STEPS = 200  # ours: the fewest optimizer steps of a run; ten epochs of 50 rows have 40


def halves(whole: int) -> list[int]:
    """The sizes, the largest first."""
    sizes = [whole]
    while sizes[-1] // 2 >= max(LEAST, whole // PARTS):
        sizes.append(sizes[-1] // 2)
    return sizes


def epochs_for(train: TrainConfig, rows: int) -> int:
    """The epochs of a run on a number of train rows: its own, or as many as `STEPS` take."""
    return max(train.epochs, math.ceil(STEPS / math.ceil(rows / train.batch)))


def sized(profile: str, blocks: Sequence[Values], tasks: Mapping[str, Task]) -> list[Values]:
    """The blocks of a grid of sizes, with a block for each size, task and method.

    Of all rows nothing is drawn: with the same epochs, the run is that of a grid without sizes.

    Raises: UserError: If a task has too few rows to be halved, or a run is invalid.
    """
    made: list[Values] = []
    for block in blocks:
        shared = {key: values for key, values in block.items() if key not in ("seed", SIZE, DRAW)}
        for values in itertools.product(*shared.values()):
            settings = dict(zip(shared, values, strict=True))
            run = compose_family([f"profile={profile}", *map("=".join, settings.items())], tasks, "assumed")[-1]
            whole = run.whole_rows
            sizes = [str(size) for size in halves(whole)] if block[SIZE] == [HALVES] else block[SIZE]
            if block[SIZE] == [HALVES] and len(sizes) < 2:
                rule = f"at least {2 * LEAST} train rows for sizes of {HALVES}, or sizes of your own ({SIZE}=A,B)"
                raise UserError(f"{run.task.name} has {whole} train rows, and needs {rule}")
            for size in sizes:
                rows = int(size) if size.isdecimal() else whole  # null, or a mistake, which the run's own checks name
                row = {key: [value] for key, value in settings.items()} | {"seed": block["seed"]}
                row |= {SIZE: ["null"]} if size in ("null", str(whole)) else {SIZE: [size], DRAW: block[DRAW]}
                epochs = epochs_for(run.config.train, rows)
                row |= {EPOCHS: [str(epochs)]} if EPOCHS not in settings and epochs > run.config.train.epochs else {}
                made.append(row)
    return made
