"""`python -m lora tune profile=NAME task=A,B method=C,D`: choose each method's learning rate for the user's own runs.

With data.train_rows=N,M it is chosen at these numbers of train rows, and a run takes that of the nearest.

Every method gets a grid of the same size, on a seed that no table reports. The rate with the best mean of the best
epochs on dev is taken, the lowest on a tie. A run that diverged or collapsed wins nothing. If the best rate is at an
edge of its grid, the output says so.

The rates are written to results/<profile>/rates.yaml (`lora.config.rates`), and the next launch takes them.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lora.config.compose import chosen_option, compose_family
from lora.config.rates import TUNING, Rate, rates_path, read_rates, stated_text, write_rates
from lora.config.run import EPOCHS, SIZE, PlannedRun, RunConfig
from lora.data.metrics import better
from lora.errors import DIVERGED, UnfinishedError, UserError
from lora.records.predictions import dev_predictions, is_constant
from lora.records.record import RunRecord
from lora.sweep.expand import Values, expand_blocks
from lora.sweep.launch import launch_runs
from lora.sweep.progress import as_percent
from lora.sweep.request import LEARNING_RATE, grids_for, own_tasks, read_request, settings_of, sweep_settings, values_in
from lora.sweep.sizes import epochs_for

TUNED_METHODS = ("full", "lora", "houlsby")  # ours: the three that the verdicts compare
# Ours: five values around the row of conf/hparams, a factor of 2 or 2.5 apart as in the long run
# (conf/experiment/learning_rate.yaml). This is close enough to find nearly the best, over a range of 25.
RATE_FACTORS = (0.2, 0.5, 1, 2, 5)
SEED = "0"  # ours: as in experiment=learning_rate; no table of results reports it
LEAST_VALUES = 3  # with fewer, every value is at an edge


def main(given: argparse.Namespace) -> None:
    """Train the missing runs of the grids, and write the rates of the complete ones. Exit codes: those of a sweep.

    Raises: UnfinishedError: If runs are missing, failed without diverging, or no rate of a grid has a score.
    """
    arguments = given.overrides
    profile, asked, experiments = read_request(chosen_option("profile", arguments), arguments)
    if experiments is not None:
        raise UserError("tune has a grid of its own: leave out experiment=")
    settings = sweep_settings(profile, arguments)
    path = rates_path(settings.rates)
    if path is None:
        raise UserError("tune writes the rates of a user's own runs: rates must be a file outside results/reference")
    earlier = {(*one.key, one.train_rows): one for one in read_rates(path)}
    grids = rate_grids(profile, asked)
    tasks = own_tasks(profile, settings_of(asked))
    planned = [expand_blocks(profile, {TUNING: [axes]}, None, tasks, "kept") for _, axes in grids]  # MNLI runs included
    every = {run.run_id: run for runs in planned for run in runs}
    now, unfinished = launch_runs(settings, list(every.values()), arguments)
    broken = {run.run_id for run in now.missing}
    broken |= {run_id for run_id, record in now.failed.items() if DIVERGED not in str(record.error)}
    if broken.issuperset(every):
        raise UnfinishedError(unfinished)
    print("learning rates, and the mean score over seeds of the best epoch on dev (-: diverged, collapsed or no score)")
    rates = []
    without = [unfinished] if broken else []
    for (first, axes), runs in zip(grids, planned, strict=True):
        if not broken.isdisjoint(run.run_id for run in runs):
            continue
        of_task = [run for run in runs if run.task.name == first.task]
        tried = scores(of_task, now.ok, Path(settings.runtime.results))
        name = first.runtime.rate_name
        best, outcome = best_rate(tried, of_task[0].task.metric, name)
        rows = first.data.train_rows if SIZE in axes else None
        place = (first.model.name, first.protocol, first.task, name)
        key = (*place, rows)
        line = f"{name} on {f'{rows} rows of ' if rows else ''}{first.task}: {outcome}"
        if best is None:
            without.append(line + (f"; {earlier[key].lr:g}, chosen earlier, stays in {path}" if key in earlier else ""))
            continue
        before = earlier.get(key)
        if before is not None and before.lr != best:
            score = as_percent(before.tried[before.lr])
            line += f"; replaces {before.lr:g}, which was chosen from {len(before.tried)} values and scored {score}"
        print(line)
        stated = stated_text(of_task[0].stated, asked)
        rates.append(Rate(*place, best, tuple(map(int, axes["seed"])), tried, rows, stated))
    if rates:
        write_rates(path, rates)
        print(f"written to {path}: the next runs of profile {profile} take these rates (rates=null: those of conf/)")
    if without:
        raise UnfinishedError("\n".join(without))


def rate_grids(profile: str, given: Values) -> list[tuple[RunConfig, Values]]:
    """The grid of each method and task of a command's overrides: a run of the grid, and the grid's overrides."""
    grids_of_tables = [blocks for name, blocks in grids_for(profile).items() if name != LEARNING_RATE]
    reported = {seed for blocks in grids_of_tables for seed in values_in("seed", blocks)}
    axes = {"seed": [SEED]} | {key: values for key, values in given.items() if key not in ("method", "task")}
    stated = stated_rates(axes.pop("train.lr")) if "train.lr" in axes else None
    sizes = axes.pop(SIZE, [""])
    axes["rates"] = ["null"]  # every tuning centres the grid on the row of conf/hparams
    if lists := [key for key, values in axes.items() if len(values) > 1 and key != "seed"]:
        raise UserError(
            f"only method, task, seed, train.lr and {SIZE} take several values in tune, got {', '.join(lists)}"
        )
    if "task" not in given:
        raise UserError("tune needs task=NAME, or several: task=A,B")
    if used := [seed for seed in axes["seed"] if seed in reported]:
        raise UserError(
            f"seed must be one that no table of profile {profile} reports, got {', '.join(used)}: its tables report "
            f"{', '.join(sorted(reported, key=int))}, and rates chosen on these would look better than they are"
        )
    grids = []
    for task, method, rows in itertools.product(given["task"], given.get("method", TUNED_METHODS), sizes):
        own = {**axes, "method": [method], "task": [task]} | ({"train.lr": stated} if stated else {})
        own |= {SIZE: [rows]} if rows else {}
        single = [f"{key}={values[0]}" for key, values in own.items()]
        run = compose_family([f"profile={profile}", *single])[-1]
        first = run.config
        if rows.isdecimal() and run.train_rows == run.whole_rows:
            raise UserError(f"{SIZE}={rows} is all rows of {run.task.name}: null tunes for them, as without {SIZE}")
        if rows and first.data.train_rows and EPOCHS not in own:  # as long as the runs of experiment=rows
            own[EPOCHS] = [str(epochs_for(first.train, first.data.train_rows))]
        around = [repr(float(f"{first.train.lr * factor:.3g}")) for factor in RATE_FACTORS]
        grids.append((first, {**own, "train.lr": stated or around}))
    return grids


def stated_rates(texts: Sequence[str]) -> list[str]:
    """The stated rates, each once, in ascending order."""
    rates = []
    with suppress(ValueError):
        rates = sorted({float(text) for text in texts})
    if len(rates) < LEAST_VALUES or not all(0 < rate < math.inf for rate in rates):
        raise UserError(
            f"train.lr must be at least {LEAST_VALUES} different numbers > 0 in tune, got {', '.join(texts)}; without "
            f"any, it tries {len(RATE_FACTORS)} around the row of conf/hparams"
        )
    return [*map(repr, rates)]


def scores(runs: Sequence[PlannedRun], ok: Mapping[str, RunRecord], results: Path) -> dict[float, float | None]:
    """Rate, ascending -> the mean over seeds of the best epoch's headline metric on dev, a fraction.

    None if a run has no score, diverged, or collapsed: it predicts the same for every row.
    """
    values: dict[float, list[float | None]] = {}
    for run in sorted(runs, key=lambda run: run.config.train.lr):
        record = ok.get(run.run_id)
        collapsed = record is None or is_constant(dev_predictions(record, results)["best"], run.task)
        values.setdefault(run.config.train.lr, []).append(None if collapsed else record.selected["best"]["value"])
    return {rate: None if None in of_rate else sum(of_rate) / len(of_rate) for rate, of_rate in values.items()}


def best_rate(tried: Mapping[float, float | None], metric: str, method: str) -> tuple[float | None, str]:
    """The rate with the best score, the lowest on a tie, None if no rate has a score; and the scores in words.

    Args:
        tried: In ascending order.
        method: As `lora.config.rates.rate_name` has it.
    """
    known = {rate: score for rate, score in tried.items() if score is not None}
    texts = ", ".join(f"{rate:g} {as_percent(score)}" for rate, score in tried.items())
    if not known:
        ways = "try other rates (train.lr=A,B,C) or more epochs (train.epochs=N)"
        return None, f"{texts}; no rate: all runs diverged or collapsed; {ways}"
    best = max(known, key=lambda rate: better(metric) * known[rate])
    edge = {min(tried): "lowest", max(tried): "highest"}.get(best)  # of all, diverged ones included
    way = f"method={method} train.lr=A,B,C looks further, with {len(tried)} values, as many as the other methods had"
    further = f", the {edge}: {way}" if edge else ""
    return best, f"{texts}; takes {best:g}{further}"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", help="profile=, task=, and optionally method=, train.lr=A,B,C, seed=, launcher=, ..."
    )
