"""The learning rates that `python -m lora tune` tries: grids of equal size for all methods, and their scores."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.options import describe_group
from lora.config.rates import read_rates
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.records.record import RunRecord
from lora.sweep.grids import LEARNING_RATE, Block, Values, grid, profiles_of, values_of
from lora.sweep.state import State

METHODS = ("full", "lora", "houlsby")  # ours: the three that the verdicts compare
# Ours: five values around the row of conf/hparams, a factor of 2 or 2.5 apart as in the long run
# (conf/experiment/learning_rate.yaml). This is close enough to find nearly the best, over a range of 25.
FACTORS = (0.2, 0.5, 1, 2, 5)
LEAST_VALUES = 3  # with fewer, every value is at an edge


@dataclass(frozen=True)
class RateGrid:
    """The rates to try for one method on one task.

    Args:
        task: The command's value: a name, or the file of a user-defined task.
        first: Configuration of the first seed. Its rate is the lowest stated one, or that of conf/hparams.
        axes: The overrides that compose the runs, except the method, the task and the rates.
        rates: In ascending order.
        values: Size of the grid before it was extended.
    """

    method: str
    task: str
    first: RunConfig
    axes: Values
    rates: tuple[float, ...]
    values: int

    @property
    def task_name(self) -> str:
        return self.first.task

    @property
    def block(self) -> Block:
        rates = [repr(rate) for rate in self.rates]
        return Block({**self.axes, "method": [self.method], "task": [self.task], "train.lr": rates})

    def run_ids(self, profile: str) -> dict[float, list[str]]:
        """Rate -> its run_ids, one per seed."""
        single = [f"{key}={values[0]}" for key, values in self.axes.items() if key != "seed"]
        common = [f"profile={profile}", *single, f"method={self.method}", f"task={self.task}"]
        return {
            rate: [compose_run([*common, f"train.lr={rate!r}", f"seed={seed}"]).run_id for seed in self.axes["seed"]]
            for rate in self.rates
        }


def rate_grids(profile: str, given: Mapping[str, list[str]], path: Path) -> list[RateGrid]:
    """The rates to try, for each method and task.

    Args:
        given: The overrides of the command.
        path: The file of rates, which need not exist.
    Raises: UserError: If the overrides define no valid grid, or its size differs from the one that the file states for
        another method of the same encoder, protocol and task.
    """
    reported = reported_seeds(profile)
    axes = {"seed": [usual_seed(reported)]}
    axes |= {key: values for key, values in given.items() if key not in ("method", "task")}
    rates = axes.pop("train.lr", None)
    axes["rates"] = ["null"]  # every tuning centres the grid on the row of conf/hparams
    several = [key for key, values in axes.items() if len(values) > 1 and key != "seed"]
    if several:
        raise UserError(f"only method, task, seed and train.lr take several values in tune, got {', '.join(several)}")
    if "task" not in given:
        raise UserError("tune needs task=NAME, or several: task=A,B")
    refuse_reported(profile, axes["seed"], reported)
    stated = None if rates is None else numbers(rates)
    grids = []
    for task in given["task"]:
        for method in given.get("method", METHODS):
            lr = [] if stated is None else [f"train.lr={stated[0]!r}"]
            single = [f"{key}={values[0]}" for key, values in axes.items()]
            first = compose_run([f"profile={profile}", *single, f"method={method}", f"task={task}", *lr])
            tried = stated or tuple(float(f"{first.train.lr * factor:.3g}") for factor in FACTORS)
            grids.append(RateGrid(method, task, first, axes, tried, len(tried)))
    refuse_other_sizes(grids, path)
    return grids


def numbers(texts: Sequence[str]) -> tuple[float, ...]:
    """The stated rates, each once, in ascending order.

    Raises: UserError: If one is not a number > 0, or there are fewer than `LEAST_VALUES`.
    """
    try:
        found = sorted({float(text) for text in texts})
    except ValueError as error:
        raise UserError(f"train.lr must be numbers > 0, got {', '.join(texts)}") from error
    if not all(0 < value < math.inf for value in found):
        raise UserError(f"train.lr must be numbers > 0, got {', '.join(texts)}")
    if len(found) < LEAST_VALUES:
        raise UserError(
            f"tune needs at least {LEAST_VALUES} different values of train.lr, got {', '.join(texts)}; without any, it "
            f"tries {len(FACTORS)} around the row of conf/hparams"
        )
    return tuple(found)


def reported_seeds(profile: str) -> set[str]:
    """The seeds in the profile's grids, of its default or not, except the grid that chose the rates of conf/."""
    names = [name for name in describe_group("experiment") if name != LEARNING_RATE and profile in profiles_of(name)]
    return {seed for name in names for seed in values_of("seed", grid(profile, name))}


