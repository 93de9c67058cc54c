"""The runs that a command line asks for. There are three ways to ask.

Without `experiment=`, values select from the grids of the profile, and a setting that no grid names applies to all
runs. With `experiment=NAME`, values of its grid select, values that it lacks replace those of the grid, and a mix of
both is refused. With `experiment=null`, the values are the grid. Seeds are free, and so are the methods of `own_task`.
"""

import functools
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from lora.config.auto import Measure
from lora.config.compose import compose_config, read_overrides
from lora.config.plan import ADHOC, CONF, LEARNING_RATE, OWN_TASK, describe_group, planned_tasks, read_profile
from lora.config.rates import rate_of, read_rates
from lora.config.run import SIZE, PlannedRun
from lora.config.select import parse_value, parse_words, place, split_values
from lora.data.own_task import find_task
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.sweep.expand import Values, expand_blocks
from lora.sweep.progress import count_of
from lora.sweep.sizes import HALVES, sized


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
    """Parse a command line. A profile that needs a task takes those that its results folder keeps, if none is given."""
    given: Values = {}
    for override in read_overrides(arguments):
        key, _, text = override.partition("=")
        given[key] = split_values(text)
    profiles, named = given.pop("profile", [profile]), given.pop("experiment", None)
    if len(profiles) != 1:
        raise UserError(f"profile takes one value in a sweep, got {', '.join(profiles)}")
    if "task" not in given and read_profile(profiles[0]).get("task", "") is None:
        results = place(settings_of(given), "runtime.results") or f"results/{profiles[0]}"
        planned = sorted(planned_tasks(results))
        given |= {"task": planned} if planned else {}
    return Request(profiles[0], given, None if named is None else tuple(name for name in named if name != "null"))


def select_runs(
    profile: str, arguments: Sequence[str], whole: bool = False, measure: Measure = "measured"
) -> list[PlannedRun]:
    """The runs that a command line asks for, the longest first.

    Args:
        whole: Whether to use all runs of the profile instead of its default.
        measure: As of `lora.config.compose.compose_family`.
    Raises: UserError: If no run is left, a run is invalid, or a value is in no grid.
    """
    request = read_request(profile, arguments)
    overrides = settings_of(request.given)
    tasks = own_tasks(request.profile, overrides)
    grids, chosen = grids_of(request, whole)
    blocks = narrow(grids, chosen) if grids else {ADHOC: [request.given]}
    for name, of_grid in grids.items():
        if HALVES in values_in(SIZE, of_grid):
            blocks[name] = sized(request.profile, blocks[name], tasks)
    runs = expand_blocks(request.profile, blocks, chosen, tasks, measure)
    if not runs:
        raise UserError(f"no run of profile {request.profile} has {' '.join(overrides)} together\n{ways_out(request)}")
    return runs


def grids_of(request: Request, whole: bool = False) -> tuple[dict[str, list[Values]], Values]:
    """Experiment -> the blocks of its grid, and the values to narrow them by. No grids with experiment=null."""
    profile, given, experiments = request
    if experiments is not None:
        grids = {name: grid(profile, name) for name in experiments}
        for key, values in given.items():
            new = new_values(key, values, [block for blocks in grids.values() for block in blocks])
            if 0 < len(new) < len(values) and not is_free(key, experiments):
                known = [value for value in values if value not in new]
                start = ["python", "-m", "lora", "-m", f"profile={profile}", f"experiment={','.join(experiments)}"]
                select, replace = (shlex.join([*start, *settings_of(given | {key: own})]) for own in (known, new))
                raise UserError(
                    f"{key}={','.join(values)} mixes values of the grid with others ({', '.join(new)})\n"
                    f"runs of the grid:      {select}\nothers in their place: {replace}"
                )
        return grids, given
    settings = read_profile(profile)
    grids = {name: grid(profile, name) for name in settings["experiments"]}
    default = {} if whole else {key: [*map(str, values)] for key, values in settings.get("default", {}).items()}
    if default:
        usual = {name: grids[name] for name in default.pop("experiment")}
        inside, every = ([block for blocks in some.values() for block in blocks] for some in (usual, grids))
        if any(values_in(key, every) and not values_in(key, inside) for key in given):
            default = {}  # the command gives a key that only the other experiments name
        else:
            grids = usual
    blocks = [block for of_grid in grids.values() for block in of_grid]
    for key, values in given.items():
        if not is_free(key) and (new := new_values(key, values, blocks)):
            raise UserError(
                f"{key}={','.join(new)} is in no grid of profile {profile} ({', '.join(grids)}): they have "
                f"{', '.join(values_in(key, blocks))}\n{ways_out(request, {key: new})}"
            )
    if "start" not in given and "pretrained" in values_in("start", blocks) and any(values_in(k, blocks) for k in given):
        # a start from MNLI trains MNLI too, so it is only selected by name
        for block in (block for block in blocks if "start" in block):
            block["start"] = [value for value in block["start"] if value != "mnli"]
    return grids, default | given


