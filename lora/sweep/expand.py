"""Which cells a profile's experiments expect, which are done, and what the rest will cost."""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lora.config.compose import (
    CONF,
    check_overrides,
    compose_config,
    compose_run,
    conf_files,
    describe_group,
    local_encoders,
    parent_overrides,
)
from lora.config.kernel_choice import gpu_has_bf16, has_gpu
from lora.config.precision_choice import machine_precisions
from lora.config.run import RunConfig
from lora.config.variants import Variant, variant
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT, write_atomically
from lora.records.record import RunRecord, load_records

CODE_OF_CELLS = ("checks.py", "data/tasks.py", "methods/configs.py", "sweep/expand.py")
CODE_OF_CELLS += ("config/run.py", "config/compose.py", "config/kernel_choice.py", "config/variants.py")
CODE_OF_CELLS += ("config/precision_choice.py", "records/machine.py")


@dataclass(frozen=True)
class Cell:
    """One run that an experiment expects.

    Args:
        overrides: What composes it from conf/.
        experiments: All that expect it; a cell shared by several is trained once.
        parent: The run_id of the MNLI run that it starts from, which is a cell of the same sweep.
        train_rows: Of a part of the train split; None takes all of it.
        given, usual: What sets it apart from other runs of its method (`lora.config.variants.Variant`).
        examples: Train examples it will see; a measure of its length.
        tokens: The same at most in tokens, none padded away.
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
    examples: int
    tokens: int


def requested(profile: str, arguments: Sequence[str]) -> list[Cell]:
    """The cells that a command line asks for.

    With `experiment=`, or without any list of values (`seed=1,2`), they are those of the experiments; otherwise the
    arguments themselves are the grid.
    """
    check_overrides(arguments)
    given = dict(map(split_override, arguments))
    profiles, experiments = given.pop("profile", [profile]), given.pop("experiment", None)
    if len(profiles) != 1:
        raise UserError(f"profile takes one value in a sweep, got {', '.join(profiles)}")
    overrides = [f"{key}={','.join(values)}" for key, values in given.items()]
    adhoc = experiments is None and any(len(values) > 1 for values in given.values())
    return expand(profiles[0], overrides, experiments, adhoc)


def expand(
    profile: str, overrides: Sequence[str] = (), experiments: Sequence[str] | None = None, adhoc: bool = False
) -> list[Cell]:
    """All cells of a profile, in the order in which they should run, each once.

    Args:
        overrides: Hydra overrides that hold for every cell; one that names a key of a grid replaces its values there,
            and may list several (`seed=1,2`).
        experiments: Only these; None means the profile's own list.
        adhoc: The overrides alone are the grid; no experiment is expanded.
    Raises: UserError: If something named does not exist, or any cell is invalid; all invalid cells are listed.
    """
    if profile not in describe_group("profile"):
        raise UserError(f"profile {profile!r} does not exist; here are: {', '.join(describe_group('profile'))}")
    request = (profile, overrides, experiments, adhoc, local_encoders(overrides))
    try:
        return [Cell(**_with_tuples(entry)) for entry in json.loads(_cache(*request).read_bytes())]
    except (OSError, ValueError, TypeError):
        cells = _expand(profile, overrides, experiments, adhoc)
        with contextlib.suppress(UserError):  # a clone that cannot be written: it is expanded again each time
            # the file is named once more, since the precision may just have been measured
            write_atomically(_cache(*request), json.dumps([asdict(cell) for cell in cells]).encode())
        return cells


def _cache(profile: str, overrides: Sequence[str], *request: Any) -> Path:
    """The file that keeps the cells of a request on this machine."""
    given = [override for override in overrides if override.startswith("runtime.results=")]
    results = OverridesParser.create().parse_override(given[-1]).value() if given else f"results/{profile}"
    machine = (has_gpu(), has_gpu() and gpu_has_bf16(), machine_precisions(str(results)))
    key = _cache_key(profile, overrides, *request, machine)
    return ROOT / "outputs" / "cache" / "cells" / f"{key}.json"


def _expand(profile: str, overrides: Sequence[str], experiments: Sequence[str] | None, adhoc: bool) -> list[Cell]:
    fixed = [f"profile={profile}"]
    given = dict(map(split_override, overrides))
    if adhoc:
        blocks = {"adhoc": [{}]}
    else:
        names = experiments or list(compose_config(fixed).profile.experiments)
        blocks = {name: grid(profile, name) for name in names}
    found: dict[str, Cell] = {}
    problems: list[str] = []
    for experiment, products in blocks.items():
        for block in products:
            keys = {**block, **given}
            for values in itertools.product(*keys.values()):
                cell_overrides = (*fixed, *(f"{key}={value}" for key, value in zip(keys, values, strict=True)))
                try:
                    config = compose_run(cell_overrides)
                except UserError as error:
                    problems.append(f"{experiment}: {' '.join(cell_overrides)}: {error}")
                    continue
                wanted = [(config, cell_overrides)]
                if config.start == "mnli":
                    above = parent_overrides(cell_overrides, config)
                    wanted.insert(0, (compose_run(above), above))
                for run, composed_by in wanted:
                    cell = found.get(run.run_id)
                    names = dict.fromkeys((*(cell.experiments if cell else ()), experiment))
                    by = cell.overrides if cell and "runtime.save_adapter=true" in cell.overrides else composed_by
                    found[run.run_id] = _cell(run, by, tuple(names), variant(run, base_run(run, composed_by)))
    if problems:
        raise UserError(f"{len(problems)} cells are invalid:\n" + "\n".join(problems))
    return sorted(found.values(), key=lambda cell: -cell.examples)  # longest first; the sort keeps the grid's order


def _cell(config: RunConfig, overrides: tuple[str, ...], experiments: tuple[str, ...], apart: Variant) -> Cell:
    rows = config.data.train_rows or TASKS[config.task].official_rows["train"]
    # a worker may be another machine than the launcher
    pins = (f"train.precision={config.train.precision}", f"train.kernels={config.train.kernels}")
    pins += (f"model.attention={config.model.attention}",)
    return Cell(
        run_id=config.run_id,
        overrides=(*overrides, *(pin for pin in pins if pin not in overrides)),
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
        examples=rows * config.train.epochs,
        tokens=rows * config.train.epochs * config.data.max_length,
    )


def base_run(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run that conf/ makes of the same groups, task and seed; the run itself where it makes none."""
    kept = ("profile=", "model=", "model.path=", "method=", "protocol=", "data.source=", "runtime.device=")
    kept += ("runtime.results=",)  # whose runs keep their precision
    chosen = [override for override in overrides if override.startswith(kept)]
    try:
        return compose_run([*chosen, f"task={config.task}", f"seed={config.seed}"], config.train.precision)
    except UserError:  # the protocol has no row for it, so that every setting was given
        return config


