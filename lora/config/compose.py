"""Turn conf/ and command-line overrides into a validated RunConfig. No other module reads Hydra's configuration."""

import copy
import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lora.config.auto import Measure, resolve_auto
from lora.config.encoder_files import local_name
from lora.config.plan import CONF, check_options, describe_group, planned_tasks
from lora.config.rates import nearest_rate, rate_name, read_rates
from lora.config.run import PlannedRun, RunConfig, run_config
from lora.config.select import PLACES, parse_words, place
from lora.data.own_task import find_task, task_file
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, first_line
from lora.files import at_home, outputs_of
from lora.records.provenance import cores

PATHS = ("task", "rates", "data.path", "model.path", "runtime.results", "runtime.outputs")
SOURCES = ("task", "rates", "runtime.results", "data.source", "data", "train", "runtime")  # conf/ reads them elsewhere
OPTIONS = ("method", "model", "protocol")
TOP = ("task", "seed", "start", "start_seed", "start_run")
DEFAULT_ROW = "default"  # the row of tasks without their own
SECTIONS = (*TOP, "model", "method", "data", "train", "runtime", "launcher")


# The command line.


def is_group(key: str) -> bool:
    return key.isidentifier() and key != "tasks" and bool(describe_group(key))


def chosen_option(group: str, overrides: Sequence[str]) -> str:
    """The option that overrides choose in a group, else that of conf/config.yaml."""
    given = [override.split("=", 1)[1] for override in overrides if override.startswith(f"{group}=")]
    return given[-1] if given else _defaults()[group]


