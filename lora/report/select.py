"""Select a profile's records: the runs that its experiments expect, as one frame. Later steps read no settings."""

import argparse
import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora.checks import SettingsError
from lora.config.compose import compose_config, compose_run
from lora.config.own_task import own_tasks
from lora.config.rates import TUNING, rates_setting, tuned_seeds
from lora.config.run import RunConfig, run_config
from lora.config.variants import Variant, key_of, variant
from lora.data.own_task import add_kept_tasks
from lora.data.tasks import TASKS
from lora.files import REFERENCE, RESULTS
from lora.methods.titles import METHOD_TITLES, TARGET_TITLES
from lora.records.predictions import with_collapsed
from lora.records.record import RunRecord, adapter_path, load_frame, load_records
from lora.report.aggregate import LORA_SLUG, OF_MACHINES, Planned, anywhere, labelled, refuse_mixed_rows
from lora.report.catalogue import ADHOC, METHODS_BY_TASKS, OWN
from lora.report.expected import experiments_shown, without_parents
from lora.report.learning_rate import LEARNING_RATE
from lora.sweep.expand import PlannedRun, base_run, distinct
from lora.sweep.request import requested
from lora.sweep.stand_in import check_inputs
from lora.sweep.state import State, state_of

NAMED_BY = ("run_id", "model", "protocol", "start", "slug", "method", "task", "seed")


@dataclass(frozen=True)
class Gathered:
    """The records of a profile that an experiment expects.

    Args:
        folder: The folder of the records.
        results: The folder that holds the user's own results and `reference`.
        is_reference: Whether these are the reference (the committed runs).
        overrides: The overrides of the expected runs.
        planned: Experiment -> its expected runs, in the tables' order; only experiments that are shown.
        tried: The runs by which the learning rates were chosen; no table of results has them.
        tuning: run_ids of the runs that `python -m lora tune` made or that are on its seeds; no table at all has them.
        frame: `load_frame` of the `ok` records, with the column `collapsed` (`lora.records.predictions`).
        state: The missing and failed runs, and extra or broken records; the `ok` records are in `state.ok`.
    """

    profile: str
    folder: Path
    results: Path
    is_reference: bool
    overrides: tuple[str, ...]
    planned: dict[str, list[Planned]]
    tried: list[Planned]
    tuning: tuple[str, ...]
    frame: pd.DataFrame
    state: State

    @property
    def name(self) -> str:
        """The name in tables and pages: the folder below results/."""
        return f"{REFERENCE}/{self.profile}" if self.is_reference else self.profile

    @property
    def efficiency(self) -> Path:
        """The folder of the measurements that accompany the runs: the reference's, or this machine's."""
        return (self.results / REFERENCE if self.is_reference else self.results) / "efficiency"

    @property
    def is_own(self) -> bool:
        """Whether all runs are on user-defined tasks, which no claim of the paper is about."""
        every = self.every
        return bool(every) and all(TASKS[p.task].own is not None for p in every)

    @property
    def every(self) -> list[Planned]:
        """Each expected run once, in the tables' order."""
        return in_table_order({p.run_id: p for planned in self.planned.values() for p in planned}.values())


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that reads a profile's records."""
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument(
        "overrides", nargs="*", help="the overrides that the sweep was launched with, such as seed=1,2 data.path=FOLDER"
    )


