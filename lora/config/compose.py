"""Turn conf/ and command-line overrides into a validated RunConfig. No other module reads Hydra's configuration."""

import copy
import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lora.config.auto import resolve_auto
from lora.config.encoder_files import local_name
from lora.config.own_task import fill_in_task, find_task
from lora.config.run import RunConfig, run_config
from lora.errors import UserError, first_line
from lora.files import RESULTS, ROOT, at_home
from lora.methods import METHODS
from lora.records.provenance import cores

CONF = ROOT / "conf"
PATHS = ("task", "rates", "data.path", "model.path", "runtime.results", "runtime.outputs")
COMPOSED = ("hparams.", "profile.", "protocol.", "launcher.")  # sections that conf/ makes settings from
SOURCES = ("task", "rates", "runtime.results", "data.source", "data", "train", "runtime")  # conf/ reads them elsewhere
TOP = ("task", "seed", "start", "start_seed", "start_run")
SECTIONS = (*TOP, "model", "method", "data", "train", "runtime", "launcher")


# The command line.


@functools.cache
def describe_group(name: str) -> tuple[str, ...]:
    """The options of a config group: the names of its files in conf/. () if there is none."""
    return tuple(sorted(path.stem for path in (CONF / name).glob("*.yaml")))


def is_group(key: str) -> bool:
    return key.isidentifier() and key != "tasks" and bool(describe_group(key))


@functools.cache
def default_option(group: str) -> str:
    """The option that conf/config.yaml chooses in a group."""
    defaults = yaml.safe_load((CONF / "config.yaml").read_bytes())["defaults"]
    return next(entry[group] for entry in defaults if group in entry)


def chosen_option(group: str, overrides: Sequence[str]) -> str:
    """The option that overrides choose in a group, else the default one."""
    given = [override.split("=", 1)[1] for override in overrides if override.startswith(f"{group}=")]
    return given[-1] if given else default_option(group)


@functools.cache
def setting_keys() -> tuple[str, ...]:
    """Every key that a run, a method or a launcher may have, in the order of conf/."""
    sections = {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)}
    keys = [*TOP, "rates"]
    keys += [f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)]
    keys += [f"method.{field.name}" for method in METHODS.values() for field in dataclasses.fields(method.config)]
    for path in sorted((CONF / "launcher").glob("*.yaml")):
        keys += [f"launcher.{key}" for key in yaml.safe_load(path.read_bytes())["launcher"]]
    return tuple(dict.fromkeys(keys))


@functools.lru_cache(maxsize=4096)
def parsed_override(override: str) -> Override:
    """Parse an override with Hydra. Raises: UserError: If it is not one."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UserError(f"{override!r} is not an override, setting=value: {first_line(error)}") from error


def read_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them. A path that Hydra's grammar refuses as typed is quoted, as in data.path=~/a.

    Raises: UserError: If one is no override, adds or removes a setting, names an unknown one, or gives a group anything
        but an option's name.
    """
    return [_read(override) for override in overrides]


def _read(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        meant = f"; write profile={key}" if key in describe_group("profile") else ""
        raise UserError(f"{override!r} is not an override, setting=value{meant}")
    try:
        parsed = parsed_override(override)
    except UserError:
        if key not in PATHS:
            raise
        override = f"{key}={quoted(value)}"
        parsed = parsed_override(override)
    key, values = parsed.key_or_group, override_values(parsed)
    if not (is_group(key) or key in setting_keys() or key.startswith(COMPOSED[:3])):
        raise UserError(unknown_key(key))
    if parsed.type != OverrideType.CHANGE or parsed.package:
        raise UserError(f"{override!r} is not an override, setting=value: no setting can be added or removed")
    if is_group(key) and override != "experiment=null":
        for option in values:
            if option not in describe_group(key):
                raise UserError(f"{key} must be one of {', '.join(describe_group(key))}, got {option!r}")
    return override


def unknown_key(key: str) -> str:
    """The message for a key that the configuration lacks."""
    near = [known for known in setting_keys() if known.endswith(f".{key}")]
    near = near or difflib.get_close_matches(key, setting_keys(), 1, 0.7)
    nearest = f"; the nearest is {near[0]}" if near and near[0] != key else ""
    return f"{key} is not a setting of what was chosen{nearest} (python -m lora --cfg job lists them all)"


def override_values(parsed: Override) -> list[Any]:
    """The values of an override: several if it is a list such as seed=1,2."""
    return list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]


