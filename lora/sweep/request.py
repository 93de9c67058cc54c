"""The runs that a command line asks for. There are three ways to ask.

Without `experiment=`, values select from the grids of the profile, and a setting that no grid names applies to all
runs. With `experiment=NAME`, values that its grid lacks replace those of the grid. With `experiment=null`, the values
are the grid.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from lora.config.compose import compose_config
from lora.config.options import CONF, describe_group, read_overrides, values_given
from lora.config.own_task import own_tasks
from lora.config.rates import rates_path, rates_setting, read_rates, tuned_seeds
from lora.data.own_task import add_kept_tasks
from lora.errors import UserError, as_command
from lora.files import at_home
from lora.sweep.expand import PlannedRun, expand_blocks
from lora.sweep.grids import LEARNING_RATE, Block, Values, grid, narrowed, new_values, split_override, values_of

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
    profile, overrides = request.profile, settings_of(request.given)
    own_tasks(overrides)
    setting = rates_setting(overrides, results_of(profile, overrides))
    read_rates(rates_path(setting))  # a broken file is one mistake, not one of every run
    runs = expand_blocks(profile, blocks_of(request, whole))
    if not runs:
        raise UserError(f"no run of profile {profile} has {' '.join(overrides)} together\n{ways_out(request)}")
    for folder in values_given("data.path", overrides):
        if folder is not None and not at_home(str(folder)).is_dir():
            raise UserError(f"data folder {folder} does not exist; set GLUE_DIR= (data.path) to GLUE's files")
    refuse_tuned_seeds(runs, setting)
    refuse_unequal_tuning(runs, setting)
    return runs


def blocks_of(request: Request, whole: bool = False) -> dict[str, list[Block]]:
    """Experiment -> the blocks that the request leaves of its grid.

    Raises: UserError: If the request names no experiment, and no grid of the profile has one of its values.
    """
    profile, given, experiments = request
    if experiments is not None:
        own = {name: narrowed({name: grid(profile, name)}, given)[name] for name in experiments}
        return own or {ADHOC: [Block(given)]}
    every = {name: grid(profile, name) for name in read_profile(profile)["experiments"]}
    default = {} if whole else default_of(request)
    grids = {name: every[name] for name in default.get("experiment", every)}
    blocks = [block for several in grids.values() for block in several]
    if unknown := {key: new for key, values in given.items() if (new := new_values(key, values, blocks))}:
        key, values = next(iter(unknown.items()))
        raise UserError(
            f"{key}={','.join(values)} is in no grid of profile {profile} ({', '.join(grids)}), which "
            f"{'have' if len(grids) > 1 else 'has'} {', '.join(values_of(key, blocks))}\n{ways_out(request)}"
        )
    selects = any(values_of(key, blocks) for key in given)
    chosen = {key: values for key, values in default.items() if key != "experiment"} | given
    if selects and "start" not in given and "pretrained" in values_of("start", blocks):
        # a start from MNLI trains MNLI too, so it is only selected by name
        grids = {name: [Block(_without_mnli(block.axes)) for block in several] for name, several in grids.items()}
    return narrowed(grids, chosen)


def _without_mnli(axes: Values) -> Values:
    return {key: [v for v in values if (key, v) != ("start", "mnli")] for key, values in axes.items()}


def default_of(request: Request) -> Values:
    """The profile's default: values that hold where the request names no experiment and gives no others.

    {} if the profile has none, or the request gives a key that only the grids of other experiments name.
    """
    settings = read_profile(request.profile)
    default = {key: [str(value) for value in values] for key, values in settings.get("default", {}).items()}
    if not default or request.experiments is not None:
        return {}
    grids = {name: grid(request.profile, name) for name in settings["experiments"]}
    inside = [block for name in default["experiment"] for block in grids[name]]
    outside = [block for blocks in grids.values() for block in blocks]
    others = [key for key in request.given if values_of(key, outside) and not values_of(key, inside)]
    return {} if others else default


def explain_request(profile: str, arguments: Sequence[str]) -> list[str]:
    """Lines for the announcement: the default that holds, or the grid that the command's values make."""
    request = read_request(profile, arguments)
    profile, given, experiments = request
    if experiments == ():
        return [f"grid:    your own, every combination of {' '.join(settings_of(request.given))}"]
    if default := default_of(request):
        left = [f"{key}={','.join(values)}" for key, values in default.items() if key not in given]
        others = [name for name in describe_group("experiment") if name not in default["experiment"]]
        return [f"default: {' '.join(left)}; experiment=NAME trains others ({', '.join(others)})"]
    return [
        f"grid:    {name} with {key}={','.join(values)} in place of {', '.join(values_of(key, grid(profile, name)))}"
        for name in experiments or ()
        for key, values in given.items()
        if new_values(key, values, grid(profile, name))
    ]


def selected(profile: str, experiment: str, overrides: Sequence[str]) -> list[PlannedRun]:
    """The runs of an experiment that have the given values. Empty if a value is not in its grid."""
    request, blocks = read_request(profile, overrides), grid(profile, experiment)
    if any(new_values(key, values, blocks) for key, values in request.given.items()):
        return []
    return expand_blocks(request.profile, narrowed({experiment: blocks}, request.given))


def ways_out(request: Request) -> str:
    """The two other ways to ask for the same values, as commands."""
    first = read_profile(request.profile)["experiments"][0]
    start, settings = ["python", "-m", "lora", "-m", f"profile={request.profile}"], settings_of(request.given)
    named, own = (as_command([*start, f"experiment={name}", *settings]) for name in (first, "null"))
    return f"in a grid:        {named}\nas your own grid: {own}"


def refuse_tuned_seeds(runs: Sequence[PlannedRun], setting: Any) -> None:
    """
    Args:
        setting: The setting `rates`.
    Raises: UserError: If runs of a table of results have a seed that chose learning rates.
    """
    tuned = tuned_seeds(setting)
    if seeds := sorted({run.seed for run in runs if run.seed in tuned and set(run.experiments) != {LEARNING_RATE}}):
        raise UserError(
            f"seed must be one on which no learning rate was chosen, got {', '.join(map(str, seeds))}: the rates in "
            f"{rates_path(setting)} look best on the seeds they were chosen on, so no table of results has these; give "
            f"other seeds, or ignore the file with rates=null"
        )


def refuse_unequal_tuning(runs: Sequence[PlannedRun], setting: Any) -> None:
    """
    Args:
        setting: The setting `rates`.
    Raises: UserError: If methods of a task were tuned with different numbers of values, or some not at all: a
        comparison would favour what was tuned most.
    """
    path = rates_path(setting)
    sizes = {(*rate.key[:3], rate.method.partition("_")[0], rate.lr): len(rate.tried) for rate in read_rates(path)}
    tasks: dict[tuple[str, str, str], dict[str, int]] = {}
    for run in runs if sizes else ():
        config, place = run.config, (run.model, run.protocol, run.task)
        if config.runtime.rate_from != "stated":
            tuned = config.runtime.rate_from == "tuned"
            tasks.setdefault(place, {})[run.method] = sizes[*place, run.method, config.train.lr] if tuned else 0
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


def settings_of(given: Values) -> list[str]:
    """A request's values as overrides."""
    return [f"{key}={','.join(values)}" for key, values in given.items()]


def results_of(profile: str, overrides: Sequence[str]) -> str:
    """The results folder of a request."""
    return str((values_given("runtime.results", overrides) or [f"results/{profile}"])[-1])