def is_free(key: str, experiments: Sequence[str] = ()) -> bool:
    """Whether a key takes any value: the comparison stays what it is with other seeds, or with a user's own methods."""
    return key == "seed" or (key == "method" and {*experiments} == {OWN_TASK})


def grids_text(profile: str, arguments: Sequence[str], runs: Sequence[PlannedRun]) -> list[str]:
    """What a command does to each grid: "6 of 21 runs of lora_targets", or which values replace which."""
    request = read_request(profile, arguments)
    lines, parents = [], {run.parent for run in runs}
    for name, blocks in grids_of(request)[0].items():
        chosen = [run for run in runs if name in run.experiments and run.run_id not in parents]
        beside = [values for key, values in request.given.items() if not values_in(key, blocks)]
        every = sum(math.prod(map(len, [*block.values(), *beside])) for block in blocks)
        replaced = {key: values for key, values in request.given.items() if new_values(key, values, blocks)}
        if HALVES in values_in(SIZE, blocks) and not replaced:
            sizes = sorted({run.train_rows for run in chosen})
            lines.append(f"{len(chosen)} runs of {name}, on {', '.join(map(str, sizes))} train rows")
        elif replaced:
            known = {key: ", ".join(values_in(key, blocks)) for key in replaced}
            words = (f"{key}={','.join(new)} in place of {known[key]}" for key, new in replaced.items())
            held = [fact for key, fact in _content(name).get("equal", {}).items() if key in replaced]
            broken = f"; not at one {' and '.join(dict.fromkeys(held))} any more" if held else ""
            lines.append(f"{name} with {'; '.join(words)}: {count_of(len(chosen), 'run')}{broken}")
        elif any(values_in(key, blocks) for key in request.given):
            lines.append(f"{len(chosen)} of {every} runs of {name}")
    return lines


def ways_out(request: Request, new: Values | None = None) -> str:
    """The two other ways to ask for the same values, as commands. `new`: those that the grids lack."""
    first = read_profile(request.profile)["experiments"][0]
    start = ["python", "-m", "lora", "-m", f"profile={request.profile}"]
    named = shlex.join([*start, f"experiment={first}", *settings_of(request.given | (new or {}))])
    own = shlex.join([*start, "experiment=null", *settings_of(request.given)])
    return f"in a grid:        {named}\nas your own grid: {own}"


def check_tuning(runs: Sequence[PlannedRun], path: Any) -> None:
    """Check that tuned rates flatter no run that is about to be trained, and no method.

    Args:
        path: The setting `rates`.
    Raises: UserError: If runs of a table of results have a seed that chose learning rates, on which the rates look
        best; or if methods of a task were not tuned alike (`Rate.tuned_alike`), or some not at all.
    """
    rates = read_rates(path)
    tuned = {seed for rate in rates for seed in rate.seeds}
    if seeds := sorted({run.seed for run in runs if run.seed in tuned and set(run.experiments) != {LEARNING_RATE}}):
        raise UserError(
            f"seed must be one on which no learning rate was chosen, got {', '.join(map(str, seeds))}: the rates in "
            f"{path} look best on the seeds they were chosen on; give other seeds, or ignore the file with rates=null"
        )
    tasks: dict[tuple[str, str, str, int], dict[str, str]] = {}
    for run in runs if rates else ():
        origin = run.config.runtime.rate_from
        if origin != "stated":
            name = run.config.runtime.rate_name
            alike = rate_of(run, rates).tuned_alike if origin == "tuned" else "no values"
            tasks.setdefault((run.model, run.protocol, run.task.name, run.train_rows), {})[name] = alike
    for (_, _, task, _), methods in tasks.items():
        if len(set(methods.values())) > 1:
            tried = ", ".join(f"{method} with {alike}" for method, alike in methods.items())
            options = ",".join(name for name in methods if " " not in name)
            ways = [f"method={name}" for name in (options, *(name for name in methods if " " in name)) if name]
            raise UserError(
                f"the methods of a comparison must be tuned alike, got {tried} on {task} ({path}): run `python -m lora "
                f"tune` for the same profile, task, encoder and settings, with {', then with '.join(ways)}, and with "
                f"other train.lr=A,B,C where all runs diverged or collapsed; or ignore the file with rates=null"
            )


