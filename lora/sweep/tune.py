"""`python -m lora tune profile=NAME task=A,B method=C,D`: choose each method's learning rate for the user's own runs.

To favour none, every method gets a grid of the same size, on a seed that no table reports. The rate with the best mean
of the best epochs is taken, the smaller one on a tie. If it is at an edge of its grid, the grid is extended once by one
value on that side. If it is still at an edge, the output reports this, with a command that searches further.

The rates are written to results/<profile>/rates.yaml (`lora.config.rates`), and the next launch takes them.
"""

import argparse
from collections.abc import Mapping, Sequence

import pandas as pd
from omegaconf import DictConfig

from lora.config.rates import TUNING, Rate, rates_path, write_rates
from lora.errors import DIVERGED, UnfinishedError, UserError, as_command
from lora.sweep.expand import expand_blocks
from lora.sweep.launch import launch_runs, unfinished
from lora.sweep.rate_grids import RateGrid, at_edge, best_rate, extended, next_rate, rate_grids, scores
from lora.sweep.request import read_request
from lora.sweep.state import State
from lora.table import Table

BEYOND = 2  # number of values beyond the edge that the output suggests to try next


def tune_sweep(config: DictConfig, arguments: Sequence[str]) -> None:
    """Train the missing runs of the grids, extend grids whose best rate is at an edge, and write the rates.

    Raises: UserError: Before any run starts, if the arguments define no valid grids, or as in `launch_runs`.
        UnfinishedError: If runs are missing, failed without diverging, or every rate of a grid diverged.
    """
    profile, given, experiments = read_request(config.profile.name, arguments)
    if experiments is not None:
        raise UserError("tune has a grid of its own: leave out experiment=")
    path = rates_path(config.rates)
    if path is None:
        raise UserError("tune writes the rates of a user's own runs: rates must be a file outside results/reference")
    grids = rate_grids(profile, given, path)
    now = train(config, profile, grids, arguments)
    wider = [extended(grid, scores(grid, profile, now)) for grid in grids]
    if wider != grids:
        names = ", ".join(
            f"{new.method} on {new.task_name}" for new, old in zip(wider, grids, strict=True) if new != old
        )
        print(f"the best rate lies at an edge of the grid: one more value for {names}", flush=True)
        grids, now = wider, train(config, profile, wider, arguments)
    found = {(grid.method, grid.task): scores(grid, profile, now) for grid in grids}
    chosen = [rate_of(grid, found[grid.method, grid.task]) for grid in grids]
    print(table(profile, grids, found, now).markdown())
    for grid in grids:
        if line := further(grid, found[grid.method, grid.task], arguments):
            print(line)
    rates = [rate for rate in chosen if rate is not None]
    without = [f"{grid.method} on {grid.task_name}" for grid, rate in zip(grids, chosen, strict=True) if rate is None]
    if rates:
        write_rates(path, rates)
        print(f"written to {path}: the next runs of profile {profile} take these rates (rates=null: those of conf/)")
    if without:
        raise UnfinishedError("\n".join([f"no rate for {', '.join(without)}: all runs diverged", *unfinished(now, {})]))


def train(config: DictConfig, profile: str, grids: Sequence[RateGrid], arguments: Sequence[str]) -> State:
    """
    Raises: UnfinishedError: If a run has no record, or failed for a reason other than divergence.
    """
    runs = expand_blocks(profile, {TUNING: [grid.block for grid in grids]})
    now, reasons = launch_runs(config, runs, arguments)
    if now.missing or not all(DIVERGED in str(record.error) for record in now.failed.values()):
        raise UnfinishedError("\n".join(unfinished(now, reasons)))
    return now


def rate_of(grid: RateGrid, tried: dict[float, float | None]) -> Rate | None:
    """The entry of the rates file for a method and task. None if every rate diverged."""
    best = best_rate(tried)
    if best is None:
        return None
    first, seeds = grid.first, tuple(int(seed) for seed in grid.axes["seed"])
    return Rate(first.model.name, first.protocol, grid.task_name, grid.method, best, seeds, tried)


def table(
    profile: str, grids: Sequence[RateGrid], found: Mapping[tuple[str, str], dict[float, float | None]], now: State
) -> Table:
    """One line per method, task and rate: its score, whether it is taken, and its runs."""
    lines = []
    for grid in grids:
        tried, run_ids = found[grid.method, grid.task], grid.run_ids(profile)
        best, edge = best_rate(tried), at_edge(tried)
        for rate, score in tried.items():
            taken = ("yes (edge)" if edge else "yes") if rate == best else ""
            text = "-" if score is None else f"{100 * score:.1f}"
            runs = ", ".join(run_ids[rate])
            row = {"Method": grid.method, "Task": grid.task_name, "Learning rate": f"{rate:g}", "Score": text}
            lines.append(row | {"Taken": taken, "Runs": runs})
    seeds = ", ".join(grids[0].axes["seed"])
    metrics = {grid.task_name: record.selected["metric"] for grid in grids for record in now.ok.values()
               if record.config["task"] == grid.task_name}  # fmt: skip
    notes = (
        f"Score: the best epoch on the dev set ({', '.join(f'{task}: {name}' for task, name in metrics.items())}), "
        f"mean over seeds. -: a run diverged or has no score.",
    )
    first = grids[0].first
    title = f"Learning rates tried ({profile}: {first.model.name}, protocol {first.protocol}, seed {seeds})"
    return Table(TUNING, title, pd.DataFrame(lines), 3, notes)


def further(grid: RateGrid, tried: Mapping[float, float | None], arguments: Sequence[str]) -> str | None:
    """The command, in a sentence, for a grid of the same size beyond the best rate's edge. None if it is at no edge."""
    edge = at_edge(tried)
    if edge is None:
        return None
    rates = grid.rates
    for _ in range(BEYOND):
        rates = tuple(sorted((*rates, next_rate(rates, edge))))
    rates = rates[: grid.values] if edge == "lowest" else rates[-grid.values :]
    kept = [one for one in arguments if not one.startswith(("method=", "task=", "train.lr="))]
    own = [f"method={grid.method}", f"task={grid.task}", f"train.lr={','.join(f'{rate:g}' for rate in rates)}"]
    return (
        f"{grid.method} on {grid.task_name}: the best is the {edge} of {len(tried)} rates, and a better one may lie "
        f"beyond. To look: {as_command(['python', '-m', 'lora', 'tune', *kept, *own])}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", help="profile=, task=, and optionally method=, train.lr=A,B,C, seed=, launcher=, ..."
    )


def main(given: argparse.Namespace) -> None:
    """Exit codes: those of a sweep."""
    from lora.sweep import entry

    entry.main(["-m", "hydra/sweeper=tune", *given.overrides])
