"""Turn conf/ and command-line overrides into a validated RunConfig. No other module reads Hydra's configuration."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lora.config.encoder_files import local_name
from lora.config.kernel_choice import resolve_auto
from lora.config.options import (
    COMPOSED,
    CONF,
    chosen_option,
    explain,
    is_group,
    no_rows,
    parsed_override,
    read_overrides,
    states_rate,
    unknown_key,
    values_given,
)
from lora.config.own_task import fill_in_task, find_task
from lora.config.run import RunConfig, run_config
from lora.errors import UserError, first_line
from lora.files import RESULTS, at_home
from lora.records.provenance import cores

SECTIONS = (
    *("task", "seed", "start", "start_seed", "start_run"),
    *("model", "method", "data", "train", "runtime", "launcher"),
)
SOURCES = ("task", "rates", "runtime.results", "data.source", "data", "train", "runtime")  # conf/ reads them elsewhere


def register_resolvers() -> None:
    """Register the resolvers of conf/.

    `${workers:THREADS}`: number of workers that fit on the cores that this process may use, at least 1.
    `${outputs:RESULTS}`: the folder of outputs that belongs to a folder of results (`outputs_of`).
    """
    OmegaConf.register_new_resolver("workers", lambda threads: max(1, cores() // int(threads)), replace=True)
    OmegaConf.register_new_resolver("outputs", outputs_of, replace=True)


def outputs_of(results: str) -> str:
    """`outputs/NAME` for `results/NAME`, else `FOLDER/outputs`: two folders of results never share checkpoints."""
    path = Path(results)
    for folder in (Path(RESULTS.name), RESULTS):
        if path != folder and path.is_relative_to(folder):
            return str(folder.with_name("outputs") / path.relative_to(folder))
    return str(path / "outputs")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with overrides.

    Raises: UserError: If a group, option or key does not exist, or the protocol has no rows for the model and the
        method; the message lists the options.
    """
    register_resolvers()
    overrides = [override for override in read_overrides(overrides) if not override.startswith("experiment=")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if "hparams" not in config:
        raise UserError(no_rows(*(chosen_option(group, overrides) for group in ("protocol", "model", "method"))))
    return config


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate one run. A run that starts from MNLI gets the run_id of that MNLI run."""
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
    own = ("task", "start", "start_seed", "seed", "runtime.save_adapter")
    shared = [override for override in overrides if override.partition("=")[0] not in own]
    seed = run.seed if run.start_seed is None else run.start_seed
    parent = _compose(
        [*shared, "task=mnli", "start=pretrained", "start_seed=null", f"seed={seed}", "runtime.save_adapter=true"]
    )
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
    for one in parsed:
        if not _is_source(one):
            _set(settings, one.key_or_group, one.value())
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
    runtime["rate_from"] = "stated" if states_rate(overrides) else "tuned" if settings["task"] in tuned else row
    if runtime["rate_from"] == "tuned":
        train["lr"] = tuned[settings["task"]]
    resolve_auto(settings["method"], model, train, runtime, bool(launcher.get("gpus")))
    run = run_config(settings)
    refuse_unread_folders(run)
    return run


def _is_source(override: Override) -> bool:
    """Whether conf/ makes other settings from this one."""
    key = override.key_or_group
    return is_group(key) or key in SOURCES or key.startswith(COMPOSED)


@functools.lru_cache(maxsize=64)
def _composed_groups(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(overrides)


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
        chosen = f"protocol={config.protocol.name}, model={config.model.name}, method={config.method.name}"
        rows = [str(name) for name, row in config.hparams.items() if isinstance(row, DictConfig)]
        if config.task in rows:
            raise UserError(
                f"the row of task={config.task} with {chosen} is incomplete: {first_line(error)}"
            ) from error
        raise UserError(
            f"task must be one that has a row with {chosen} ({', '.join(rows)}), got {config.task!r}"
        ) from error
    return sections


def _set(sections: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        sections = sections.get(name, {})
    if last not in sections:
        raise UserError(unknown_key(key))
    sections[last] = value


def refuse_unread_folders(config: RunConfig) -> None:
    """
    Raises: UserError: If data.path or model.path is given, and the source of the data or model has no folder. It is no
        rule of `RunConfig`, because older records may name one.
    """
    data, model = config.data, config.model
    if data.path is not None and data.source in ("embedded", "hub"):
        raise UserError(
            f"data.path={data.path} would not be read, because data.source is {data.source}: add data.source=tsv or "
            f"data.source=parquet, the layouts of the official files and of the hub (GLUE_DIR= stands for both)"
        )
    if model.path is not None and model.source != "local":
        raise UserError(
            f"model.path={model.path} would not be read, because the source of model {model.name} is {model.source}: "
            f"add model=local (MODEL_DIR= stands for both)"
        )
