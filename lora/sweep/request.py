"""The runs that a command line requests: those of experiments, a profile's default, or an ad hoc grid."""

from collections.abc import Iterable, Sequence
from typing import Any

from lora.config.compose import check_overrides
from lora.config.options import describe_group
from lora.config.rates import rates_path, rates_setting, tuned_seeds
from lora.data.own_task import add_kept_tasks
from lora.errors import UserError
from lora.sweep.expand import PlannedRun, expand, read_profile, results_of
from lora.sweep.grids import LEARNING_RATE, Replacement, Values, apply_overrides, grid, split_override, values_of


def requested(profile: str, arguments: Sequence[str], whole: bool = False) -> list[PlannedRun]:
    """The runs that a command line requests.

    With `experiment=`, they are the runs of these experiments; values that a grid lacks replace its own. Without it, a
    list of values (`seed=1,2`) makes the arguments an ad hoc grid, and single values select from the profile's runs. If
    nothing is selected, the profile's default applies, or all of its runs if it has no default. A profile that names no
    task takes the user-defined tasks kept in its results folder.

    Args:
        whole: Whether to use all runs of the profile instead of its default.
    Raises: UserError: As in `expand`, `read_request`, `add_kept_tasks` and `refuse_tuned`.
    """
    default = {} if whole else default_of(profile, arguments)
    profile, given, experiments = read_request(profile, arguments)
    if default:
        experiments, given = default.pop("experiment"), default | given
    adhoc = is_adhoc(given, experiments)
    overrides = [f"{key}={','.join(values)}" for key, values in given.items()]
    results = results_of(profile, overrides)
    kept = add_kept_tasks(results)
    if kept and "task" not in given and profile in describe_group("profile") and needs_task(profile):
        overrides.append(f"task={','.join(kept)}")
    runs = expand(profile, overrides, experiments, adhoc)
    refuse_tuned(runs, rates_setting(overrides, results))
    return runs


def refuse_tuned(runs: Iterable[PlannedRun], setting: Any) -> None:
    """Refuse runs of a table of results on a seed that chose learning rates.

    Args:
        setting: The setting `rates`.
    Raises: UserError: If there are any.
    """
    tuned = tuned_seeds(setting)
    if found := sorted({run.seed for run in runs if run.seed in tuned and set(run.experiments) != {LEARNING_RATE}}):
        raise UserError(
            f"seed must be one on which no learning rate was chosen, got {', '.join(map(str, found))}: the rates in "
            f"{rates_path(setting)} look best on the seeds they were chosen on, so no table of results has these; give "
            f"other seeds, or ignore the file with rates=null"
        )


def default_of(profile: str, arguments: Sequence[str]) -> Values:
    """The profile's default selection. {} if it has none, or the command line makes a selection.

    A command line selects by naming experiments, by a list of values, or by a key that any grid of the profile varies.
    """
    profile, given, experiments = read_request(profile, arguments)
    settings = read_profile(profile)
    if "default" not in settings:
        return {}
    grids = [grid(profile, name) for name in settings["experiments"]]
    if experiments or is_adhoc(given, experiments) or any(values_of(key, blocks) for blocks in grids for key in given):
        return {}
    return {key: [str(value) for value in values] for key, values in settings["default"].items()}


def read_request(profile: str, arguments: Sequence[str]) -> tuple[str, Values, list[str] | None]:
    """
    Returns: The profile, the other overrides, and the named experiments (None without `experiment=`).
    Raises: UserError: If an argument is not an override, or several profiles are named.
    """
    check_overrides(arguments)
    given = dict(map(split_override, arguments))
    profiles, experiments = given.pop("profile", [profile]), given.pop("experiment", None)
    if len(profiles) != 1:
        raise UserError(f"profile takes one value in a sweep, got {', '.join(profiles)}")
    return profiles[0], given, experiments


def is_adhoc(given: Values, experiments: Sequence[str] | None) -> bool:
    """Whether the overrides alone are the grid."""
    return experiments is None and any(len(values) > 1 for values in given.values())


def needs_task(profile: str) -> bool:
    """Whether a profile requires the command line to name a task."""
    return read_profile(profile).get("task", "") is None


def replacements(profile: str, arguments: Sequence[str]) -> list[Replacement]:
    """The replacements of values that a command line makes in the experiments it names."""
    profile, given, experiments = read_request(profile, arguments)
    if experiments is None:
        return []
    return [new for name in experiments for new in apply_overrides({name: grid(profile, name)}, given)[1]]


def how_to_run(overrides: Sequence[str]) -> list[str]:
    """The overrides that state how and where runs are trained. They can be composed without a run."""
    return [override for override in overrides if override.startswith(("launcher", "runtime."))]
