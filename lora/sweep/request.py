"""The runs that a command line asks for. There are three ways to ask.

Without `experiment=`, values select from the grids of the profile, and a setting that no grid names applies to all
runs. With `experiment=NAME`, values that its grid lacks replace those of the grid. With `experiment=null`, the values
are the grid.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from lora.config.compose import CONF, compose_config, describe_group, read_overrides, values_given
from lora.config.own_task import find_task, task_file
from lora.config.rates import rates_path, rates_setting, read_rates
from lora.data.own_task import add_kept_tasks
from lora.data.tasks import Task
from lora.errors import UserError, as_command
from lora.files import at_home
from lora.sweep.expand import PlannedRun, expand_blocks
from lora.sweep.grids import LEARNING_RATE, Values, grid, narrowed, new_values, split_override, values_of

ADHOC = "adhoc"  # in place of an experiment's name: the command's values are the grid


class Request(NamedTuple):
    """What a command line asks for.

    Args:
        given: Key -> its values in command-line syntax, without profile and experiment.
        experiments: The named ones: () for experiment=null, None without `experiment=`.
    """

    profile: str
    given: Values
    experiments: tuple[str, ...] | None


def read_request(profile: str, arguments: Sequence[str]) -> Request:
    """Parse a command line.

    A profile that needs a task and is given none takes the user-defined tasks that its results folder keeps.

    Raises: UserError: If an argument is not an override, or several profiles are named.
    """
    given = dict(map(split_override, read_overrides(arguments)))
    profiles, named = given.pop("profile", [profile]), given.pop("experiment", None)
    if len(profiles) != 1:
        raise UserError(f"profile takes one value in a sweep, got {', '.join(profiles)}")
    kept = add_kept_tasks(results_of(profiles[0], settings_of(given)))
    if kept and "task" not in given and read_profile(profiles[0]).get("task", "") is None:
        given["task"] = kept
    return Request(profiles[0], given, None if named is None else tuple(name for name in named if name != "null"))


def read_profile(profile: str) -> dict[str, Any]:
    """The content of conf/profile/<profile>.yaml. Raises: UserError: If the profile does not exist."""
    if profile not in describe_group("profile"):
        raise UserError(f"profile {profile!r} does not exist; choose from {', '.join(describe_group('profile'))}")
    return yaml.safe_load((CONF / "profile" / f"{profile}.yaml").read_bytes())


def select_runs(profile: str, arguments: Sequence[str], whole: bool = False) -> list[PlannedRun]:
    """The runs that a command line asks for, the longest first.

    Args:
        whole: Whether to use all runs of the profile instead of its default.
    Raises: UserError: If no run is left, a run is invalid, a value is in no grid, a folder of data does not exist, or
        learning rates were chosen on a seed of these runs or not alike for all methods.
    """
    request = read_request(profile, arguments)
    overrides = settings_of(request.given)
    read_own_tasks(overrides)
    setting = rates_setting(overrides, results_of(request.profile, overrides))
    read_rates(rates_path(setting))  # a broken file is one mistake, not one of every run
    grids, chosen = grids_of(request, whole)
    runs = expand_blocks(request.profile, narrowed(grids, chosen), chosen) if grids else []
    if not grids:
        runs = expand_blocks(request.profile, {ADHOC: [request.given]})
    if not runs:
        raise UserError(f"no run of profile {request.profile} has {' '.join(overrides)} together\n{ways_out(request)}")
    for folder in values_given("data.path", overrides):
        if folder is not None and not at_home(str(folder)).is_dir():
            raise UserError(f"data folder {folder} does not exist; set GLUE_DIR= (data.path) to GLUE's files")
    check_tuning(runs, setting)
    return runs


def grids_of(request: Request, whole: bool = False) -> tuple[dict[str, list[Values]], Values]:
    """Experiment -> the blocks of its grid, and the values to narrow them by. No grids with experiment=null.

    Raises: UserError: If the request names no experiment, and no grid of the profile has one of its values.
    """
    profile, given, experiments = request
    if experiments is not None:
        return {name: grid(profile, name) for name in experiments}, given
    default = {} if whole else default_of(request)
    grids = {name: grid(profile, name) for name in default.get("experiment", read_profile(profile)["experiments"])}
    blocks = [block for several in grids.values() for block in several]
    for key, values in given.items():
        if new := new_values(key, values, blocks):
            raise UserError(
                f"{key}={','.join(new)} is in no grid of profile {profile} ({', '.join(grids)}): they have "
                f"{', '.join(values_of(key, blocks))}\n{ways_out(request)}"
            )
    if "start" not in given and "pretrained" in values_of("start", blocks) and any(values_of(k, blocks) for k in given):
        # a start from MNLI trains MNLI too, so it is only selected by name
        for block in (block for block in blocks if "start" in block):
            block["start"] = [value for value in block["start"] if value != "mnli"]
    return grids, {key: values for key, values in default.items() if key != "experiment"} | given


def default_of(request: Request) -> Values:
    """The profile's default: values that hold where the request names no experiment and gives no others.

    {} if the profile has none, or the request gives a key that only the grids of other experiments name.
    """
    settings = read_profile(request.profile)
    if "default" not in settings or request.experiments is not None:
        return {}
    default = {key: [str(value) for value in values] for key, values in settings["default"].items()}
    grids = {name: grid(request.profile, name) for name in settings["experiments"]}
    inside = [block for name in default["experiment"] for block in grids[name]]
    outside = [block for blocks in grids.values() for block in blocks]
    others = [key for key in request.given if values_of(key, outside) and not values_of(key, inside)]
    return {} if others else default


def explain_default(profile: str, arguments: Sequence[str]) -> list[str]:
    """A line for the announcement if the profile's default holds, else none."""
    request = read_request(profile, arguments)
    left = {key: values for key, values in default_of(request).items() if key not in request.given}
    values = " ".join(settings_of(left))
    return [f"default: {values}; experiment=NAME trains others"] if left else []


