"""From the grids of experiments, narrowed by overrides, to the runs that they are, each with what composes it."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora.config.compose import compose_run, is_untuned, local_encoders, parent_overrides
from lora.config.kernel_choice import gpu_has_bf16, has_gpu
from lora.config.options import CONF, conf_files, describe_group
from lora.config.own_task import own_tasks
from lora.config.precision_choice import machine_precisions
from lora.config.rates import pinned_rates, rates_setting, rates_state
from lora.config.run import RunConfig
from lora.config.variants import Variant, variant
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT, write_atomically
from lora.sweep.grids import (
    Block,
    Values,
    apply_overrides,
    grid,
    refuse_unknown,
    split_override,
)

# What the runs of a command follow from, besides conf/.
CODE_OF_RUNS = (
    *("*.py", "config/*.py", "data/tasks.py", "data/definition.py", "data/own_*.py", "data/table_files.py"),
    *("methods/configs.py", "records/machine.py"),
    *("sweep/expand.py", "sweep/grids.py"),
)


@dataclass(frozen=True)
class PlannedRun:
    """One run that an experiment expects.

    Args:
        overrides: What composes it from conf/.
        experiments: All that expect it; a run shared by several is trained once.
        parent: The run_id of the MNLI run that it starts from, which is in the same sweep.
        train_rows: Size of the subset of the train split; None takes all of it.
        given, usual: What sets it apart from other runs of its method (`lora.config.variants.Variant`).
        untuned: Whether its learning rate was not chosen for its task (`lora.config.compose.is_untuned`).
        examples: Number of train examples that it will see; a measure of its length.
        tokens: Upper bound of the same in tokens: every example padded to its maximum length.
    """

    run_id: str
    overrides: tuple[str, ...]
    experiments: tuple[str, ...]
    model: str
    method: str
    slug: str
    task: str
    seed: int
    protocol: str
    start: str
    parent: str | None
    train_rows: int | None
    given: tuple[str, ...]
    usual: tuple[str, ...]
    untuned: bool
    examples: int
    tokens: int


def read_profile(profile: str) -> dict[str, Any]:
    """The content of conf/profile/<profile>.yaml. Raises: UserError: If the profile does not exist."""
    if profile not in describe_group("profile"):
        raise UserError(f"profile {profile!r} does not exist; choose from {', '.join(describe_group('profile'))}")
    return yaml.safe_load((CONF / "profile" / f"{profile}.yaml").read_bytes())


def results_of(profile: str, overrides: Sequence[str]) -> str:
    """The folder of results that overrides name, else the profile's."""
    given = [override for override in overrides if override.startswith("runtime.results=")]
    return str(OverridesParser.create().parse_override(given[-1]).value()) if given else f"results/{profile}"


def selected(profile: str, experiment: str, overrides: Sequence[str]) -> list[PlannedRun]:
    """The runs of an experiment that the overrides select; none if they name a value that its grid does not have."""
    given = dict(map(split_override, overrides))
    blocks, new = apply_overrides({experiment: grid(profile, experiment)}, given)
    return _cached(profile, overrides, [experiment], False) if blocks[experiment] and not new else []


def expand(
    profile: str, overrides: Sequence[str] = (), experiments: Sequence[str] | None = None, adhoc: bool = False
) -> list[PlannedRun]:
    """All runs of a profile, in the order in which they should run, each once.

    Args:
        overrides: Hydra overrides, each with one value or several (`seed=1,2`). They narrow the grids of the
            experiments (`lora.sweep.grids.apply_overrides`).
        experiments: Only these, whose values may be replaced; None means the profile's own list.
        adhoc: The overrides alone are the grid; no experiment is expanded.
    Raises: UserError: If something named does not exist, no run is left, or any run is invalid; all invalid runs are
        listed.
    """
    read_profile(profile)  # raises if it does not exist
    runs = _cached(profile, overrides, experiments, adhoc)
    if not runs:
        raise UserError(
            f"no run of profile {profile} has {', '.join(overrides)} together; give a list of values for a grid of "
            f"your own, or leave out -m for a single run"
        )
    return runs


def _cached(profile: str, overrides: Sequence[str], experiments: Sequence[str] | None, adhoc: bool) -> list[PlannedRun]:
    """`_expand`, read back from outputs/cache/ where the same was asked before."""
    tasks = [(task.name, task.official_rows) for task in own_tasks(overrides)]  # read here, so that TASKS has them
    request = (profile, overrides, experiments, adhoc, local_encoders(overrides), tasks)
    try:
        return [PlannedRun(**_with_tuples(entry)) for entry in json.loads(_cache(*request).read_bytes())]
    except (OSError, ValueError, TypeError):
        runs = _expand(profile, overrides, experiments, adhoc)
        with contextlib.suppress(UserError):  # a clone that cannot be written: it is expanded again each time
            # the file is named once more, since the precision may just have been measured
            write_atomically(_cache(*request), json.dumps([asdict(run) for run in runs]).encode())
        return runs