def gather(name: str, overrides: Sequence[str] = (), results: Path = RESULTS) -> Gathered:
    """Read a profile's records.

    Args:
        name: A profile, or `reference/<profile>`: the folder below `results`, unless the overrides name another.
        overrides: The sweep's overrides, so that the same runs are expected.
    Raises: UserError: If the profile does not exist, its records were made from different rows, or rows or weights that
        the overrides name differ from those of the records.
    """
    profile = Path(name).name
    folder = records_folder(name, overrides, results)
    is_reference = folder.resolve() == (results / REFERENCE / profile).resolve()
    add_kept_tasks(folder)
    records, problems = load_records(folder)
    if is_reference:  # precision, kernels and attention may depend on the machine that made the records
        for key in OF_MACHINES:
            values = {value_of(key, record.config) for record in records}
            overrides = [*overrides, *(f"{key}={value}" for value in sorted(values))]
        overrides = [*overrides, "rates=null"]  # the user's own rates do not affect the reference
    tuning = {record.run_id for record in records if record.config["runtime"].get("group") == TUNING}
    present = {record.run_id for record in records} - tuning
    chosen_on = tuned_seeds(rates_setting(overrides, str(folder)))
    sections = without_seeds(experiments_shown(profile, overrides, present, whole=is_reference), chosen_on)
    every = list({run.run_id: run for found in sections.values() for run in found}.values())
    now = state_of(every, records, problems)
    if any(override.startswith(("data.path=", "model.path=")) for override in overrides) or own_tasks(overrides):
        at_hand = [config for config in distinct(every, ()) if not TASKS[config.task].is_definition_only]
        check_inputs(at_hand, now.ok.values(), online=False)
    tuning |= {record.run_id for record in records if record.config["seed"] in chosen_on}
    tuning &= set(now.extra)  # the others are requested by name: experiment=learning_rate, or with rates=null
    extra = [record for record in records if record.run_id in set(now.extra) - tuning]
    others = as_recorded(other_runs(extra, profile, overrides), extra, {run.model for run in every})
    used = {record.run_id: record for record in extra if record.run_id in {p.run_id for p in others}}
    now = dataclasses.replace(now, ok=now.ok | used, extra=tuple(i for i in now.extra if i not in {*used, *tuning}))
    frame, broken = with_collapsed(load_frame(list(now.ok.values())), now.ok.values(), folder)
    now = dataclasses.replace(now, problems=(*now.problems, *broken))
    refuse_mixed_rows(frame)
    expected = {
        name: [planned_of(run, Variant(run.given, run.settings), run.untuned) for run in without_parents(name, found)]
        for name, found in sections.items()
    }
    if is_reference:  # drop the settings that depend on the machine: the files are the same on every one
        expected = {key: list(map(anywhere, found)) for key, found in expected.items()}
    add_others(expected, others)
    planned = {
        experiment: in_table_order(labelled(found, start=experiment != "mnli_start"))
        for experiment, found in expected.items()
    }
    tried = planned.pop(LEARNING_RATE, [])
    tuned = tuple(sorted(tuning))
    return Gathered(profile, folder, results, is_reference, tuple(overrides), planned, tried, tuned, frame, now)


def without_seeds(sections: dict[str, list[PlannedRun]], seeds: set[int]) -> dict[str, list[PlannedRun]]:
    """The experiments without the runs on seeds that chose learning rates, which only that choice itself shows."""
    kept = {
        name: [run for run in runs if name == LEARNING_RATE or run.seed not in seeds] for name, runs in sections.items()
    }
    return {name: runs for name, runs in kept.items() if runs}


def planned_of(run: Any, apart: Variant, untuned: bool) -> Planned:
    """The `Planned` of a run.

    Args:
        run: A `PlannedRun`, or a row of `load_frame`.
        apart: The settings that distinguish it from other runs of its method.
        untuned: See `Planned`.
    """
    return Planned(**{key: getattr(run, key) for key in NAMED_BY}, variant=apart, untuned=untuned)


def other_runs(records: Iterable[RunRecord], profile: str, overrides: Sequence[str]) -> list[Planned]:
    """The usable runs among records that no experiment expects: `ok`, and named as this version names their settings.

    Args:
        overrides: The report's overrides, which state where tuned learning rates are.
    """
    found = []
    for record in records:
        if record.status == "ok":
            with contextlib.suppress(SettingsError):
                config = run_config(record.config)
                if config.run_id == record.run_id:
                    (row,) = load_frame([record]).itertuples()
                    groups = groups_of_run(config, profile, overrides)
                    apart = variant(config, base_run(config, groups))
                    own_rate = "train.lr" in map(key_of, apart.given)
                    untuned = (
                        TASKS[config.task].own is not None
                        and not own_rate
                        and compose_run(groups).runtime.rate_from == "default"
                    )
                    found.append(planned_of(row, apart, untuned))
    return found


def as_recorded(others: Sequence[Planned], records: Iterable[RunRecord], asked: Collection[str]) -> list[Planned]:
    """The same runs; `OF_MACHINES` distinguish none of a local encoder that this report does not ask for.

    conf/ chooses them by the encoder's files, whose folder no record has. Where the runs of an encoder have several
    values of one of them, it is a setting like any other.

    Args:
        records: The records of the runs.
        asked: The encoders that the report asks for.
    """
    configs, found = {record.run_id: record.config for record in records}, []
    for p in others:
        if configs[p.run_id]["model"]["source"] == "local" and p.model not in asked:
            same = [configs[other.run_id] for other in others if other.model == p.model]
            chosen = [key for key in OF_MACHINES if len({value_of(key, config) for config in same}) == 1]
            p = dataclasses.replace(p, variant=p.variant.without(*chosen))
        found.append(p)
    return found