def selected(profile: str, experiment: str, overrides: Sequence[str]) -> list[PlannedRun]:
    """The runs of an experiment that have the given values. Empty if a value is not in its grid."""
    request, blocks = read_request(profile, overrides), grid(profile, experiment)
    if any(new_values(key, values, blocks) for key, values in request.given.items()):
        return []
    return expand_blocks(request.profile, narrowed({experiment: blocks}, request.given), request.given)


def ways_out(request: Request) -> str:
    """The two other ways to ask for the same values, as commands."""
    first = read_profile(request.profile)["experiments"][0]
    start, settings = ["python", "-m", "lora", "-m", f"profile={request.profile}"], settings_of(request.given)
    named, own = (as_command([*start, f"experiment={name}", *settings]) for name in (first, "null"))
    return f"in a grid:        {named}\nas your own grid: {own}"


def check_tuning(runs: Sequence[PlannedRun], setting: Any) -> None:
    """Check that tuned rates flatter no run, and no method.

    Args:
        setting: The setting `rates`.
    Raises: UserError: If runs of a table of results have a seed that chose learning rates, on which the rates look
        best; or if methods of a task were tuned with different numbers of values, or some not at all.
    """
    path = rates_path(setting)
    rates = read_rates(path)
    tuned = {seed for rate in rates for seed in rate.seeds}
    if seeds := sorted({run.seed for run in runs if run.seed in tuned and set(run.experiments) != {LEARNING_RATE}}):
        raise UserError(
            f"seed must be one on which no learning rate was chosen, got {', '.join(map(str, seeds))}: the rates in "
            f"{path} look best on the seeds they were chosen on; give other seeds, or ignore the file with rates=null"
        )
    sizes = {(*rate.key[:3], rate.method.partition("_")[0], rate.lr): len(rate.tried) for rate in rates}
    tasks: dict[tuple[str, str, str], dict[str, int]] = {}
    for run in runs if sizes else ():
        origin, place = run.config.runtime.rate_from, (run.model, run.protocol, run.task)
        if origin != "stated":
            size = sizes[*place, run.method, run.config.train.lr] if origin == "tuned" else 0
            tasks.setdefault(place, {})[run.method] = size
    for (_, _, task), methods in tasks.items():
        if len(set(methods.values())) > 1:
            tried = ", ".join(f"{method} with {size or 'no'} values" for method, size in methods.items())
            raise UserError(
                f"the methods of a comparison must be tuned alike, got {tried} on {task} ({path}): tune all with "
                f"`python -m lora tune`, task={task} method={','.join(methods)}, or ignore the file with rates=null"
            )


def sweep_settings(profile: str, overrides: Sequence[str]) -> DictConfig:
    """The settings that a whole sweep shares: how and where its runs are trained."""
    shared = [override for override in overrides if override.startswith(("launcher", "runtime.", "rates="))]
    return compose_config([f"profile={profile}", *shared])


def read_own_tasks(overrides: Sequence[str]) -> None:
    """Read the tasks whose files overrides name.

    Raises: UserError: If a file or one of its rows is invalid, or two files of equal name and content lie in different
        folders, as the folds of a cross-validation may: their runs would have the same names.
    """
    tasks: dict[str, Task] = {}
    for path in filter(None, map(task_file, map(str, values_given("task", overrides)))):
        task = find_task(str(path), "")
        other = tasks.setdefault(task.name, task)
        if other.own.folder != task.own.folder:
            raise UserError(
                f"{other.own.folder} and {task.own.folder} both define the task {task.name}: give the two files "
                f"different names, such as {path.stem}_2{path.suffix}"
            )


def settings_of(given: Values) -> list[str]:
    """A request's values as overrides."""
    return [f"{key}={','.join(values)}" for key, values in given.items()]


def results_of(profile: str, overrides: Sequence[str]) -> str:
    """The results folder of a request."""
    return str((values_given("runtime.results", overrides) or [f"results/{profile}"])[-1])