def sweep_settings(profile: str, overrides: Sequence[str]) -> DictConfig:
    """The settings that a whole sweep shares: how and where its runs are trained."""
    shared = [override for override in overrides if override.startswith(("launcher", "runtime.", "rates="))]
    return compose_config([f"profile={profile}", *shared])


def own_tasks(profile: str, overrides: Sequence[str]) -> dict[str, Task]:
    """Word -> the user-defined task that it names: a file, or a task that the results folder keeps.

    Raises: UserError: If there is no such task, a file or one of its rows is invalid, or two of one name lie in
        different folders, as the folds of a cross-validation may: their runs would have the same names.
    """
    words = [str(word) for word in parse_words(overrides).get("task", ()) if word not in (None, *TASKS)]
    planned = planned_tasks(place(overrides, "runtime.results") or f"results/{profile}") if words else {}
    tasks = {word: find_task(word, planned) for word in words}
    folders: dict[str, Path | None] = {}
    for word, task in tasks.items():
        if (other := folders.setdefault(task.name, task.folder)) != task.folder:
            raise UserError(
                f"{other} and {task.folder} both define the task {task.name}: give the two files "
                f"different names, such as {Path(word).stem}_2.yaml"
            )
    return tasks


def settings_of(given: Values) -> list[str]:
    return [f"{key}={','.join(values)}" for key, values in given.items()]


# The grids.


def grid(profile: str, experiment: str) -> list[Values]:
    """The blocks of an experiment for a profile. Raises: UserError: If it has none for the profile."""
    blocks = _content(experiment)["grid"]
    if profile not in blocks:
        raise UserError(f"experiment {experiment} has no grid for profile {profile!r}; it has: {', '.join(blocks)}")
    return [
        {key: [*map(_text, values if isinstance(values, list) else [values])] for key, values in block.items()}
        for block in blocks[profile]
    ]


@functools.cache
def _content(experiment: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_bytes())


def grids_for(profile: str) -> dict[str, list[Values]]:
    """Experiment -> the blocks of its grid, for all that have a grid for a profile."""
    return {name: grid(profile, name) for name in describe_group("experiment") if profile in _content(name)["grid"]}


def values_in(key: str, blocks: Sequence[Values]) -> list[str]:
    """All values of a key in the blocks, each once."""
    return list(dict.fromkeys(value for block in blocks for value in block.get(key, ())))


def new_values(key: str, values: Sequence[str], blocks: Sequence[Values]) -> list[str]:
    """The values that no block has, of a key that some block names. [] for any other key."""
    known = [parse_value(text) for text in values_in(key, blocks)]
    return [text for text in values if known and parse_value(text) not in known]


def narrow(grids: Mapping[str, Sequence[Values]], given: Values) -> dict[str, list[Values]]:
    """The grids with a command's values.

    Values that the grids have select: blocks without any of them drop out. Otherwise, the values replace those of every
    block that names the key. A key that no block names is set in all blocks.

    Args:
        grids: Experiment -> its blocks.
    """
    every = [block for blocks in grids.values() for block in blocks]
    kept = {name: [dict(block) for block in blocks] for name, blocks in grids.items()}
    for key, values in given.items():
        known = values_in(key, every)
        replaces = not known or new_values(key, values, every)
        wanted = [parse_value(text) for text in values]
        for block in (block for blocks in kept.values() for block in blocks if key in block or not known):
            own = block.get(key, ())
            block[key] = values if replaces else [text for text in own if parse_value(text) in wanted]
    return {name: [block for block in blocks if all(block.values())] for name, blocks in kept.items()}


def _text(value: Any) -> str:
    """A YAML value in Hydra's command-line syntax."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
