"""The plan of a folder of results: the runs that were asked for, settled and named. A launch adds to it; all others
read it.

`plan.json` holds what the runs are, and no path. `launch.json` beside it, which git ignores, notes where the last
launch found rows and encoder, for readers that need them.
"""

import dataclasses
import functools
import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from lora.checks import SettingsError, build
from lora.config.rates import TUNING
from lora.config.run import EPOCHS, LENGTH, PlannedRun, RunConfig, RuntimeConfig, needs_stock, run_config
from lora.config.select import parse_words, place
from lora.data.own_task import Kept, find_task, kept_facts, kept_tasks, make_task
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, first_line
from lora.files import ROOT, cached_by_file, exclusive, outputs_of, read_object, write_changed
from lora.records.record import RunRecord, load_records

CONF = ROOT / "conf"
PLAN_SCHEMA = 1
PLAN_FILE, LAUNCH, LOCK = "plan.json", "launch.json", "plan.lock"
ADHOC, OWN_TASK = "adhoc", "own_task"  # in place of an experiment: a grid of the command's own; a user's task
COMPARING = ("glue_table2", OWN_TASK)  # the experiments that compare methods
LEARNING_RATE = "learning_rate"  # the experiment that chose the rates of conf/; in no table of results
ROWS = "rows"  # the experiment over numbers of train rows
OF_RUN = ("seed", "start_seed", "start_run")  # what tells the runs of a group apart


@dataclass(frozen=True)
class Choice:
    """What `auto` became for an encoder in this folder. `stock`: for methods that the fused kernels lack."""

    model: str
    stock: bool
    kernels: str
    attention: str
    precision: str


@dataclass(frozen=True)
class Group:
    """What the runs of a group share: all settings but `OF_RUN`, runtime and paths, and how they were asked for."""

    settings: dict
    options: dict[str, str]
    stated: dict
    rate_from: Literal["stated", "tuned", "conf", "default"] | None
    rate_name: str | None


@dataclass(frozen=True)
class Entry:
    """A planned run. No experiments: a later launch asked for another in its place."""

    group: str
    experiments: tuple[str, ...]
    seed: int
    start_seed: int | None = None
    start_run: str | None = None
    save_adapter: bool = False


@dataclass(frozen=True)
class Stored:
    """The content of plan.json."""

    schema: int
    groups: dict[str, Group]
    runs: dict[str, Entry]
    tasks: dict[str, Kept]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Plan:
    """The runs that were asked for, by run_id; and a line per entry that is broken."""

    runs: dict[str, PlannedRun]
    choices: tuple[Choice, ...] = ()
    problems: tuple[str, ...] = ()


# Reading.


def read_plan(results: str | Path) -> Plan:
    """The plan of a folder. One without a file, of an older version, has the plan that its records give.

    Raises: UserError: If the file is not a plan that this version reads.
    """
    for path, read in ((Path(results) / PLAN_FILE, _read_plan), (Path(results) / "runs", _plan_of_records)):
        with suppress(FileNotFoundError, NotADirectoryError):
            return read(path)
    return Plan({})


@cached_by_file
def _read_plan(path: Path) -> Plan:
    content = read_object(path)
    if content.get("schema") != PLAN_SCHEMA:
        raise UserError(f"{path} has schema {content.get('schema')!r}, and this version reads schema {PLAN_SCHEMA}")
    try:
        stored = build(Stored, content)
    except SettingsError as error:
        raise UserError(f"{path} is not a plan: {first_line(error)}") from error
    tasks = {**TASKS, **{name: make_task(name, kept, str(path)) for name, kept in stored.tasks.items()}}
    runs = {}
    problems = []
    first = {}
    for run_id, entry in stored.runs.items():
        try:
            runs[run_id] = run_of_entry(path.parent, entry, stored, tasks, first)
            if runs[run_id].run_id != run_id:
                raise UserError(f"its settings give the name {runs.pop(run_id).run_id}")
        except UserError as error:
            problems.append(f"{path}: entry {run_id!r}: {first_line(error)}")
    return Plan(runs, stored.choices, tuple(problems))


def run_of_entry(
    folder: Path, entry: Entry, stored: Stored, tasks: Mapping[str, Task], first: dict[str, RunConfig]
) -> PlannedRun:
    """The run of an entry. `first`: group -> the settings of its first run, which are checked once."""
    if unknown := {*entry.experiments} - {*describe_group("experiment"), ADHOC, TUNING}:
        raise UserError(f"experiment {min(unknown)!r} does not exist")
    if entry.group not in stored.groups:
        raise UserError(f"group {entry.group!r} does not exist")
    group = stored.groups[entry.group]
    name = str(group.settings.get("task"))
    if name not in tasks:
        raise UserError(f"task {name!r} is not in the plan")
    runtime = RuntimeConfig(
        *(str(folder), outputs_of(str(folder)), "auto", 1, entry.save_adapter, False),
        group=next(iter(entry.experiments), None),
        rate_from=group.rate_from,
        rate_name=group.rate_name,
    )
    own = {key: getattr(entry, key) for key in OF_RUN}
    if entry.group not in first:
        settings = {**group.settings, **own, "runtime": dataclasses.asdict(runtime)}
        first[entry.group] = run_config(settings, tasks[name])
    config = replace(first[entry.group], **own, runtime=runtime)
    return PlannedRun(config, tasks[name], entry.experiments, group.options, group.stated)


