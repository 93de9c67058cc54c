"""Turn conf/ and command-line overrides into a validated RunConfig. No other module reads Hydra's configuration."""

import copy
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lora.checks import SettingsError, build
from lora.config.encoder_files import local_name
from lora.config.folders import reading
from lora.config.hparams_row import row_of
from lora.config.hydra_messages import explain, no_rows
from lora.config.kernel_choice import choose_attention, choose_kernels
from lora.config.options import CONF, describe_group, parsed_override, setting_keys, unknown_key, values_given
from lora.config.own_task import own_tasks, with_task
from lora.config.precision_choice import choose_precision
from lora.config.rates import chosen_option, states_rate, tuned_rates, with_rate
from lora.config.run import ModelConfig, RunConfig, run_config
from lora.errors import UserError
from lora.records.machine import cores

USUAL = {"kernels": "fused", "precision": "fp32"}
SEED = re.compile(r"seed=(?:0|[1-9]\d*)")
LEAF = re.compile(r"(train|method)\.\w+=")  # an override of a setting that no interpolation in conf/ uses
COMPOSED = ("hparams.", "profile.", "protocol.")  # sources of other settings; their keys differ between options
SECTIONS = ("task", "seed", "start", "start_seed", "start_run", "model", "method", "data", "train", "runtime")


