"""Read a folder of records, and find the runs that are missing there.

What a run was is read from its record. The sweep is asked only which runs its experiments expect.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from lora.checks import SettingsError
from lora.config.compose import compose_config, values_given
from lora.config.rates import FILE, TUNING, Rate, read_rates
from lora.config.run import PlannedRun, run_config
from lora.data.own_task import kept_tasks
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.files import REFERENCE, RESULTS
from lora.records.predictions import with_collapsed
from lora.records.record import RunRecord, adapter_path, load_frame, load_records
from lora.report.runs import (
    ADHOC,
    HEAD_RATE,
    LAYERS,
    MAIN,
    OWN,
    OWN_TASK,
    PLACE,
    SUCCESSORS,
    UNTOLD,
    facts_of,
    in_table_order,
    labelled,
    with_records,
)
from lora.sweep.expand import State, state_of
from lora.sweep.request import LEARNING_RATE, experiments_of, own_tasks, select_runs, selected

# in reading order
EXPERIMENTS = (
    *(*MAIN, LAYERS, HEAD_RATE, "lora_targets", "lora_ranks", SUCCESSORS, "mnli_start", "length"),
    *(LEARNING_RATE, OWN),
)
OF_MACHINES = ("train.precision", "train.kernels", "model.attention")  # settings that may depend on the machine
SHARED = ("task", "data.", "runtime.results", "runtime.outputs", "rates")  # say nothing about encoder and method


@dataclass(frozen=True)
class Gathered:
    """The runs of a report.

    Args:
        folder: The folder of the records.
        results, reference: The folders that hold the user's own results, and the committed ones.
        is_reference: Whether these are the reference (the committed runs).
        tasks: Name -> task, of the user-defined ones too. The rows of one whose file the command names are at hand.
        runs: The runs of the tables of results (`lora.report.runs`), experiment by experiment, in the tables' order.
        tried: The runs by which the learning rates of conf/ were chosen, which stay out of the tables of results.
        tuning: The records that `python -m lora tune` made; in no table of results.
        frame: `load_frame` of the `ok` records, with the column `collapsed` (`lora.records.predictions`).
        state: The missing and failed runs, and extra or broken records; the `ok` records are in `state.ok`.
    """

    profile: str
    folder: Path
    results: Path
    reference: Path
    is_reference: bool
    overrides: tuple[str, ...]
    tasks: Mapping[str, Task]
    runs: pd.DataFrame
    tried: pd.DataFrame
    tuning: tuple[RunRecord, ...]
    frame: pd.DataFrame
    state: State

    @property
    def name(self) -> str:
        """The name in tables and pages: the folder below results/."""
        return f"{REFERENCE}/{self.profile}" if self.is_reference else self.profile

    @property
    def efficiency(self) -> Path:
        """The folder of the measurements that accompany the runs: the reference's, or this machine's."""
        return (self.reference if self.is_reference else self.results) / "efficiency"

    @property
    def is_own(self) -> bool:
        """Whether all runs are on user-defined tasks, which no claim of the paper is about."""
        return len(self.runs) > 0 and set(self.runs["kind"]) == {"own"}

    @cached_property
    def every(self) -> pd.DataFrame:
        """Each run once, in the tables' order."""
        return in_table_order(self.runs.drop_duplicates("run_id", keep="last"))

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The user's tuned rates."""
        return read_rates((values_given("rates", self.overrides) or [self.folder / FILE])[-1])

    def command(self, name: str) -> str:
        """A command about these runs, as it works when typed here."""
        python = "python" if self.is_reference else sys.executable
        unknown = any(self.tasks[task].is_definition_only for task in self.runs["task"].unique())
        needs_rows = name == "analyse intervals" and unknown and not values_given("task", self.overrides)
        words = [*name.split(), self.name, *self.overrides, *(["task=FILE"] if needs_rows else [])]
        return shlex.join([python, "-m", "lora", *words])


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that reads a profile's records."""
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument(
        "overrides", nargs="*", help="the overrides that the sweep was launched with, such as seed=1,2 data.path=FOLDER"
    )


