"""`python -m lora tune profile=NAME task=A,B method=C,D`: choose each method's learning rate for the user's own runs.

Every method gets a grid of the same size, on a seed that no table reports. The rate with the best mean of the best
epochs on dev is taken. A tie wins nothing, and neither does a run that diverged or collapsed. If the best rate is at an
edge of its grid, the output says so.

The rates are written to results/<profile>/rates.yaml (`lora.config.rates`), and the next launch takes them.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.options import chosen_option, describe_group
from lora.config.rates import TUNING, Rate, rates_path, write_rates
from lora.config.run import RunConfig
from lora.data.tasks import TASKS
from lora.errors import DIVERGED, UnfinishedError, UserError
from lora.records.predictions import dev_predictions, is_constant
from lora.records.record import RunRecord
from lora.sweep.expand import PlannedRun, expand_blocks
from lora.sweep.grids import LEARNING_RATE, Block, Values, grid, profiles_of, values_of
from lora.sweep.launch import launch_runs, unfinished
from lora.sweep.request import read_request, sweep_settings
from lora.sweep.state import State

METHODS = ("full", "lora", "houlsby")  # ours: the three that the verdicts compare
# Ours: five values around the row of conf/hparams, a factor of 2 or 2.5 apart as in the long run
# (conf/experiment/learning_rate.yaml). This is close enough to find nearly the best, over a range of 25.
FACTORS = (0.2, 0.5, 1, 2, 5)
SEED = "0"  # ours: as in experiment=learning_rate; no table of results reports it
LEAST_VALUES = 3  # with fewer, every value is at an edge


@dataclass(frozen=True)
class RateGrid:
    """The rates to try for one method on one task.

    Args:
        task: The command's value: a name, or the file of a user-defined task.
        first: Configuration of the first seed. Its rate is the lowest stated one, or that of conf/hparams.
        axes: The overrides that compose the runs, except the method, the task and the rates.
        rates: In ascending order.
    """

    method: str
    task: str
    first: RunConfig
    axes: Values
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.method} on {self.first.task}"

    def runs(self, profile: str) -> list[PlannedRun]:
        """Its runs, with the MNLI runs that they start from, if any."""
        rates = [repr(rate) for rate in self.rates]
        block = Block({**self.axes, "method": [self.method], "task": [self.task], "train.lr": rates})
        return expand_blocks(profile, {TUNING: [block]})


def tune_sweep(arguments: Sequence[str]) -> None:
    """Train the missing runs of the grids, and write the rates.

    Raises: UserError: Before any run starts, if the arguments define no valid grids, or as in `launch_runs`.
        UnfinishedError: If runs are missing, failed without diverging, or no rate of a grid is the best.
    """
    profile, given, experiments = read_request(chosen_option("profile", arguments), arguments)
    if experiments is not None:
        raise UserError("tune has a grid of its own: leave out experiment=")
    settings = sweep_settings(profile, arguments)
    path = rates_path(settings.rates)
    if path is None:
        raise UserError("tune writes the rates of a user's own runs: rates must be a file outside results/reference")
    grids = rate_grids(profile, given)
    planned = [rate_grid.runs(profile) for rate_grid in grids]
    every = {run.run_id: run for runs in planned for run in runs}
    now, reasons = launch_runs(settings, list(every.values()), arguments)
    if now.missing or not all(DIVERGED in str(record.error) for record in now.failed.values()):
        raise UnfinishedError("\n".join(unfinished(now, reasons)))
    print(
        "learning rates with their scores: the best epoch on dev, mean over seeds; -: diverged, collapsed or no score"
    )
    rates, without = [], []
    for rate_grid, runs in zip(grids, planned, strict=True):
        tried = scores(rate_grid, runs, now, Path(settings.runtime.results))
        best, said = best_rate(tried), outcome(rate_grid, tried)
        if best is None:
            without.append(said)
            continue
        print(said)
        first, seeds = rate_grid.first, tuple(int(seed) for seed in rate_grid.axes["seed"])
        key = (first.model.name, first.protocol, first.task, rate_grid.method)
        rates.append(Rate(*key, best, seeds, tried, at_edge(tried)))
    if rates:
        write_rates(path, rates)
        print(f"written to {path}: the next runs of profile {profile} take these rates (rates=null: those of conf/)")
    if without:
        raise UnfinishedError("\n".join(without))


# The grids.


def rate_grids(profile: str, given: Mapping[str, list[str]]) -> list[RateGrid]:
    """The rates to try, for each method and task.

    Args:
        given: The overrides of the command.
    Raises: UserError: If the overrides define no valid grid.
    """
    reported = reported_seeds(profile)
    axes = {"seed": [SEED]}
    axes |= {key: values for key, values in given.items() if key not in ("method", "task")}
    rates = axes.pop("train.lr", None)
    axes["rates"] = ["null"]  # every tuning centres the grid on the row of conf/hparams
    several = [key for key, values in axes.items() if len(values) > 1 and key != "seed"]
    if several:
        raise UserError(f"only method, task, seed and train.lr take several values in tune, got {', '.join(several)}")
    if "task" not in given:
        raise UserError("tune needs task=NAME, or several: task=A,B")
    if used := [seed for seed in axes["seed"] if seed in reported]:
        raise UserError(
            f"seed must be one that no table of profile {profile} reports, got {', '.join(used)}: its tables report "
            f"{', '.join(sorted(reported, key=int))}, and rates chosen on these would look better than they are; "
            f"without seed=, tune takes {SEED}"
        )
    stated = None if rates is None else numbers(rates)
    grids = []
    for task in given["task"]:
        for method in given.get("method", METHODS):
            lr = [] if stated is None else [f"train.lr={stated[0]!r}"]
            single = [f"{key}={values[0]}" for key, values in axes.items()]
            first = compose_run([f"profile={profile}", *single, f"method={method}", f"task={task}", *lr])
            around = tuple(float(f"{first.train.lr * factor:.3g}") for factor in FACTORS)
            grids.append(RateGrid(method, task, first, axes, stated or around))
    return grids


def numbers(texts: Sequence[str]) -> tuple[float, ...]:
    """The stated rates, each once, in ascending order.

    Raises: UserError: If one is not a number > 0, or there are fewer than `LEAST_VALUES`.
    """
    try:
        rates = sorted({float(text) for text in texts})
    except ValueError:
        rates = []
    if len(rates) < LEAST_VALUES or not all(0 < rate < math.inf for rate in rates):
        raise UserError(
            f"train.lr must be at least {LEAST_VALUES} different numbers > 0 in tune, got {', '.join(texts)}; without "
            f"any, it tries {len(FACTORS)} around the row of conf/hparams"
        )
    return tuple(rates)


def reported_seeds(profile: str) -> set[str]:
    """The seeds in the profile's grids, of its default or not, except the grid that chose the rates of conf/."""
    names = [name for name in describe_group("experiment") if name != LEARNING_RATE and profile in profiles_of(name)]
    return {seed for name in names for seed in values_of("seed", grid(profile, name))}


