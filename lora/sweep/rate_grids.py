"""The learning rates that `python -m lora tune` tries: a grid of one size for every method, and how it is judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.rates import read_rates
from lora.config.run import RunConfig
from lora.errors import UserError
from lora.records.record import RunRecord
from lora.sweep.expand import read_profile
from lora.sweep.grids import Block, Values, grid, values_of
from lora.sweep.state import State

METHODS = ("full", "lora", "houlsby")  # ours: the three that the verdicts compare
# Ours: five values a factor of 2 or 2.5 apart, as in the long run (conf/experiment/learning_rate.yaml), around the row
# of conf/hparams: near enough to each other that the best is not missed by much, in a range of 25.
FACTORS = (0.2, 0.5, 1, 2, 5)
LEAST_VALUES = 3  # with fewer, every value is an edge
SEED = "0"  # ours: as in experiment=learning_rate


@dataclass(frozen=True)
class Tuned:
    """One method on one task, and the rates to try.

    Args:
        task: As the command names it: a task of one's own by its file.
        first: The run of the lowest rate and the first seed.
        axes: What composes the runs, besides the method, the task and the rates.
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
        """Rate -> its runs, one for each seed."""
        single = [f"{key}={values[0]}" for key, values in self.axes.items() if key != "seed"]
        common = [f"profile={profile}", *single, f"method={self.method}", f"task={self.task}"]
        return {
            rate: [compose_run([*common, f"train.lr={rate!r}", f"seed={seed}"]).run_id for seed in self.axes["seed"]]
            for rate in self.rates
        }


def grids(profile: str, given: Mapping[str, list[str]], path: Path) -> list[Tuned]:
    """The rates to try, for each method and task.

    Args:
        given: The overrides of the command.
        path: The file of rates that may exist.
    Raises: UserError: If the overrides ask for no valid grid, or for one of another size than a method of the same
        encoder, protocol and task has in the file.
    """
    axes = {"seed": [SEED], **{key: values for key, values in given.items() if key not in ("method", "task")}}
    rates = axes.pop("train.lr", None)
    axes["rates"] = ["null"]  # the grid lies around the row of conf/hparams, however often it is tuned
    several = [key for key, values in axes.items() if len(values) > 1 and key != "seed"]
    if several:
        raise UserError(f"only method, task, seed and train.lr take several values in tune, got {', '.join(several)}")
    if "task" not in given:
        raise UserError("tune needs task=NAME, or several: task=A,B")
    refuse_reported(profile, axes["seed"])
    stated = None if rates is None else numbers(rates)
    cells = []
    for task in given["task"]:
        for method in given.get("method", METHODS):
            lr = [] if stated is None else [f"train.lr={stated[0]!r}"]
            single = [f"{key}={values[0]}" for key, values in axes.items()]
            first = compose_run([f"profile={profile}", *single, f"method={method}", f"task={task}", *lr])
            tried = stated or tuple(float(f"{first.train.lr * factor:.3g}") for factor in FACTORS)
            cells.append(Tuned(method, task, first, axes, tried, len(tried)))
    refuse_other_sizes(cells, path)
    return cells


def numbers(texts: Sequence[str]) -> tuple[float, ...]:
    """Stated rates in ascending order.

    Raises: UserError: If one is not a number > 0, or they are too few.
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


def refuse_reported(profile: str, seeds: Sequence[str]) -> None:
    """
    Raises: UserError: If a table of the profile reports one of the seeds.
    """
    reported = {
        seed for name in read_profile(profile)["experiments"] for seed in values_of("seed", grid(profile, name))
    }
    if used := [seed for seed in seeds if seed in reported]:
        raise UserError(
            f"seed must be one that no table of profile {profile} reports, got {', '.join(used)}: its tables report "
            f"{', '.join(sorted(reported, key=int))}, and rates chosen on these would favour what was tuned most"
        )


def refuse_other_sizes(cells: Sequence[Tuned], path: Path) -> None:
    """
    Raises: UserError: If a method that is not tuned now was tuned with another number of values.
    """
    kept = read_rates(path)
    for cell in cells:
        own = (cell.first.model.name, cell.first.protocol, cell.task_name)
        now = {other.method for other in cells if other.task_name == cell.task_name}
        for rate in kept:
            if (rate.model, rate.protocol, rate.task) == own and rate.method not in now and rate.values != cell.values:
                raise UserError(
                    f"every method of a task has a grid of the same size: {rate.method} on {rate.task} was tuned with "
                    f"{rate.values} rates ({path}), got {cell.values} for {cell.method}; give {rate.values} values of "
                    f"train.lr, or tune {rate.method} again in the same command"
                )


def scores(cell: Tuned, profile: str, now: State) -> dict[float, float | None]:
    """Rate -> the mean over seeds of the best epoch's headline metric, a fraction; None if a run of it diverged."""
    found: dict[float, float | None] = {}
    for rate, run_ids in cell.run_ids(profile).items():
        values = [best_of(now.ok.get(run_id)) for run_id in run_ids]
        known = [value for value in values if value is not None]
        found[rate] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def best_of(record: RunRecord | None) -> float | None:
    return None if record is None or record.selected is None else record.selected["best"]["value"]


def best_rate(tried: Mapping[float, float | None]) -> float | None:
    """The rate with the highest score, the smaller on a tie; None where all diverged."""
    known = {rate: score for rate, score in tried.items() if score is not None}
    return min(known, key=lambda rate: (-known[rate], rate)) if known else None


def at_edge(tried: Mapping[float, float | None]) -> str | None:
    """`lowest` or `highest` if the best rate is that of those tried. A rate that diverged counts as tried."""
    best = best_rate(tried)
    return "lowest" if best == min(tried) else "highest" if best == max(tried) else None


def extended(cell: Tuned, tried: Mapping[float, float | None]) -> Tuned:
    """With one more rate beyond the edge at which the best one lies, as far from it as its neighbour is."""
    edge = at_edge(tried)
    if edge is None:
        return cell
    return replace(cell, rates=tuple(sorted((*cell.rates, next_rate(cell.rates, edge)))))


def next_rate(rates: Sequence[float], edge: str) -> float:
    last, neighbour = (rates[0], rates[1]) if edge == "lowest" else (rates[-1], rates[-2])
    return float(f"{last * last / neighbour:.3g}")