@functools.cache
def describe_group(name: str) -> tuple[str, ...]:
    """The options of a config group: the names of its files in conf/. () if there is none."""
    return tuple(sorted(path.stem for path in (CONF / name).glob("*.yaml")))


def check_options(group: str, *options: Any) -> None:
    """Raises: UserError: If the group lacks one of the options."""
    for option in options:
        if option not in describe_group(group):
            raise UserError(f"{group} must be one of {', '.join(describe_group(group))}, got {option!r}")


def read_profile(profile: str) -> dict[str, Any]:
    """The content of conf/profile/<profile>.yaml. Raises: UserError: If the profile does not exist."""
    check_options("profile", profile)
    return yaml.safe_load((CONF / "profile" / f"{profile}.yaml").read_bytes())


@cached_by_file
def _plan_of_records(path: Path) -> Plan:
    """The plan that a folder of records gives: each is in the experiment for which it was first trained."""
    tasks = {**TASKS, **kept_tasks(path.parent)}
    counts = Counter()
    runs: dict[str, PlannedRun] = {}
    for record in load_records(path.parent)[0]:
        run = run_of(record, tasks)
        if isinstance(run, PlannedRun) and run.run_id == record.run_id:
            runs[run.run_id] = replace(run, stated={**run.stated, "run_id": run.run_id})  # never replaced
            counts[choice_of(run)] += record.status == "ok"
    return Plan(runs, tuple(choice for choice, _ in counts.most_common()))


def run_of(record: RunRecord, tasks: Mapping[str, Task]) -> PlannedRun | str:
    """The run that a record describes, or why this version does not know it."""
    task = tasks.get(record.config["task"])
    if task is None:
        return f"{record.run_id} is of task {record.config['task']!r}, not defined here: launch it with task=FILE"
    try:
        config = run_config(record.config, task)
    except SettingsError as error:
        return f"{record.run_id} has settings of another version: {error.problems[0]}"
    usual = ADHOC if task.own is None else OWN_TASK
    experiment = config.runtime.group if config.runtime.group in describe_group("experiment") else usual
    method = (config.runtime.rate_name or config.method.name).partition(" ")[0]
    options = {"method": method, "model": config.model.name, "protocol": config.protocol}
    stated = {EPOCHS: config.train.epochs, LENGTH: config.data.max_length}  # as far as is known
    return PlannedRun(config, task, (str(experiment),), options, stated)


def choice_of(run: PlannedRun) -> Choice:
    config = run.config
    stock = needs_stock(dataclasses.asdict(run.config.method))
    return Choice(run.model, stock, config.train.kernels, config.model.attention, config.train.precision)


# Writing.


@contextmanager
def locked(folder: Path) -> Iterator[Plan]:
    """Hold the lock of a folder's plan. Yields: The plan. Raises: UserError: If it is broken or cannot be written."""
    with exclusive(folder / LOCK):
        plan = read_plan(folder)
        if plan.problems:
            raise UserError(f"{plan.problems[0]}; nothing was changed: mend the entry, or remove it from the file")
        yield plan


def add_to_plan(results: str | Path, asked: Iterable[PlannedRun]) -> Plan:
    """Add runs, and what `auto` became for them, to a folder's plan. Returns: The plan.

    A run that is there keeps its experiments, and its adapter is saved if it ever was to be. Where runs answer the
    same question (`question`), the last ones asked for are expected, and the others stay with no experiment.
    """
    folder = Path(results)
    with locked(folder) as plan:
        runs, new = dict(plan.runs), {run.run_id: run for run in asked}
        answers = {(name, question(run)) for run in new.values() for name in run.experiments}
        for run_id, run in plan.runs.items():
            if run_id not in new:
                left = tuple(name for name in run.experiments if (name, question(run)) not in answers)
                runs[run_id] = replace(run, experiments=left)
        for run_id, run in new.items():
            before = plan.runs.get(run_id, run)
            names = dict.fromkeys((*before.experiments, *run.experiments))
            less = (TUNING, ADHOC) if {*names} & {*COMPARING} else (TUNING,)  # a main table has it already
            named = tuple(name for name in names if name not in less) or tuple(names)
            saves = before.config.runtime.save_adapter or run.config.runtime.save_adapter
            first = before if run.experiments == (TUNING,) else run  # tune leaves how a table's run was asked for
            runtime = replace(run.config.runtime, save_adapter=saves, rate_from=first.config.runtime.rate_from)
            config = replace(run.config, runtime=runtime)
            runs[run_id] = replace(run, config=config, experiments=named, stated=first.stated)
        choices = tuple(dict.fromkeys((*plan.choices, *map(choice_of, new.values()))))
        note_launch(folder, new.values())
        write_plan(folder, plan := replace(plan, runs=runs, choices=choices))
        return plan