def register_resolvers() -> None:
    """Register the resolver of conf/ that depends on the machine.

    `${workers:THREADS}`: number of workers that fit on the cores that this process may use, at least 1.
    """
    OmegaConf.register_new_resolver("workers", lambda threads: max(1, cores() // int(threads)), replace=True)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with overrides, inside a Hydra application or outside one.

    Raises: UserError: If a group, option or key does not exist, or the protocol has no rows for the model and the
        method; the message lists the options.
    """
    register_resolvers()
    check_overrides(overrides)
    try:
        if GlobalHydra.instance().is_initialized():
            config = compose("config", overrides=list(overrides))
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if "hparams" not in config:
        raise UserError(no_rows(*(chosen_option(group, overrides) for group in ("protocol", "model", "method"))))
    return config


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that Hydra would silently accept or answer with a traceback.

    Raises: UserError: If an override adds or removes a setting, names an unknown one, or gives a group anything but an
        option's name.
    """
    if stray := [override for override in overrides if "=" not in override and not override.startswith("~")]:
        raise UserError(f"{stray[0]!r} is not an override, setting=value; a profile's name stands before the overrides")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(explain(error)) from error
    for override in parsed:
        key, written = override.key_or_group, override.input_line
        if key.split(".")[0].split("/")[0] == "hydra":  # Hydra's own settings, which may be added
            continue
        is_group = (CONF / key).is_dir()
        if not is_group and key not in setting_keys() and not key.startswith(COMPOSED):
            raise UserError(unknown_key(key))
        if override.type != OverrideType.CHANGE and not is_group and not _exists(key, parsed):
            raise UserError(unknown_key(key))
        if override.type == OverrideType.DEL:
            raise UserError(f"{written!r} would remove a setting; give it a value ({key}=null turns some off)")
        if override.type != OverrideType.CHANGE:
            raise UserError(f"{written!r} would add {key}, which exists: write {written.lstrip('+')}")
        if is_group and not override.is_sweep_override() and not isinstance(override.value(), str):
            found = override.get_value_element_as_str()
            raise UserError(f"{key} must be one of {', '.join(describe_group(key))}, got {found}")


def _exists(key: str, given: Sequence[Override]) -> bool:
    """Whether the configuration of the groups that overrides choose has this key."""
    changed = [one for one in given if one.type == OverrideType.CHANGE and not one.is_sweep_override()]
    node: Any = _composed_groups(tuple(one.input_line for one in changed if (CONF / one.key_or_group).is_dir()))
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node.keys():  # noqa: SIM118  `in node` is false for null
            return False
        node = node._get_node(part)
    return True


def settle(config: DictConfig) -> RunConfig:
    """Resolve and validate a composed configuration.

    Raises: UserError: If a value has no row in the protocol's table; SettingsError: if a rule is broken.
    """
    return reading(run_config(decided(resolve(config))))


def resolve(config: DictConfig) -> dict[str, Any]:
    """The sections of a RunConfig as plain values. A local encoder takes its folder's name, a user's task its file's.

    Raises: UserError: If a value has no row in the protocol's table, a local folder holds no encoder, or there is no
        such task.
    """
    config = with_task(config)
    try:
        values = {key: _plain(config[key]) for key in SECTIONS} | {"protocol": config.protocol.name}
        model = values["model"]
        if model["name"] == model["source"] == "local" and model["path"]:
            model["name"] = local_name(model["path"])
        return values
    except InterpolationKeyError as error:
        raise UserError(_no_row(config, error)) from error


def is_untuned(overrides: Sequence[str]) -> bool:
    """Whether a run's learning rate comes from a default row, not tuned for its task."""
    if states_rate(overrides):
        return False
    config = compose_values(overrides)
    sections = resolve(config)
    row, chosen = row_of(config, sections["task"])
    method = chosen_option("method", overrides)
    tuned = tuned_rates(_plain(config.rates), sections["model"]["name"], sections["protocol"], method)
    return row is not None and not chosen and sections["task"] not in tuned


def decided(sections: dict[str, Any], unmeasured: str | None = None) -> dict[str, Any]:
    """Replace each `auto` (kernels, attention, precision) by its value on this machine, before the run is named.

    Args:
        unmeasured: The precision to assume if none has been measured yet. None measures it.
    """
    train, model, runtime = sections["train"], sections["model"], sections["runtime"]
    if not all(isinstance(section, Mapping) for section in (train, model, runtime)):
        return sections
    if "auto" not in (train.get("kernels"), train.get("precision"), model.get("attention")):
        return sections
    attention = "eager" if model.get("attention") == "auto" else model.get("attention")
    chosen = {"kernels": train.get("kernels"), "precision": train.get("precision")}
    try:
        encoder = build(ModelConfig, {**model, "attention": attention})
        device, results = runtime.get("device"), str(runtime.get("results"))
        if chosen["kernels"] == "auto":
            chosen["kernels"], _ = choose_kernels(encoder, device, results)
        if model.get("attention") == "auto":
            attention = choose_attention(encoder, chosen["kernels"], device, results)
        if chosen["precision"] == "auto":
            found = choose_precision(encoder, chosen["kernels"], device, results, measure=unmeasured is None)
            chosen["precision"] = unmeasured if found is None else found[0]
    except SettingsError:  # reported when the whole configuration is validated
        chosen = {key: usual if chosen[key] == "auto" else chosen[key] for key, usual in USUAL.items()}
    return sections | {"train": {**train, **chosen}, "model": {**model, "attention": attention}}


def compose_run(overrides: Sequence[str], unmeasured: str | None = None) -> RunConfig:
    """Compose and validate one run, with its tuned learning rate if it has one (`lora.config.rates`).

    A run that starts from MNLI gets the run_id of that MNLI run.

    Args:
        unmeasured: See `decided`.
    """
    config = _seeded_run(overrides, unmeasured)
    if config.start == "mnli":
        parent = _seeded_run(parent_overrides(overrides, config), unmeasured)
        config = dataclasses.replace(config, start_run=parent.run_id)
    return config


def _seeded_run(overrides: Sequence[str], unmeasured: str | None) -> RunConfig:
    """One run, resolved once for all seeds, because no interpolation in conf/ uses the seed."""
    seeds = [override for override in overrides if SEED.fullmatch(override)]
    others = tuple(override for override in overrides if override not in seeds)
    named = (*local_encoders(overrides), *((task.name, *task.official_rows.values()) for task in own_tasks(overrides)))
    sections, rates = _with_leaves(others, named) or _resolved(others, named)
    shared = decided(with_rate(sections, rates, others), unmeasured)
    seed = int(seeds[-1].removeprefix("seed=")) if seeds else shared["seed"]
    return reading(run_config(shared | {"seed": seed}))


def local_encoders(overrides: Sequence[str]) -> list[str]:
    """The names of the local encoders that overrides select. They depend on the content of the folders."""
    return [local_name(folder) for folder in values_given("model.path", overrides) if isinstance(folder, str)]


def _with_leaves(overrides: tuple[str, ...], named: tuple[Any, ...]) -> tuple[dict[str, Any], Any] | None:
    """`_resolved`, computed once for all runs that differ only in `LEAF` settings.

    Resolving a run's interpolations takes thirty times as long as validating it, and a grid varies rates and ranks.

    Returns: None without such settings, or if the result could differ: each must exist, and not be or become a mapping.
    """
    leaves = [override for override in overrides if LEAF.match(override)]
    others = tuple(override for override in overrides if override not in leaves)
    if not leaves or any("${" in override or override.startswith(("train=", "+", "~")) for override in overrides):
        return None
    try:
        sections, rates = _resolved(others, named)
    except UserError:  # the row lacks a value that a leaf gives
        return None
    changed: dict[str, Any] = {}
    for leaf in map(parsed_override, leaves):
        section, key = leaf.key_or_group.split(".")
        now = changed.setdefault(section, dict(sections[section]))
        if key not in now or leaf.is_sweep_override() or isinstance(leaf.value(), dict) or isinstance(now[key], dict):
            return None
        now[key] = leaf.value()
    return sections | changed, rates


@functools.lru_cache(maxsize=1024)
def _resolved(overrides: tuple[str, ...], named: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
    """The sections of a run, and the setting `rates`.

    Args:
        named: The names of local encoders and user-defined tasks: only a key of the cache, because files may change.
    """
    config = compose_values(overrides)
    return resolve(config), _plain(config.rates)


def compose_values(overrides: Sequence[str]) -> DictConfig:
    """`compose_config`, with the groups composed once for all runs that share them.

    Hydra takes about 100 ms to compose, setting plain values in a copy a few. A sweep has hundreds of runs.
    """
    parsed = list(map(parsed_override, overrides))
    if any(o.type != OverrideType.CHANGE or o.package or o.key_or_group.startswith("hydra") for o in parsed):
        return compose_config(overrides)  # additions, deletions and packages are left to Hydra
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
    """The overrides of the MNLI run that a child starts from: the child's, with another task, start and seed."""
    own = ("task", "start", "start_seed", "start_run", "seed", "runtime.save_adapter")
    shared = [override for override in overrides if override.split("=", 1)[0] not in own]
    seed = child.seed if child.start_seed is None else child.start_seed
    return (*shared, "task=mnli", "start=pretrained", f"seed={seed}", "runtime.save_adapter=true")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _no_row(config: DictConfig, error: InterpolationKeyError) -> str:
    chosen = f"protocol={config.protocol.name}, model={config.model.name}, method={config.method.name}"
    rows = [str(key) for key, value in config.hparams.items() if isinstance(value, DictConfig)]
    if config.task not in rows:
        return f"task must be one that has a row with {chosen} ({', '.join(rows)}), got {config.task!r}"
    return f"the row of task={config.task} with {chosen} lacks a value: {str(error).splitlines()[0]}"
