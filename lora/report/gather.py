"""Read a folder of records, and find the runs that are missing there.

What a run was is read from its record, and which runs were asked for from the folder's plan.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lora.config.plan import Plan, outputs_here, planned_tasks, read_launch, read_plan, read_profile, run_of, trained_by
from lora.config.rates import RATES_FILE, TUNING, Rate, rate_of, read_rates
from lora.config.run import PlannedRun, run_config
from lora.config.select import filter_runs, parse_words, place
from lora.data.own_task import definition_name, read_task, task_file
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.files import REFERENCE, RESULTS
from lora.records.predictions import with_collapsed
from lora.records.record import RunRecord, adapter_path, load_frame, load_records
from lora.report.experiments import ADHOC, EXPERIMENTS, LEARNING_RATE, MAIN, OWN, OWN_TASK
from lora.report.runs import PLACE, facts_of, in_table_order, shared_settings, with_edges, with_labels, with_records
from lora.sweep.state import State, sweep_state


@dataclass(frozen=True)
class Gathered:
    """The runs of a report.

    Args:
        results, reference: The folders that hold the user's own results, and the committed ones.
        tasks: Name -> task, of the user-defined ones too. The rows of one whose file the command names are at hand.
        runs: The runs of the tables of results (`lora.report.runs`), experiment by experiment, in the tables' order.
        tried: The runs by which the learning rates of conf/ were chosen, which stay out of the tables of results.
        tuning: The records that `python -m lora tune` made; in no table of results.
        frame: `load_frame` of the `ok` records, with the column `collapsed` (`lora.records.predictions`).
        state: The missing and failed runs, and extra or broken records; the `ok` records are in `state.ok`.
        every_ok: All `ok` records of the folder, selected or not: analyses are made from them.
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
    rates: tuple[Rate, ...]
    tuning: tuple[RunRecord, ...]
    frame: pd.DataFrame
    state: State
    every_ok: Mapping[str, RunRecord]

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

    @property
    def own_runs(self) -> pd.DataFrame:
        """The runs of the main tables on user-defined tasks."""
        return self.runs[self.runs["kind"].eq("own") & self.runs["experiment"].isin(MAIN)]

    @cached_property
    def every(self) -> pd.DataFrame:
        """Each run once, in the tables' order."""
        return in_table_order(self.runs.drop_duplicates("run_id", keep="last"))

    def command(self, name: str) -> str:
        """A command about these runs, as it works when typed here."""
        python = "python" if self.is_reference else sys.executable
        unknown = any(self.tasks[task].is_definition_only for task in self.runs["task"].unique())
        needs_rows = name in ("analyse intervals", "analyse rows") and unknown and place(self.overrides, "task") is None
        words = [*name.split(), self.name, *self.overrides, *(["task=FILE"] if needs_rows else [])]
        return shlex.join([python, "-m", "lora", *words])


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that reads a profile's records."""
    parser.add_argument("profile", help="a profile, or reference/<profile>: the folder below results/")
    parser.add_argument(
        "overrides", nargs="*", help="which of the planned runs, such as task=mrpc seed=1,2; where files lie now"
    )