@functools.cache
def _defaults() -> dict[str, str]:
    entries = yaml.safe_load((CONF / "config.yaml").read_bytes())["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


@functools.lru_cache(maxsize=4096)
def parsed_override(override: str) -> Override:
    """Parse an override with Hydra. Raises: UserError: If it is not one."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UserError(f"{override!r} is not an override, setting=value: {first_line(error)}") from error


def read_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them. A path that Hydra's grammar refuses as typed is quoted, as in data.path=~/a.

    Raises: UserError: If one is no override, adds or removes a setting, or gives a group anything but an option's name.
    """
    return [*map(_read_override, overrides)]


def _read_override(override: str) -> str:
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
    key = parsed.key_or_group
    if parsed.type != OverrideType.CHANGE or parsed.package:
        raise UserError(f"{override!r} is not an override, setting=value: no setting can be added or removed")
    if is_group(key) and override != "experiment=null":
        check_options(key, *parse_words([override])[key])
    return override


def with_profile(overrides: Sequence[str]) -> list[str]:
    """The overrides, after profile=own if a task is a file. A profile that is given wins, as the last one."""
    own = any(task_file(str(name)) for name in parse_words(read_overrides(overrides)).get("task", ()))
    return ["profile=own", *overrides] if own else [*overrides]


def unknown_key(key: str) -> str:
    """The message for a key that the configuration lacks."""
    sections = {name: section for name, section in compose_config([]).items() if name in SECTIONS}
    known = [f"{name}.{field}" for name, section in sections.items() if OmegaConf.is_dict(section) for field in section]
    group, _, field = key.partition(".")
    files = {f"{group}={option}": CONF / group / f"{option}.yaml" for option in describe_group(group)}
    near = [option for option, path in files.items() if re.search(rf"^ *{field}:", path.read_text(), re.MULTILINE)]
    near += [one for one in known if one.endswith(f".{key}") or (not files and one.startswith(f"{group}."))]
    near = near or difflib.get_close_matches(key, [path.name for path in CONF.iterdir() if is_group(path.name)], 1)
    hint = f"; see {', '.join(near)}" if near and near != [key] else ""
    return f"{key} is not a setting of what was chosen{hint} (python -m lora --cfg job lists them all)"


def quoted(text: str) -> str:
    """A value in Hydra's single quotes."""
    return QuotedString(text, Quote.single).with_quotes()


# The configuration.


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
    """The settings of the run that overrides describe (`compose_family`)."""
    return compose_family(overrides)[-1].config


def compose_family(
    overrides: Sequence[str], tasks: Mapping[str, Task] | None = None, measure: Measure = "measured"
) -> list[PlannedRun]:
    """The run that overrides describe, after the MNLI run that it starts from, if any.

    Args:
        tasks: Value of `task` -> the task, of user-defined ones whose rows are read already.
        measure: How a precision that no plan has is found.
    Raises: UserError: If there is no such task, or a value has no row in the protocol's table; SettingsError: if a rule
        is broken.
    """
    overrides = read_overrides(overrides)
    run = _compose(overrides, tasks or {}, measure)
    config = run.config
    if config.start != "mnli":
        return [run]
    seed = config.seed if config.start_seed is None else config.start_seed
    own = {"task": "mnli", "start": "pretrained", "start_seed": "null", "seed": seed, "runtime.save_adapter": "true"}
    shared = [override for override in overrides if override.partition("=")[0] not in own]
    parent = _compose([*shared, *(f"{key}={value}" for key, value in own.items())], {}, measure)
    return [parent, dataclasses.replace(run, config=dataclasses.replace(config, start_run=parent.run_id))]


def compose_settings(
    overrides: Sequence[str], tasks: Mapping[str, Task] | None = None
) -> tuple[Task, str, dict[str, Any], dict[str, Any]]:
    """A run's task, the origin of its row, its settings without plain overrides, and with them, before `auto` is
    resolved. `tasks`: see `compose_family`."""
    overrides = read_overrides(overrides)
    parsed = [parsed_override(override) for override in overrides]
    if sweeps := [one.input_line for one in parsed if one.is_sweep_override()]:
        raise UserError(f"a single run takes one value, got {sweeps[0]}: python -m lora -m trains several runs")
    word = place(overrides, "task")
    task = None if word is None else TASKS.get(word) or (tasks or {}).get(word)
    if word is not None and task is None:
        results = place(overrides, "runtime.results") or f"results/{chosen_option('profile', overrides)}"
        task = find_task(word, planned_tasks(results))
    sources = tuple(one.input_line for one in parsed if _is_source(one) and one.key_or_group != "task")
    row, usual = _sections(sources, *((None, False) if task is None else (task.name, task.own is not None)))
    settings = copy.deepcopy(usual)
    for one in (one for one in parsed if not _is_source(one)):
        *path, last = one.key_or_group.split(".")
        section = _at(settings, path)
        if not isinstance(section, dict) or last not in section:
            raise UserError(unknown_key(one.key_or_group))
        section[last] = one.value()
    return task or TASKS[usual["task"]], row, usual, settings


def _compose(overrides: Sequence[str], tasks: Mapping[str, Task], measure: Measure) -> PlannedRun:
    """Set the plain values of overrides, the tuned rate and each `auto`; then validate."""
    task, row, usual, settings = compose_settings(overrides, tasks)
    rates, launcher = (settings.pop(key) for key in ("rates", "launcher"))
    model, data, train, runtime = (settings[key] for key in ("model", "data", "train", "runtime"))
    for section, key in ((data, "path"), (model, "path"), (runtime, "results"), (runtime, "outputs")):
        if isinstance(section[key], str):
            section[key] = str(at_home(section[key]))
    if model["name"] == model["source"] == "local" and model["path"]:
        model["name"] = local_name(model["path"])
    runtime["rate_name"] = rate_name(chosen_option("method", overrides), usual, settings)
    whole = task.official_rows["train"]
    part = data["train_rows"]
    rows = min(part, whole) if isinstance(part, int) and part > 0 else whole
    rate_key = (model["name"], settings["protocol"], settings["task"], runtime["rate_name"])
    tuned = nearest_rate(read_rates(rates), rate_key, rows, whole)
    stated_file = place(overrides, "rates")
    if stated_file is not None and not at_home(stated_file).exists():
        raise UserError(f"the file of rates {stated_file} does not exist; `python -m lora tune` writes it")
    states_rate = any(override.startswith("train.lr=") for override in overrides)
    runtime["rate_from"] = "stated" if states_rate else row if tuned is None else "tuned"
    if runtime["rate_from"] == "tuned":
        train["lr"] = tuned.lr
    resolve_auto(settings["method"], model, train, runtime, bool(launcher.get("gpus")), measure)
    run = run_config(settings, task)
    # not a rule of `RunConfig`, because older records may name such folders
    readers = (("data", ("tsv", "parquet"), "data.source=tsv or parquet"), ("model", ("local",), "model=local"))
    for name, sources, way in readers:
        section = getattr(run, name)
        if section.path is not None and section.source not in sources:
            raise UserError(
                f"{name}.path={section.path} would not be read, because {name}.source is {section.source}: add {way}"
            )
    options = {group: chosen_option(group, overrides) for group in OPTIONS}
    return PlannedRun(run, task, options=options, stated=stated_settings(overrides, usual))


def stated_settings(overrides: Sequence[str], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Setting -> its value, where overrides state another than conf/ has. Without groups, places, and what names a run
    otherwise. `usual`: the sections without the overrides."""
    parsed = (parsed_override(override) for override in overrides)
    plain = {one.key_or_group: one.value() for one in parsed if not is_group(one.key_or_group)}
    own = {key: value for key, value in plain.items() if key not in TOP and not key.startswith(PLACES)}
    return {key: value for key, value in own.items() if _at(usual, key.split(".")) != value}


def _at(sections: Mapping[str, Any], path: Sequence[str]) -> Any:
    return functools.reduce(
        lambda section, name: section.get(name) if isinstance(section, dict) else None, path, sections
    )


def _is_source(override: Override) -> bool:
    """Whether conf/ makes other settings from this one."""
    key = override.key_or_group
    return is_group(key) or key in SOURCES or key.startswith("launcher.")


_composed_groups = functools.lru_cache(maxsize=64)(compose_config)


@functools.lru_cache(maxsize=1024)
def _sections(sources: tuple[str, ...], task: str | None, is_own: bool) -> tuple[str, dict[str, Any]]:
    """The settings of a run as plain values, after the origin of its row: `conf` if it is the task's, else `default`.

    Hydra composes once for all runs of the same groups, and interpolations are resolved once for all runs of the same
    task: a sweep has hundreds of runs, and composing one takes 100 ms.

    Args:
        sources: The overrides from which conf/ makes other settings.
        task: The name of the task; None for that of the configuration.
        is_own: Whether a user has defined it.
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
    name = config.task if task is None else task
    profile = config.profile
    if name is None:
        raise UserError(
            f"profile {profile.name} needs a task of your own: task=my_task.yaml (TASK=my_task.yaml with make); "
            f'conf/README.md says what the file holds, under "A task of your own"'
        )
    row = "conf" if name in config.hparams else DEFAULT_ROW
    with open_dict(config):
        config.task = name
        if row == DEFAULT_ROW and DEFAULT_ROW in config.hparams:
            config.hparams[name] = config.hparams[DEFAULT_ROW]
        if is_own and config.data.source == profile.source:  # else it was set, and is checked
            config.data.source, config.data.revision = "own", None
    sections = {"protocol": config.protocol.name, "rates": config.rates}
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
    return row, sections