def question(run: PlannedRun) -> str:
    """What a run was asked for: everything but what conf/, tuned rates and the machine add, and the epochs that follow
    from a number of train rows."""
    stated = {key: value for key, value in run.stated.items() if key != EPOCHS or ROWS not in run.experiments}
    asked = (run.model, dict(run.options), stated, run.task.name, run.start, run.seed)
    return json.dumps((*asked, run.config.data.train_rows), sort_keys=True)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a plan, if it differs from the file's. The caller holds its lock."""
    write_changed(folder / PLAN_FILE, plan_json(plan))


def plan_json(plan: Plan) -> bytes:
    groups, entries, tasks = {}, {}, {}
    for run_id, run in plan.runs.items():
        settings = dataclasses.asdict(run.config)
        runtime = settings.pop("runtime")
        own = {key: settings.pop(key) for key in OF_RUN}
        settings["data"]["path"] = settings["model"]["path"] = None
        rates = (runtime["rate_from"], runtime["rate_name"])
        group = dataclasses.asdict(Group(settings, dict(run.options), dict(run.stated), *rates))
        name = hashlib.sha256(json.dumps(group, sort_keys=True).encode()).hexdigest()[:12]
        groups[name] = group
        entry = {"group": name, "experiments": run.experiments, **own, "save_adapter": runtime["save_adapter"]}
        entries[run_id] = {key: value for key, value in entry.items() if value is not None and value is not False}
        if run.task.own is not None:
            tasks[run.task.name] = kept_facts(run.task)
    content = {"schema": PLAN_SCHEMA, "groups": groups, "runs": entries, "tasks": tasks}
    content["choices"] = [dataclasses.asdict(choice) for choice in plan.choices]
    return f"{json.dumps(content, sort_keys=True, indent=0, ensure_ascii=False, allow_nan=False)}\n".encode()


# Places.


@dataclass(frozen=True)
class Launch:
    """Where the last launches into a folder found rows and encoder, and left checkpoints.

    Args:
        results: The folder itself: a copy of it has no checkpoints there.
        tasks: Name -> folder.
    """

    results: str | None = None
    data: str | None = None
    model: str | None = None
    outputs: str | None = None
    tasks: dict[str, str] = field(default_factory=dict)


def read_launch(folder: Path) -> Launch:
    path = folder / LAUNCH
    try:
        return build(Launch, read_object(path)) if path.exists() else Launch()
    except UserError:  # a broken one, which the next launch writes anew
        return Launch()


def outputs_here(folder: Path, words: Sequence[str]) -> str:
    """Where checkpoints and adapters of a folder's runs lie: as the command says, or as the last launch did."""
    noted = read_launch(folder)
    there = noted.outputs if noted.results == str(folder.absolute()) else None
    return place(words, "runtime.outputs") or there or outputs_of(str(folder))


def note_launch(folder: Path, runs: Iterable[PlannedRun]) -> None:
    """Note where a launch finds the rows and the encoder of its runs. The caller holds the plan's lock."""
    noted = dataclasses.asdict(read_launch(folder)) | {"results": str(folder.absolute())}
    for run in runs:
        config = run.config
        paths = {"data": config.data.path, "model": config.model.path, "outputs": config.runtime.outputs}
        noted |= {key: str(Path(path).absolute()) for key, path in paths.items() if path is not None}
        noted["tasks"] |= {} if run.task.folder is None else {run.task.name: str(run.task.folder)}
    write_changed(folder / LAUNCH, f"{json.dumps(noted, indent=1, sort_keys=True)}\n".encode())


def planned_tasks(results: str | Path) -> dict[str, Task]:
    """Name -> the task, of the user-defined ones of a plan, with the folders of the last launch."""
    tasks = {run.task.name: run.task for run in read_plan(results).runs.values() if run.task.own is not None}
    for name, folder in read_launch(Path(results)).tasks.items():
        if name in tasks and Path(folder).is_dir():
            tasks[name] = replace(tasks[name], folder=Path(folder))
    return tasks


def trained_by(folder: Path, profile: str, words: Sequence[str]) -> str:
    """`COMMAND trains them`, of the runs of words, or why none does. Raises: UserError: Without such a one."""
    for key, values in parse_words(words).items():
        check_options(key, *(value for value in values if describe_group(key) and value is not None))
    planned = planned_tasks(folder)
    own = [find_task(str(task), planned) for task in parse_words(words).get("task", planned) if task not in TASKS]
    if profile == "own" and not own:
        return "a task of profile own is a file of yours, task=FILE"
    encoder, options = read_launch(folder).model, {run.options.get("model") for run in read_plan(folder).runs.values()}
    if encoder and options == {"local"} and not any(word.startswith("model") for word in words):
        words = [*words, "model=local", f"model.path={encoder}"]  # else the profile's own would be trained
    return f"{shlex.join([sys.executable, '-m', 'lora', '-m', f'profile={profile}', *words])} trains them"