def gather(name: str, overrides: Sequence[str] = (), results: Path | None = None) -> Gathered:
    """Read a profile's plan and records, and find the runs that are missing.

    Args:
        name: A profile, or `reference/<profile>` for the committed runs.
        overrides: Settings that select runs (`lora.config.select`), and places.
        results: The folder that holds the user's results and `reference`. None: `results` in the current folder, as
            for a sweep, and the committed reference.
    Raises: UserError: If the profile does not exist, no run of it is selected, or records of a task were made from
        different rows.
    """
    profile, own = Path(name).name, Path("results") if results is None else results
    reference = (RESULTS if results is None else results) / REFERENCE
    given = place(overrides, "runtime.results")
    folder = Path(given) if given else (reference if Path(name).parent.name == REFERENCE else own) / profile
    is_reference = folder.resolve() == (reference / profile).resolve()
    read_profile(profile)
    plan = read_plan(folder)
    records, problems = load_records(folder)
    tasks = dict(TASKS) | planned_tasks(folder)
    for path in filter(None, map(task_file, parse_words(overrides).get("task", ()))):  # whose rows may have moved
        name, here = definition_name(path), path.resolve().parent
        tasks[name] = replace(tasks[name], folder=here) if name in tasks else read_task(path)
    known, unknown = known_runs(plan, records, tasks)
    asked = filter_runs(known.values(), overrides)
    if known and not asked:
        none = f"none of the {len(known)} runs of {folder} has {' '.join(overrides)}"
        raise UserError(f"{none}: {trained_by(folder, profile, overrides)}")
    by_tune = {run.run_id for run in known.values() if run.experiments == (TUNING,)}
    rates = read_rates(place(overrides, "rates") or folder / RATES_FILE)
    flattered = {run.run_id for run in known.values() if is_flattered(run, rates)}
    expected = [run for run in asked if run.experiments and run.run_id not in by_tune | flattered]
    left = known.keys() - {run.run_id for run in asked}  # of other settings than those selected
    there = [record for record in records if record.run_id not in left]
    state = sweep_state(expected, there, [*plan.problems, *problems, *unknown])
    shown = known.keys() - by_tune
    ok = {record.run_id: record for record in there if record.status == "ok" and record.run_id in shown}
    extra = tuple(run_id for run_id in state.extra if run_id not in {*ok, *by_tune})
    frame, broken = with_collapsed(load_frame(list(ok.values())), ok.values(), folder, tasks)
    state = replace(state, ok=ok, extra=extra, problems=(*state.problems, *broken))
    refuse_mixed_rows(frame)
    wanted = by_experiment(expected, parse_words(overrides).get("experiment"))
    runs = frame_of(wanted, {run_id: known[run_id] for run_id in sorted(ok)}, frame)
    is_rate = runs["experiment"] == LEARNING_RATE
    where = (profile, folder, own, reference, is_reference, tuple(overrides), tasks)
    tuning = tuple(record for record in records if record.run_id in by_tune)
    every_ok = {record.run_id: record for record in records if record.status == "ok"}
    tried = runs[is_rate]
    return Gathered(*where, with_edges(runs[~is_rate], tried), tried, rates, tuning, frame, state, every_ok)


def is_flattered(run: PlannedRun, rates: Sequence[Rate]) -> bool:
    """Whether a run has the rate that was chosen on its seed, on which it looks best."""
    rate = rate_of(run, rates)
    chosen = rate is not None and run.seed in rate.seeds and run.config.train.lr == rate.lr
    return chosen and run.experiments != (LEARNING_RATE,)


def frame_of(
    wanted: Mapping[str, Sequence[PlannedRun]], trained: Mapping[str, PlannedRun], records: pd.DataFrame
) -> pd.DataFrame:
    """The runs of each experiment with their records and labels, in the tables' order.

    Args:
        trained: run_id -> run, of all with a record: others than the wanted ones are shown too.
    """
    hidden = {run.parent for run in wanted["mnli_start"]}  # whose table does not show them
    starts = {"mnli_start": [run for run in wanted["mnli_start"] if run.run_id not in hidden]}
    listed = [(name, run) for name, runs in {**wanted, **starts}.items() for run in runs]
    listed.sort(key=lambda of_name: of_name[1].run_id not in trained)  # of two that are the same, a trained one
    named = {run.run_id for _, run in listed} | hidden
    others = facts_of([(OWN, run) for run_id, run in trained.items() if run_id not in named])
    every = with_records(place_others(facts_of(listed), others), records)
    main = every[every["experiment"].isin(MAIN)]
    tables = []
    for name, experiment in EXPERIMENTS.items():
        if len(own := every[every["experiment"] == name]):
            compared = pd.concat([main, own]) if name == OWN else own  # other runs say in what they differ
            unnamed = [*experiment.columns, *shared_settings(own, experiment.unnamed, experiment.columns)]
            runs = with_labels(compared, main, unnamed)
            tables.append(in_table_order(runs[runs["experiment"] == name]))
    return pd.concat(tables) if tables else every