def _cache(profile: str, overrides: Sequence[str], *request: Any) -> Path:
    """The file that keeps the runs of a request on this machine."""
    results = results_of(profile, overrides)
    machine = (has_gpu(), has_gpu() and gpu_has_bf16(), machine_precisions(results))
    key = _cache_key(profile, overrides, *request, machine, rates_state(rates_setting(overrides, results)))
    return ROOT / "outputs" / "cache" / "runs" / f"{key}.json"


def _expand(profile: str, overrides: Sequence[str], experiments: Sequence[str] | None, adhoc: bool) -> list[PlannedRun]:
    return expand_blocks(profile, _blocks(profile, overrides, experiments, adhoc))


def expand_blocks(profile: str, blocks: Mapping[str, Sequence[Block]]) -> list[PlannedRun]:
    """All runs of these blocks, as `expand`.

    Args:
        blocks: Experiment -> its blocks.
    """
    found: dict[str, PlannedRun] = {}
    problems: list[str] = []
    for experiment, several in blocks.items():
        for block in several:
            for values in itertools.product(*block.axes.values()):
                settings = (f"{key}={value}" for key, value in zip(block.axes, values, strict=True))
                own = (f"profile={profile}", *settings)
                try:
                    config = compose_run(own)
                except UserError as error:
                    problems.append(f"{experiment}: {' '.join(own)}: {error}")
                    continue
                if not _holds(config, own, block.held):
                    continue
                wanted = [(config, own)]
                if config.start == "mnli":
                    above = parent_overrides(own, config)
                    wanted.insert(0, (compose_run(above), above))
                for each, composed_by in wanted:
                    known = found.get(each.run_id)
                    names = dict.fromkeys((*(known.experiments if known else ()), experiment))
                    saves = known is not None and "runtime.save_adapter=true" in known.overrides
                    by = known.overrides if saves else composed_by
                    found[each.run_id] = _planned(each, by, tuple(names), variant(each, base_run(each, composed_by)))
    if problems:
        raise UserError(f"{len(problems)} runs are invalid:\n" + "\n".join(problems))
    return sorted(found.values(), key=lambda run: -run.examples)  # longest first; the sort keeps the grid's order


def _blocks(
    profile: str, overrides: Sequence[str], experiments: Sequence[str] | None, adhoc: bool
) -> Mapping[str, Sequence[Block]]:
    given = dict(map(split_override, overrides))
    if adhoc:
        return {"adhoc": [Block(given)]}
    if experiments is not None:  # each by itself: a value that another experiment has replaces here too
        return {name: apply_overrides({name: grid(profile, name)}, given)[0][name] for name in experiments}
    names = read_profile(profile)["experiments"]
    blocks, new = apply_overrides({name: grid(profile, name) for name in names}, given)
    refuse_unknown(profile, new)
    return blocks


def _holds(config: RunConfig, overrides: tuple[str, ...], held: Values) -> bool:
    """Whether a run has these settings already, one of the values of each: to set them would give the same run."""
    for values in itertools.product(*held.values()):
        settings = [f"{key}={value}" for key, value in zip(held, values, strict=True)]
        try:
            if compose_run([*overrides, *settings]).run_id == config.run_id:
                return True
        except UserError:  # a setting that this run does not have, or a value that it cannot have
            continue
    return False


def _planned(config: RunConfig, overrides: tuple[str, ...], experiments: tuple[str, ...], apart: Variant) -> PlannedRun:
    rows = config.data.train_rows or TASKS[config.task].official_rows["train"]
    # a worker may be another machine than the launcher, and the file of rates may change before it starts
    pins = (
        pinned_rates(rates_setting(overrides, config.runtime.results), overrides, config),
        f"train.precision={config.train.precision}",
        f"train.kernels={config.train.kernels}",
        f"model.attention={config.model.attention}",
    )
    kept = tuple(override for override in overrides if not override.startswith("rates="))
    return PlannedRun(
        run_id=config.run_id,
        overrides=(*kept, *(pin for pin in pins if pin not in kept)),
        experiments=experiments,
        model=config.model.name,
        method=config.method.name,
        slug=config.method.slug,
        task=config.task,
        seed=config.seed,
        protocol=config.protocol,
        start=config.start,
        parent=config.start_run,
        train_rows=config.data.train_rows,
        given=apart.given,
        usual=apart.usual,
        untuned=TASKS[config.task].own is not None and is_untuned(overrides),
        examples=rows * config.train.epochs,
        tokens=rows * config.train.epochs * config.data.max_length,
    )


def base_run(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run that conf/ makes of the same groups, task and seed; the run itself where it makes none."""
    kept = (
        *("profile=", "model=", "model.path=", "method=", "protocol=", "data.source=", "runtime.device="),
        *("runtime.results=", "rates="),  # whose runs keep their precision, and rates
    )
    chosen = [override for override in overrides if override.startswith(kept)]
    try:
        return compose_run([*chosen, f"task={config.task}", f"seed={config.seed}"], config.train.precision)
    except UserError:  # the protocol has no row for it, so that every setting was given
        return config


def _cache_key(*request: Any) -> str:
    digest = hashlib.sha256(json.dumps(request).encode())
    code = sorted(path for pattern in CODE_OF_RUNS for path in (ROOT / "lora").glob(pattern))
    for path in (*conf_files(), *code):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