# The choice.


def scores(rate_grid: RateGrid, runs: Sequence[PlannedRun], now: State, results: Path) -> dict[float, float | None]:
    """Rate -> the mean over seeds of the best epoch's headline metric on dev, a fraction.

    None if a run has no score, diverged, or collapsed: it predicts the same for every row.
    """
    tried: dict[float, float | None] = {}
    for rate in rate_grid.rates:
        own = [run.run_id for run in runs if run.task == rate_grid.first.task and run.config.train.lr == rate]
        values = [score_of(now.ok.get(run_id), results) for run_id in own]
        tried[rate] = None if None in values else sum(values) / len(values)
    return tried


def score_of(record: RunRecord | None, results: Path) -> float | None:
    if record is None or is_constant(dev_predictions(record, results)["best"], TASKS[record.config["task"]]):
        return None
    return record.selected["best"]["value"]


def best_rate(tried: Mapping[float, float | None]) -> float | None:
    """The rate with the highest score. None if several share it, or no rate has a score."""
    best = max((score for score in tried.values() if score is not None), default=None)
    rates = [rate for rate, score in tried.items() if score == best]
    return rates[0] if best is not None and len(rates) == 1 else None


def at_edge(tried: Mapping[float, float | None]) -> str | None:
    """`lowest` or `highest` if the best rate is at that edge of the rates tried, diverged ones included, else None."""
    best = best_rate(tried)
    return "lowest" if best == min(tried) else "highest" if best == max(tried) else None


def outcome(rate_grid: RateGrid, tried: Mapping[float, float | None]) -> str:
    """The scores of a grid in words, with the rate that is taken, or what decides it."""
    best, edge = best_rate(tried), at_edge(tried)
    texts = (f"{rate:g} {'-' if score is None else f'{100 * score:.1f}'}" for rate, score in tried.items())
    if best is not None:
        verdict = f"takes {best:g}" + (f", the {edge}: train.lr=A,B,C looks further" if edge else "")
    elif all(score is None for score in tried.values()):
        verdict = "no rate: all runs diverged or collapsed; try lower rates with train.lr=A,B,C"
    else:
        verdict = "no rate: the best ones tie; more seeds decide, such as seed=0,100,101"
    return f"{rate_grid.name}: {', '.join(texts)}; {verdict}"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", help="profile=, task=, and optionally method=, train.lr=A,B,C, seed=, launcher=, ..."
    )


def main(given: argparse.Namespace) -> None:
    """Exit codes: those of a sweep."""
    tune_sweep(given.overrides)