def gather(name: str, overrides: Sequence[str] = (), results: Path | None = None) -> Gathered:
    """Read a profile's records, and find those that are missing.

    Args:
        name: A profile, or `reference/<profile>` for the committed runs.
        overrides: The sweep's overrides, so that the same runs are expected.
        results: The folder that holds the user's results and `reference`. None: `results` in the current folder, as
            for a sweep, and the committed reference.
    Raises: UserError: If the profile does not exist, or its records were made from different rows.
    """
    profile, own = Path(name).name, Path("results") if results is None else results
    reference = (RESULTS if results is None else results) / REFERENCE
    given = values_given("runtime.results", overrides)
    folder = Path(given[-1]) if given else (reference if Path(name).parent.name == REFERENCE else own) / profile
    is_reference = folder.resolve() == (reference / profile).resolve()
    tasks = dict(TASKS) | kept_tasks(folder) | {task.name: task for task in own_tasks(overrides).values()}
    records, problems = load_records(folder)
    known, unknown = known_runs(records, tasks)
    by_tune = {r.run_id: r for r in records if r.config["runtime"].get("group") == TUNING}
    pinned = as_recorded(known.values(), overrides, is_reference)
    try:
        wanted = wanted_runs(profile, overrides, pinned, known.keys() - by_tune.keys(), is_reference)
    except UserError:  # a setting of the records may not fit another encoder of the profile
        wanted = wanted_runs(profile, overrides, [], known.keys() - by_tune.keys(), is_reference)
    state = state_of([run for runs in wanted.values() for run in runs], records, [*problems, *unknown])
    tuning = {run_id: record for run_id, record in by_tune.items() if run_id in state.extra}
    ok = {r.run_id: r for r in records if r.run_id in known.keys() - tuning.keys()}
    extra = tuple(run_id for run_id in state.extra if run_id not in {*ok, *tuning})
    frame, broken = with_collapsed(load_frame(list(ok.values())), ok.values(), folder, tasks)
    state = replace(state, ok=ok, extra=extra, problems=(*state.problems, *broken))
    refuse_mixed_rows(frame)
    dropped = OF_MACHINES if is_reference else ()  # the committed files are the same on every machine
    parents = {run.parent for run in wanted.get("mnli_start", ())}  # whose table does not show them
    listed = [(n, r) for n, runs in wanted.items() for r in runs if n != "mnli_start" or r.run_id not in parents]
    expected = {run.run_id for _, run in listed} | parents
    others = facts_of([(OWN, known[run_id]) for run_id in sorted(ok) if run_id not in expected], dropped)
    every = with_records(placed(facts_of(listed, dropped), others), frame)
    main = every[every["experiment"].isin(MAIN)]
    found = [(n, every[every["experiment"] == n]) for n in EXPERIMENTS if n in set(every["experiment"])]
    tables = []
    for n, of_name in found:
        compared = pd.concat([main, of_name]) if n == OWN else of_name  # other runs say in what they differ
        names = labelled(compared, main, UNTOLD.get(n, ()), n != "mnli_start")
        tables.append(in_table_order(names[names["experiment"].eq(n)]))
    runs = pd.concat(tables) if tables else every
    is_rate = runs["experiment"] == LEARNING_RATE
    where = (profile, folder, own, reference, is_reference, tuple(overrides), tasks)
    return Gathered(*where, runs[~is_rate], runs[is_rate], tuple(tuning.values()), frame, state)


def known_runs(records: Iterable[RunRecord], tasks: Mapping[str, Task]) -> tuple[dict[str, PlannedRun], list[str]]:
    """run_id -> run, for the `ok` records that this version names by their settings; and a message for each whose
    task or settings it does not know."""
    known, unknown = {}, []
    for record in records:
        if record.status == "ok":
            if (name := record.config["task"]) not in tasks:
                unknown.append(f"{record.run_id} is of task {name!r}, whose definition is not in the folder")
                continue
            try:
                run = PlannedRun(run_config(record.config, tasks[name]), tasks[name])
            except SettingsError as error:
                unknown.append(f"{record.run_id} has settings of another version: {error.problems[0]}")
                continue
            known |= {record.run_id: run} if run.run_id == record.run_id else {}
    return known, unknown