def usual_seed(reported: Collection[str]) -> str:
    """The lowest seed that no table reports. Ours: 0 as in experiment=learning_rate, unless a table reports that."""
    return next(seed for seed in map(str, itertools.count()) if seed not in reported)


def refuse_reported(profile: str, seeds: Sequence[str], reported: Collection[str]) -> None:
    """
    Raises: UserError: If a table of the profile reports one of the seeds.
    """
    if used := [seed for seed in seeds if seed in reported]:
        raise UserError(
            f"seed must be one that no table of profile {profile} reports, got {', '.join(used)}: its tables report "
            f"{', '.join(sorted(reported, key=int))}, and rates chosen on these would favour what was tuned most; "
            f"without seed=, tune takes {usual_seed(reported)}"
        )


def refuse_other_sizes(grids: Sequence[RateGrid], path: Path) -> None:
    """
    Raises: UserError: If a method that is not tuned now was tuned with another number of values.
    """
    kept = read_rates(path)
    for asked in grids:
        own = (asked.first.model.name, asked.first.protocol, asked.task_name)
        now = {other.method for other in grids if other.task_name == asked.task_name}
        for rate in kept:
            values = len(rate.tried)
            if (rate.model, rate.protocol, rate.task) == own and rate.method not in now and values != asked.values:
                raise UserError(
                    f"every method of a task has a grid of the same size: {rate.method} on {rate.task} was tuned with "
                    f"{values} rates ({path}), got {asked.values} for {asked.method}; give {values} values "
                    f"of train.lr, or tune {rate.method} again in the same command"
                )


def scores(rate_grid: RateGrid, profile: str, now: State) -> dict[float, float | None]:
    """Rate -> the mean over seeds of the best epoch's headline metric, a fraction. None if any run has no score."""
    found: dict[float, float | None] = {}
    for rate, run_ids in rate_grid.run_ids(profile).items():
        values = [best_of(now.ok.get(run_id)) for run_id in run_ids]
        known = [value for value in values if value is not None]
        found[rate] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def best_of(record: RunRecord | None) -> float | None:
    return None if record is None or record.selected is None else record.selected["best"]["value"]


def best_rate(tried: Mapping[float, float | None]) -> float | None:
    """The rate with the highest score, the smallest on a tie. None if all scores are None."""
    known = {rate: score for rate, score in tried.items() if score is not None}
    return min(known, key=lambda rate: (-known[rate], rate)) if known else None


def at_edge(tried: Mapping[float, float | None]) -> str | None:
    """`lowest` or `highest` if the best rate is at that edge of the rates tried, diverged ones included, else None."""
    best = best_rate(tried)
    return "lowest" if best == min(tried) else "highest" if best == max(tried) else None


def extended(rate_grid: RateGrid, tried: Mapping[float, float | None]) -> RateGrid:
    """The grid, with one more rate beyond the best one if that is at an edge, by the factor between the last two."""
    edge = at_edge(tried)
    if edge is None:
        return rate_grid
    return replace(rate_grid, rates=tuple(sorted((*rate_grid.rates, next_rate(rate_grid.rates, edge)))))


def next_rate(rates: Sequence[float], edge: str) -> float:
    last, neighbour = (rates[0], rates[1]) if edge == "lowest" else (rates[-1], rates[-2])
    return float(f"{last * last / neighbour:.3g}")