def known_runs(
    plan: Plan, records: Iterable[RunRecord], tasks: Mapping[str, Task]
) -> tuple[dict[str, PlannedRun], list[str]]:
    """run_id -> run, of the plan and of other `ok` records that this version names by their settings; and a message for
    each record whose task or settings it does not know."""
    known, unknown = dict(plan.runs), []
    for record in records:
        if record.status == "ok" and record.run_id not in known:
            run = run_of(record, tasks)
            if isinstance(run, str):
                unknown.append(run)
            elif run.run_id == record.run_id:
                known[run.run_id] = run if run.experiments == (TUNING,) else replace(run, experiments=())
    return known, unknown


def by_experiment(runs: Sequence[PlannedRun], given: Sequence[Any] | None) -> dict[str, list[PlannedRun]]:
    """Experiment -> its runs. Runs of a command's own grid stand among the others where there is a main table.

    Args:
        given: The experiments that a command names: only these have runs. [None] (experiment=null): all runs stand in
            one table, whatever asked for them.
    """
    if given == [None]:
        runs = [replace(run, experiments=(ADHOC if run.task.own is None else OWN_TASK,)) for run in runs]
    names = [name for name in EXPERIMENTS if given in (None, [None]) or name in given]
    wanted = {name: [run for run in runs if name in names and name in run.experiments] for name in EXPERIMENTS}
    return wanted | ({ADHOC: []} if any(wanted[name] for name in MAIN if name != ADHOC) else {})


def place_others(expected: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The expected runs and others: next to the same runs of another encoder, or in a table of their own."""
    if expected.empty:
        return others.assign(experiment=[ADHOC if task in TASKS else OWN_TASK for task in others["task"]])
    main = expected[expected["experiment"].isin(MAIN)]
    places = main[["experiment", *PLACE]].drop_duplicates()
    beside = others[~others["model"].isin(main["model"])].drop(columns="experiment").merge(places, on=PLACE)
    return pd.concat([expected, beside, others[~others["run_id"].isin(beside["run_id"])]], ignore_index=True)


def refuse_mixed_rows(frame: pd.DataFrame) -> None:
    """Check that records of one task were made from the same dev rows, where they say so, and those on all train rows
    or on a part of one size from the same train rows too."""
    asked = frame["train_rows"].where(frame["is_part"].eq(True), 0)
    of_task = [(f"{split}_fingerprint", ["task"]) for split in ("dev", "train", "test")]
    for column, keys in (("fingerprint", [frame["task"], asked, frame["draw"]]), *of_task):
        for (task, *_), runs in frame.dropna(subset=column).groupby(keys):
            by_rows = runs.drop_duplicates(column)["run_id"]
            if len(by_rows) > 1:
                raise UserError(
                    f"records of {task} were made from different rows, so they share no table: {', '.join(by_rows)}; "
                    f"for a results folder of its own, add runtime.results=FOLDER"
                )


def run_here(record: RunRecord, gathered: Gathered) -> PlannedRun:
    """The run of a record, with the places of this machine: those that the command names, or the last launch noted."""
    task, noted = gathered.tasks[record.config["task"]], read_launch(gathered.folder)
    model, data = (dict(record.config[section]) for section in ("model", "data"))
    data["source"] = place(gathered.overrides, "data.source") or data["source"]
    if data["source"] in ("tsv", "parquet"):
        data["path"] = place(gathered.overrides, "data.path") or noted.data or data["path"]
    if model["source"] == "local":
        model["path"] = place(gathered.overrides, "model.path") or noted.model or model["path"]
    runtime = record.config["runtime"] | {"outputs": outputs_here(gathered.folder, gathered.overrides)}
    settings = record.config | {"model": model, "data": data, "runtime": runtime}
    return PlannedRun(run_config(settings, task), task)


def saved_runs(gathered: Gathered) -> list[tuple[RunRecord, PlannedRun]]:
    """The records whose adapter is in this machine's outputs, each with its run."""
    outputs = outputs_here(gathered.folder, gathered.overrides)
    records = sorted(gathered.state.ok.items())
    saved = [one for run_id, one in records if one.adapter and adapter_path(outputs, run_id).exists()]
    return [(record, run_here(record, gathered)) for record in saved]