def as_recorded(runs: Iterable[PlannedRun], overrides: Sequence[str], is_reference: bool) -> list[str]:
    """The settings that depend on the machine, as overrides with the records' values: names are the same on all."""
    if not is_reference and any(override.startswith("model") for override in overrides):
        return []  # perhaps of another encoder than the records
    added = ["rates=null"] if is_reference else []  # the user's own rates do not affect the reference
    for key in OF_MACHINES:
        section, _, name = key.partition(".")
        values = {getattr(getattr(run.config, section), name) for run in runs}
        if len(values) == 1 and not values_given(key, overrides):
            added.append(f"{key}={values.pop()}")
    return added


def wanted_runs(
    profile: str, overrides: Sequence[str], pinned: Sequence[str], present: Set[str], whole: bool
) -> dict[str, list[PlannedRun]]:
    """Experiment -> its expected runs: the requested ones, and those of other experiments that have records.

    If the command names neither encoder nor method, and nothing that it expects was trained, the records alone are
    shown: they are of another encoder. `pinned`: more overrides (`as_recorded`); `present`: the run_ids of the records.
    """
    asked = [*overrides, *pinned]
    runs = select_runs(profile, asked, whole)
    wanted = {name: [run for run in runs if name in run.experiments] for name in EXPERIMENTS}
    if not values_given("experiment", asked) and not wanted[ADHOC]:
        unasked = present - {run.run_id for run in runs}
        for name in (name for name in EXPERIMENTS if unasked and name in experiments_of(profile)):
            more = selected(profile, name, asked)
            if unasked & {run.run_id for run in more}:
                wanted[name] = more
    every = {run.run_id for runs in wanted.values() for run in runs}
    if present and every.isdisjoint(present) and all(override.startswith(SHARED) for override in overrides):
        return {}
    return wanted


def placed(expected: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The expected runs and others: next to the same runs of another encoder, or in a table of their own."""
    if expected.empty:
        return others.assign(experiment=[ADHOC if task in TASKS else OWN_TASK for task in others["task"]])
    main = expected[expected["experiment"].isin(MAIN)]
    places = main[["experiment", *PLACE]].drop_duplicates()
    beside = others[~others["model"].isin(main["model"])].drop(columns="experiment").merge(places, on=PLACE)
    return pd.concat([expected, beside, others[~others["run_id"].isin(beside["run_id"])]], ignore_index=True)


def refuse_mixed_rows(frame: pd.DataFrame) -> None:
    """Check that records of one task, on all train rows or on a part of one size, were made from the same rows."""
    asked = frame["train_rows"].where(frame["is_part"].eq(True), 0)
    for (task, _), runs in frame.groupby([frame["task"], asked]):
        if runs["fingerprint"].nunique() > 1:
            by_rows = runs.drop_duplicates("fingerprint")["run_id"]
            raise UserError(
                f"records of {task} were made from different rows, so they share no table: {', '.join(by_rows)}; "
                f"for a results folder of its own, add runtime.results=FOLDER"
            )


def run_here(record: RunRecord, gathered: Gathered) -> PlannedRun:
    """The run of a record, with the folders of this machine, which the command names if they are needed."""
    settings, task = dict(record.config), gathered.tasks[record.config["task"]]
    for section, key in (("model", "path"), ("data", "path"), ("data", "source")):
        if given := values_given(f"{section}.{key}", gathered.overrides):
            settings[section] = settings[section] | {key: given[-1]}
    return PlannedRun(run_config(settings, task), task)


def saved_runs(gathered: Gathered) -> list[tuple[RunRecord, PlannedRun]]:
    """The records whose adapter is in this machine's outputs, each with its run and that folder."""
    given = [override for override in gathered.overrides if override.startswith("runtime.")]
    outputs = compose_config([f"profile={gathered.profile}", *given]).runtime.outputs
    saved = []
    for run_id, record in sorted(gathered.state.ok.items()):
        if record.adapter and adapter_path(outputs, run_id).exists():
            run = run_here(record, gathered)
            runtime = replace(run.config.runtime, outputs=outputs)
            saved.append((record, replace(run, config=replace(run.config, runtime=runtime))))
    return saved