def values_given(key: str, overrides: Sequence[str]) -> list[Any]:
    """All values that overrides give to a key."""
    given = [override for override in overrides if override.startswith(f"{key}=")]
    return [value for override in given for value in override_values(parsed_override(override))]


def quoted(text: str) -> str:
    r"""A value in Hydra's single quotes: `\'` stands for a quote, and backslashes before a quote are doubled."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


# The configuration.


def outputs_of(results: str) -> str:
    """`outputs/NAME` for `results/NAME`, else `FOLDER/outputs`: two folders of results never share checkpoints."""
    path = Path(results)
    for folder in (Path(RESULTS.name), RESULTS):
        if path != folder and path.is_relative_to(folder):
            return str(folder.with_name("outputs") / path.relative_to(folder))
    return str(path / "outputs")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with overrides. Its resolver `workers` counts the workers that fit on the cores.

    Raises: UserError: If a group, option or key does not exist, or the protocol has no rows for the model and the
        method; the message lists the options.
    """
    OmegaConf.register_new_resolver("workers", lambda threads: max(1, cores() // int(threads)), replace=True)
    OmegaConf.register_new_resolver("outputs", outputs_of, replace=True)
    overrides = [override for override in read_overrides(overrides) if not override.startswith("experiment=")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if "hparams" not in config:
        protocol, model, method = (chosen_option(group, overrides) for group in ("protocol", "model", "method"))
        files = (str(path.relative_to(CONF).with_suffix("")) for path in sorted(CONF.glob(f"hparams/*/{model}_*.yaml")))
        raise UserError(
            f"protocol and method must be ones that have rows for model={model} ({', '.join(files)}), got "
            f"protocol={protocol} method={method}"
        )
    return config


def explain(error: Exception) -> str:
    """A message of Hydra on one line, or in this project's form if a key is unknown."""
    unknown = re.search(r"Could not override '([\w.]+)'|full_key: ([\w.]+)", str(error))
    return unknown_key(unknown[1] or unknown[2]) if unknown else " ".join(str(error).split())


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The run that overrides describe (`compose_family`)."""
    return compose_family(overrides)[-1]


def compose_family(overrides: Sequence[str]) -> list[RunConfig]:
    """The run that overrides describe, after the MNLI run that it starts from, if any.

    Raises: UserError: If there is no such task, or a value has no row in the protocol's table; SettingsError: if a rule
        is broken.
    """
    overrides = read_overrides(overrides)
    for override in overrides:
        if parsed_override(override).is_sweep_override():
            raise UserError(f"a single run takes one value, got {override}: python -m lora -m trains several runs")
    run = _compose(overrides)
    if run.start != "mnli":
        return [run]
    if run.start_run is not None:
        raise UserError(f"start_run is filled in with the run_id of the MNLI run: leave it out, got {run.start_run!r}")
    seed = run.seed if run.start_seed is None else run.start_seed
    own = {"task": "mnli", "start": "pretrained", "start_seed": "null", "seed": seed, "runtime.save_adapter": "true"}
    shared = [override for override in overrides if override.partition("=")[0] not in own]
    parent = _compose([*shared, *(f"{key}={value}" for key, value in own.items())])
    return [parent, dataclasses.replace(run, start_run=parent.run_id)]


def _compose(overrides: Sequence[str]) -> RunConfig:
    """Set the plain values of overrides, the tuned rate and each `auto`; then validate."""
    parsed = [parsed_override(override) for override in overrides]
    task = next(iter(values_given("task", overrides)[-1:]), None)
    if task is not None:
        results = values_given("runtime.results", overrides)[-1:] or [f"results/{chosen_option('profile', overrides)}"]
        task = find_task(str(task), str(results[0])).name  # a user's file, which may have changed since the last run
    sources = tuple(one.input_line for one in parsed if _is_source(one) and one.key_or_group != "task")
    settings = copy.deepcopy(_sections(sources, task))
    for one in (one for one in parsed if not _is_source(one)):
        *path, last = one.key_or_group.split(".")
        section = functools.reduce(lambda section, name: section.get(name, {}), path, settings)
        if last not in section:
            raise UserError(unknown_key(one.key_or_group))
        section[last] = one.value()
    rates, row, launcher = (settings.pop(key) for key in ("rates", "row", "launcher"))
    model, data, train, runtime = (settings[key] for key in ("model", "data", "train", "runtime"))
    for section, key in ((data, "path"), (model, "path"), (runtime, "results"), (runtime, "outputs")):
        if isinstance(section[key], str):
            section[key] = str(at_home(section[key]))
    if model["name"] == model["source"] == "local" and model["path"]:
        model["name"] = local_name(model["path"])
    tuned: dict[str, float] = {}
    if rates is not None and not (isinstance(rates, str) and not at_home(rates).exists()):
        from lora.config.rates import tuned_rates

        tuned = tuned_rates(rates, model["name"], settings["protocol"], chosen_option("method", overrides))
    states_rate = any(re.match(r"(train|hparams\..*)\.lr=", override) for override in overrides)
    runtime["rate_from"] = "stated" if states_rate else "tuned" if settings["task"] in tuned else row
    if runtime["rate_from"] == "tuned":
        train["lr"] = tuned[settings["task"]]
    resolve_auto(settings["method"], model, train, runtime, bool(launcher.get("gpus")))
    run = run_config(settings)
    # not a rule of `RunConfig`, because older records may name such folders
    if run.data.path is not None and run.data.source in ("embedded", "hub"):
        raise UserError(
            f"data.path={run.data.path} would not be read, because data.source is {run.data.source}: add "
            f"data.source=tsv or data.source=parquet, the layouts of the official files and of the hub (GLUE_DIR=)"
        )
    if run.model.path is not None and run.model.source != "local":
        raise UserError(
            f"model.path={run.model.path} would not be read, because the source of model {run.model.name} is "
            f"{run.model.source}: add model=local (MODEL_DIR= stands for both)"
        )
    return run


def _is_source(override: Override) -> bool:
    """Whether conf/ makes other settings from this one."""
    key = override.key_or_group
    return is_group(key) or key in SOURCES or key.startswith(COMPOSED)


_composed_groups = functools.lru_cache(maxsize=64)(compose_config)


@functools.lru_cache(maxsize=1024)
def _sections(sources: tuple[str, ...], task: str | None) -> dict[str, Any]:
    """The settings of a run as plain values.

    Hydra composes once for all runs of the same groups, and interpolations are resolved once for all runs of the same
    task: a sweep has hundreds of runs, and composing one takes 100 ms.

    Args:
        sources: The overrides from which conf/ makes other settings.
        task: The name of the task; None for that of the configuration.
    Raises: UserError: If the protocol's table has no row, or an incomplete one, for the task.
    """
    parsed = [parsed_override(override) for override in sources]
    config = copy.deepcopy(_composed_groups(tuple(one.input_line for one in parsed if is_group(one.key_or_group))))
    try:
        for one in parsed:
            if not is_group(one.key_or_group):
                OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    row = fill_in_task(config, task)
    sections = {"protocol": config.protocol.name, "rates": config.rates, "row": row}
    try:
        for name in SECTIONS:
            value = config[name]
            sections[name] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except InterpolationKeyError as error:
        rows = [str(name) for name, row in config.hparams.items() if isinstance(row, DictConfig)]
        raise UserError(
            f"task must be one that has a complete row with protocol={config.protocol.name}, "
            f"model={config.model.name}, method={config.method.name} ({', '.join(rows)}), got {config.task!r}: "
            f"{first_line(error)}"
        ) from error
    return sections