def value_of(key: str, config: Mapping[str, Any]) -> Any:
    section, _, name = key.partition(".")
    return config[section][name]


def groups_of_run(config: RunConfig, profile: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that compose, from conf/, the usual run with which an unexpected run's settings are compared."""
    model = "local" if config.model.source == "local" else config.model.name
    groups = (f"profile={profile}", f"model={model}", f"method={config.method.name}", f"protocol={config.protocol}")
    rates = [override for override in overrides if override.startswith(("rates=", "runtime.results="))]
    return [*groups, f"data.source={config.data.source}", f"task={config.task}", *rates]


def reference_of(gathered: Gathered) -> tuple[list[Planned], pd.DataFrame, list[Planned]]:
    """The user's runs and the reference runs of the same cells and seeds.

    Precision, kernels and attention can depend on the machine, so a run is matched without them; the user's own runs
    keep them, since a grid can have several.

    Returns: The user's runs, the frame of the reference runs, and the reference runs, as from `anywhere`.
    """
    records, _ = load_records(gathered.results / REFERENCE / gathered.profile)
    ours = labelled(gathered.every)
    asked = {key_of_run(anywhere(p)) for p in ours}
    theirs = [anywhere(p) for p in other_runs(records, gathered.profile, gathered.overrides)]
    theirs = labelled(p for p in theirs if key_of_run(p) in asked)
    there = {key_of_run(p) for p in theirs}
    chosen = {p.run_id for p in theirs}
    frame = load_frame([record for record in records if record.run_id in chosen])
    return [p for p in ours if key_of_run(anywhere(p)) in there], frame, theirs


def key_of_run(p: Planned) -> tuple:
    """The key of a run on any machine; the encoder comes first."""
    return p.model, p.protocol, p.start, p.slug, p.task, p.seed, p.variant.given


def add_others(expected: dict[str, list[Planned]], others: Sequence[Planned]) -> None:
    """Add the runs that no experiment expects: next to the same runs of another encoder, or in a separate table."""

    def without_encoder(p: Planned) -> tuple:
        return key_of_run(p)[1:]

    for experiment in METHODS_BY_TASKS:
        if experiment in expected:
            alike = {without_encoder(p) for p in expected[experiment]}
            expected[experiment] += [p for p in others if without_encoder(p) in alike]
    placed = {p.run_id for found in expected.values() for p in found}
    if rest := [p for p in others if p.run_id not in placed]:
        expected[OWN] = rest


def records_folder(name: str, overrides: Sequence[str], results: Path) -> Path:
    """The folder below `results`, or the one that `runtime.results=` names, as for a sweep."""
    own = [override for override in overrides if override.startswith("runtime.results=")]
    return Path(compose_config([f"profile={Path(name).name}", *own]).runtime.results) if own else results / name


def planned_by_id(gathered: Gathered) -> dict[str, PlannedRun]:
    """run_id -> `PlannedRun`, for the experiments of the report."""
    overrides = list(gathered.overrides)
    if ADHOC not in gathered.planned and not any(o.startswith("experiment=") for o in overrides):
        overrides.append(f"experiment={','.join(name for name in gathered.planned if name != OWN)}")
    return {run.run_id: run for run in requested(gathered.profile, overrides)}


def saved_runs(gathered: Gathered) -> list[tuple[RunRecord, RunConfig]]:
    """The records whose adapter is still in this machine's outputs, each with its configuration."""
    planned, found = planned_by_id(gathered), []
    for run_id, record in sorted(gathered.state.ok.items()):
        if record.adapter is not None and run_id in planned:
            config = compose_run(planned[run_id].overrides)
            if adapter_path(config.runtime.outputs, run_id).exists():
                found.append((record, config))
    return found


def in_table_order(planned: Iterable[Planned]) -> list[Planned]:
    """Sort runs by method and task as the tables list them, independently of the order of training."""
    methods, tasks = list(METHOD_TITLES), list(TASKS)

    def place(p: Planned) -> tuple:
        lora = LORA_SLUG.fullmatch(p.slug)
        size = (len(lora[1]), [*TARGET_TITLES].index(lora[1][0]), lora[1], int(lora[2])) if lora else ()
        return p.model, methods.index(p.method), p.protocol, size, p.slug, p.label, tasks.index(p.task), p.seed

    return sorted(planned, key=place)
