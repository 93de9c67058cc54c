"""From conf/ and command-line overrides to a validated RunConfig. The only module that knows Hydra's configuration."""

import copy
import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lora.config import RunConfig, run_config
from lora.errors import UserError
from lora.liveness import cores
from lora.provenance import ROOT

CONF = ROOT / "conf"
CPUINFO = Path("/proc/cpuinfo")
SEED = re.compile(r"seed=(?:0|[1-9]\d*)")
SECTIONS = ("task", "seed", "start", "start_seed", "start_run", "model", "method", "data", "train", "runtime")


def register_resolvers() -> None:
    """What conf/ asks of the machine.

    `${workers:THREADS}`: as many workers as fit on the cores that this process may use. `${cpu_precision:}`: bf16 on a
    CPU that multiplies matrices in it (Intel's AMX), else fp32, which is there twice as fast.
    """
    OmegaConf.register_new_resolver("workers", lambda threads: max(1, cores() // int(threads)), replace=True)
    OmegaConf.register_new_resolver("cpu_precision", lambda: cpu_precision(CPUINFO), replace=True)


def cpu_precision(cpuinfo: Path) -> str:
    """
    Args:
        cpuinfo: Linux's list of CPUs and their flags; absent elsewhere.
    """
    try:
        return "bf16" if "amx_bf16" in cpuinfo.read_text().split() else "fp32"
    except OSError:
        return "fp32"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with overrides, inside a Hydra application or outside of one.

    Raises: UserError: If a group, option or key does not exist; the message lists the options.
    """
    register_resolvers()
    check_groups(overrides)
    try:
        if GlobalHydra.instance().is_initialized():
            return compose("config", overrides=list(overrides))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def check_groups(overrides: Sequence[str]) -> None:
    """What Hydra itself would end on with a ValueError and its traceback.

    Raises: UserError: If a group is given something that names none of its options; the message lists them.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(explain(error)) from error
    for override in parsed:
        group = override.key_or_group
        if override.type == OverrideType.DEL or override.is_sweep_override() or not (CONF / group).is_dir():
            continue
        if not isinstance(override.value(), str):
            found = override.get_value_element_as_str()
            raise UserError(f"{group} must be one of {', '.join(describe_group(group))}, got {found}")


def settle(config: DictConfig) -> RunConfig:
    """Resolve and validate a composed configuration.

    Raises: UserError: If a value has no row in the protocol's table; SettingsError: if a rule is broken.
    """
    return run_config(resolve(config))


def resolve(config: DictConfig) -> dict[str, Any]:
    """The sections of a RunConfig as plain values.

    Raises: UserError: If a value has no row in the protocol's table.
    """
    try:
        return {key: _plain(config[key]) for key in SECTIONS} | {"protocol": config.protocol.name}
    except InterpolationKeyError as error:
        raise UserError(_no_row(config, error)) from error


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate one run; one that starts from MNLI learns the run_id of that MNLI run."""
    config = _seeded_run(overrides)
    if config.start == "mnli":
        parent = _seeded_run(parent_overrides(overrides, config))
        config = dataclasses.replace(config, start_run=parent.run_id)
    return config


def _seeded_run(overrides: Sequence[str]) -> RunConfig:
    """Resolved once for all seeds: nothing in conf/ is made from the seed, and most cells differ by it alone.

    Resolving a cell's interpolations takes thirty times as long as validating it.
    """
    seeds = [override for override in overrides if SEED.fullmatch(override)]
    shared = _resolved(tuple(override for override in overrides if override not in seeds), cpu_precision(CPUINFO))
    return run_config(shared | {"seed": int(seeds[-1].removeprefix("seed=")) if seeds else shared["seed"]})


@functools.lru_cache(maxsize=1024)
def _resolved(overrides: tuple[str, ...], machine: str) -> dict[str, Any]:
    """
    Args:
        machine: What `${cpu_precision:}` stands for.
    """
    return resolve(compose_values(overrides))


def compose_values(overrides: Sequence[str]) -> DictConfig:
    """`compose_config`, with the groups composed once for all the cells that share them.

    Hydra takes some 100 ms to compose; putting plain values into a copy takes a few, and a sweep has hundreds of cells.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(o.type != OverrideType.CHANGE or o.package or o.key_or_group.startswith("hydra") for o in parsed):
        return compose_config(overrides)  # additions, deletions, packages: Hydra's own business
    groups = [o for o in parsed if (CONF / o.key_or_group).is_dir()]
    config = copy.deepcopy(_composed_groups(tuple(o.input_line for o in groups)))
    try:
        for override in parsed:
            if override not in groups:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    return config


@functools.lru_cache(maxsize=64)
def _composed_groups(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(overrides)


def parent_overrides(overrides: Sequence[str], child: RunConfig) -> tuple[str, ...]:
    """What composes the MNLI run that a child starts from: the child's overrides but for task, start and seed."""
    own = ("task", "start", "start_seed", "start_run", "seed", "runtime.save_adapter")
    shared = [override for override in overrides if override.split("=", 1)[0] not in own]
    seed = child.seed if child.start_seed is None else child.start_seed
    return (*shared, "task=mnli", "start=pretrained", f"seed={seed}", "runtime.save_adapter=true")


def describe_group(name: str) -> list[str]:
    """The options of a config group, as files of conf/."""
    return sorted(path.stem for path in (CONF / name).glob("*.yaml"))


@functools.lru_cache
def conf_files() -> tuple[Path, ...]:
    return tuple(sorted(CONF.rglob("*.yaml")))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _no_row(config: DictConfig, error: InterpolationKeyError) -> str:
    chosen = f"protocol={config.protocol.name}, model={config.model.name}, method={config.method.name}"
    rows = [str(key) for key, value in config.hparams.items() if isinstance(value, DictConfig)]
    if config.task not in rows:
        return f"task must be one that has a row with {chosen} ({', '.join(rows)}), got {config.task!r}"
    return f"the row of task={config.task} with {chosen} lacks a value: {str(error).splitlines()[0]}"


def explain(error: Exception) -> str:
    """Hydra's message as the setting, its rule and the value found; where it is of another kind, on one line."""
    missing = re.search(r"Could not find '(\w+(?:/\w+)*)/([^'/]+)'", str(error))
    if missing is not None and missing[1] == "hydra/launcher":
        extra = {"submitit_slurm": "slurm"}.get(missing[2], missing[2])
        return f"launcher={extra} needs its Hydra plugin: .venv/bin/python -m pip install --editable '.[{extra}]'"
    if missing is None or missing[1].startswith("hydra/"):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    group, option = missing.groups()
    if group.startswith("hparams/"):
        having = sorted(path.parent.name for path in (CONF / "hparams").glob(f"*/{option}.yaml"))
        protocol = group.removeprefix("hparams/")
        return (
            f"protocol must be one that has rows for {option}, the model and the method "
            f"({', '.join(having) or 'none has'}), got {protocol!r}; that one has rows for "
            f"{', '.join(describe_group(group))}"
        )
    return f"{group} must be one of {', '.join(describe_group(group))}, got {option!r}"