def grid(profile: str, experiment: str) -> list[dict[str, list[str]]]:
    """The blocks of an experiment for a profile: each a product of overrides.

    Raises: UserError: If the experiment does not exist or has no grid for the profile.
    """
    if experiment not in describe_group("experiment"):
        raise UserError(
            f"experiment {experiment!r} does not exist; here are: {', '.join(describe_group('experiment'))}"
        )
    blocks = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))["grid"]
    if profile not in blocks:
        raise UserError(f"experiment {experiment} has no grid for profile {profile!r}; it has: {', '.join(blocks)}")
    return [
        {
            key: [_override_value(v) for v in (values if isinstance(values, list) else [values])]
            for key, values in block.items()
        }
        for block in blocks[profile]
    ]


def _override_value(value: Any) -> str:
    """A YAML value as Hydra's command line writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(_override_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_override_value(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def split_override(override: str) -> tuple[str, list[str]]:
    """`key=a,b` as its key and values; commas inside brackets do not split.

    Raises: UserError: If there is no `=`.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UserError(
            f"{override!r} is not an override of the form key=value: {str(error).splitlines()[0]}"
        ) from error
    key = override.split("=", 1)[0]
    if parsed.is_sweep_override():
        return key, list(parsed.sweep_string_iterator())
    return key, [override.split("=", 1)[1]]


def _cache_key(*request: Any) -> str:
    digest = hashlib.sha256(json.dumps(request).encode())
    for path in (*conf_files(), *(ROOT / "lora" / name for name in CODE_OF_CELLS)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@dataclass(frozen=True)
class State:
    """Where a sweep stands: its cells by what there is of each, and records that no cell expects."""

    ok: dict[str, RunRecord]
    failed: dict[str, RunRecord]
    missing: tuple[Cell, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]


def state(cells: Iterable[Cell], results: str | Path) -> State:
    return state_of(cells, *load_records(results))


def state_of(cells: Iterable[Cell], records: Sequence[RunRecord], problems: Sequence[str]) -> State:
    by_id = {record.run_id: record for record in records}
    cells = list(cells)
    wanted = {cell.run_id for cell in cells}
    return State(
        ok={i: r for i, r in by_id.items() if i in wanted and r.status == "ok"},
        failed={i: r for i, r in by_id.items() if i in wanted and r.status == "failed"},
        missing=tuple(cell for cell in cells if cell.run_id not in by_id),
        extra=tuple(sorted(set(by_id) - wanted)),
        problems=tuple(problems),
    )


def estimator(known: Iterable[RunRecord]) -> Callable[[Cell], float | None]:
    """How long a cell should take, from records of the same model: same method and task first, then less alike.

    Returns: A function to the median of seconds per train example of the most similar records, times the cell's
        examples; None when the model was never trained.
    """
    rates: dict[str, dict[tuple[str, str], list[float]]] = {}
    for record in known:
        config = record.config
        if record.status == "ok":
            seen = record.provenance["data"]["rows"]["train"] * config["train"]["epochs"]
            kind = (config["task"], config["method"]["name"])
            rates.setdefault(config["model"]["name"], {}).setdefault(kind, []).append(record.seconds / seen)

    @functools.cache
    def rate(model: str, task: str, method: str) -> float | None:
        for alike in ((True, True), (False, True), (True, False), (False, False)):
            values = sorted(
                value
                for (other_task, other_method), found in rates.get(model, {}).items()
                if (other_task == task, other_method == method) == alike
                for value in found
            )
            if values:
                return values[len(values) // 2]
        return None

    def seconds(cell: Cell) -> float | None:
        per_example = rate(cell.model, cell.task, cell.method)
        return None if per_example is None else per_example * cell.examples

    return seconds
