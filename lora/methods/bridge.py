"""Methods of Hugging Face's `peft`, put on a model by its own tuner classes.

The tuner is given the transformers model itself and no task type, so that the model, the names of its head and what of
it trains are those of every other method: `get_peft_model(task_type="SEQ_CLS")` would leave BERT's pooler frozen.
"""

import dataclasses
import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lora.errors import UserError, first_line
from lora.methods.configs import SHORT_TARGETS, MethodConfig, PeftConfig
from lora.models.architectures import in_order, module_of, named_by, slice_of
from lora.models.modules import find_target, is_head, train_only, trainable
from lora.rng import seed_for

PROMPTS = "trains tokens in front of the input, for which PEFT wraps the model"
REFUSED = {  # types of PEFT's that cannot work here, with the reason
    "lora": "is method=lora here",
    "adaption_prompt": "is for decoders",
    "cartridge": PROMPTS,
    "cpt": PROMPTS,
    "lily": "averages its router over all tokens of a batch, so that a row's score depends on the other rows",
    "multitask_prompt_tuning": PROMPTS,
    "p_tuning": PROMPTS,
    "prefix_tuning": PROMPTS,
    "poly": "chooses among adapters by a task number of every row",
    "prompt_tuning": PROMPTS,
    "shadow": "is for decoders",
    "trainable_tokens": "trains embeddings of tokens alone",
    "xlora": "mixes adapters that are trained already",
}
FIXED = (  # parameters of PEFT's that are settled here
    "peft_type task_type inference_mode target_modules modules_to_save bias base_model_name_or_path revision "
    "auto_mapping peft_version total_step "
    "layers_to_transform layers_pattern "  # PEFT ignores them where modules are named in full
    "save_only_topk_weights"  # VB-LoRA's file could not be loaded again
).split()
IGNORED_ON_LINEAR = ("fan_in_fan_out", "use_effective_conv2d")  # on linear layers
IGNORED_BY = {"oft": ("module_dropout",)}  # and AdaLoRA
MORE = {"adalora": {"total_step": 2**31}}  # which its config needs; a run sets its own (`lora.training.ranks`)
OF_LORA = ("lora_alpha", "lora_dropout", "exclude_modules")  # all that AdaLoRA reads of those that PEFT's LoRA has
REBUILT = ("adamss", "frod", "psoft")  # clusters or factors of the pretrained weights are part of them, and of no file
SEEDS = {"projection_prng_key", "random_seed", "proj_seed", "projection_seed", "random_loc_seed"}  # of frozen draws
FAILURES = (ValueError, TypeError, RuntimeError, AssertionError, ImportError, KeyError)  # of PEFT, where it cannot
DEFAULT = "default"  # the adapter's name in PEFT, a part of the name of every parameter that it adds


def is_added(name: str) -> bool:
    """Whether PEFT added the parameter of this name to a model."""
    return DEFAULT in name.split(".")


class Shell(nn.Module):
    """What PEFT reads and writes state dicts of: its `PeftModel`, which it cannot build around a tuner."""

    def __init__(self, tuner: nn.Module):
        super().__init__()
        self.base_model, self.peft_config = tuner, tuner.peft_config


def library() -> ModuleType:
    """The package. Raises: UserError: If it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UserError("method=peft needs PEFT: pip install 'lora-glue[peers]'") from error
    return peft


def apply(model: nn.Module, config: PeftConfig, seed: int) -> tuple[str, ...]:
    """Put one of PEFT's methods on the model, in place, as `model.tuner`.

    What PEFT draws from the global generator, it draws from one that is seeded for this method.

    Returns: The names of the trainable parameters: the method's and the head's.
    Raises: UserError: If PEFT is missing, lacks the type or a parameter, takes a parameter with another value than
        given, or cannot put it on these modules. The model is then unchanged, unless PEFT had begun.
    """
    kind = config_class(config)
    peft = library()
    full = in_full(model, config)
    targets, options = list(full.targets), full.options
    if config.draw == "seed":
        drawn = seed_for(seed, "draw") >> 32  # 31 bits suit every type
        options |= dict.fromkeys(SEEDS & parameters(kind).keys(), drawn)
    elif "random_seed" in parameters(kind):
        options.setdefault("random_seed", 0)  # None is another draw at every reload
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), warnings.catch_warnings(record=True, action="always") as caught:
        torch.manual_seed(seed_for(seed, "peft"))
        try:
            settings = kind(target_modules=targets, **options, **MORE.get(config.type, {}))
            tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type](model, {DEFAULT: settings}, DEFAULT)
            if config.type != "ln_tuning":  # its copies of layers take inputs in the model's dtype (train_in_float32)
                peft.tuners.tuners_utils.cast_adapter_dtype(model, DEFAULT)
        except FAILURES as error:
            raise UserError(f"PEFT cannot put {config.type} on {type(model).__name__}: {first_line(error)}") from error
    for key, value in config.options.items():
        sign = re.compile(f"`{key}[`=]|Setting {key} to")  # that it ignores or changes the value, which names the run
        for warning in (str(one.message) for one in caught):
            if value != parameters(kind)[key] and sign.search(warning):
                raise UserError(f"PEFT does not take method.options.{key}={value}: {' '.join(warning.split())}")
    for layer in layers_of(model).values():
        layer.train(layer.get_base_layer().training)  # a new module would apply dropout in eval mode
        if model.config.model_type == "deberta-v2" and isinstance(layer.get_base_layer(), nn.Linear):
            layer.register_forward_hook(in_autocast_dtype)
    object.__setattr__(model, "tuner", tuner)  # no child: the tuner holds the model
    model.register_load_state_dict_pre_hook(refuse_merged)  # unmerging would take out what was loaded
    # A cast to another dtype makes AdaLoRA's numbers of ranks new parameters, which would train: they lack the prefix.
    names = [name for name, _ in trainable(model) if tuner.prefix in name and not is_head(model, name)]
    return train_only(model, names)


def in_autocast_dtype(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """A layer's output in the dtype that autocast gives a linear layer. Some of PEFT's layers, such as VeRA's, return
    float32. DeBERTa masks its scores, in bfloat16, with the lowest value of the query's dtype: float32's overflows."""
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


def tuner_config(name: str) -> type:
    """PEFT's config class of a type. Raises: UserError: If PEFT has none, or it cannot work here."""
    types = {t.value.lower(): kind for t, kind in library().PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name in REFUSED:
        raise UserError(f"method.type={name} {REFUSED[name]}")
    if name not in types:
        raise UserError(f"method.type must be one of {', '.join(sorted({*types} - {*REFUSED}))}, got {name!r}")
    return types[name]


def parameters(kind: type) -> dict[str, Any]:
    """The parameters of a config class that adapters state, with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind) if field.init and field.name not in FIXED}


def config_class(config: PeftConfig) -> type:
    """PEFT's config class of a method. Raises: UserError: If PEFT is missing, or takes no such type or option."""
    kind = tuner_config(config.type)
    if config.draw == "seed" and not SEEDS & parameters(kind).keys() - config.options.keys():
        raise UserError(f"method.draw must be fixed: {config.type} freezes no draw, or options state its seed")
    of_lora = parameters(kind.__base__).keys() - OF_LORA if config.type == "adalora" else ()
    stated = parameters(kind)
    ignored = {*IGNORED_ON_LINEAR, *IGNORED_BY.get(config.type, ()), *of_lora}
    settable = [key for key in stated if key not in ignored]
    for key, value in config.options.items():
        if key not in settable and not (key in stated and value == stated[key]):  # an adapter states all
            near = difflib.get_close_matches(key, settable, 1, 0.5)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise UserError(
                f"method.options.{key} is no parameter of {config.type} that can be set; {nearest}they are "
                f"{', '.join(settable)}"
            )
        if key.endswith("_modules") and not isinstance(value, list):
            raise UserError(f"method.options.{key} must be a list of modules, got {value!r}")
    return kind


def in_full(model: nn.Module, config: MethodConfig) -> MethodConfig:
    """The config with full names of modules, in targets and options. Raises: UserError: As `modules_of`."""
    if not isinstance(config, PeftConfig):
        return config
    body = [name for name, module in model.named_modules() if [*module.parameters()] and not is_head(model, name)]
    targets, options = modules_of(model, config.targets, body), dict(config.options)
    for key in [key for key in options if key.endswith("_modules")]:  # of IA3: those whose input is rescaled
        options[key] = modules_of(model, options[key], targets)
    return dataclasses.replace(config, targets=tuple(targets), options=options)


def modules_of(model: nn.Module, targets: Sequence[str], among: Sequence[str]) -> list[str]:
    """The names of the modules that targets stand for. A name or a pattern may also mean a LayerNorm.

    Args:
        among: The names that names, patterns and ends of names, as in older adapters, are compared with.
    Raises: UserError: If nothing matches, or a target is a slice of a fused layer whose other slices are not named.
    """
    names = [
        name
        for target in targets
        for name in (target in SHORT_TARGETS and find_target(model, target))
        or named_by(target, among)
        or named_by(f"*.{target}", among)
        or find_target(model, target)
    ]
    for name in in_order(names):
        part = slice_of(name)
        if part is not None and sum(module_of(other) == part.module for other in names) < part.count:
            rule = f"{name} is one of {part.count} slices: name them all in method.targets"
            raise UserError(f"PEFT adapts layers as a whole, and {rule}")
    return sorted({*map(module_of, names)})


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """PEFT's layers on a model, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def ending_in(ends: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that end in one of `ends`, which is how PEFT reads IA3's `feedforward_modules`."""
    return [name for name in names if name.endswith(tuple(ends))]


def resolved(model: nn.Module, config: PeftConfig) -> PeftConfig:
    """The config with full names of modules and every parameter, PEFT's defaults included, as far as JSON has them."""
    settings, targets = model.tuner.peft_config[DEFAULT], sorted(layers_of(model))  # its names may be shortened
    values = {key: getattr(settings, key) for key in parameters(type(settings))}
    values = {key: ending_in(value, targets) if isinstance(value, set) else value for key, value in values.items()}
    options = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str | list)}
    return dataclasses.replace(config, targets=tuple(targets), options=options, draw="fixed")


def peft_settings(config: PeftConfig) -> dict[str, Any]:
    """The content of PEFT's `adapter_config.json` for a resolved config."""
    options = config.options | MORE.get(config.type, {})
    options |= {key: ending_in(ends, config.targets) for key, ends in options.items() if key.endswith("_modules")}
    settings = tuner_config(config.type)(target_modules=list(config.targets), **options).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def merge(model: nn.Module) -> None:
    """Fold the method into copies of the weights that it adapts; `unmerge` puts the pretrained ones back.

    Raises: UserError: If the type cannot be merged. The model is then unchanged.
    """
    if getattr(model, "pretrained", None):
        return
    model.pretrained = []  # each layer with its module of the base, and that module's own parameters
    for layer in layers_of(model).values():
        base = layer.get_base_layer()
        own = dict(base.named_parameters(recurse=False))
        model.pretrained.append((layer, base, own))
        for name, parameter in own.items():
            setattr(base, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        try:
            layer.merge(safe_merge=True)
        except FAILURES as error:
            unmerge(model)
            raise UserError(f"PEFT cannot merge {model.applied.method.type}: {first_line(error)}") from error


def unmerge(model: nn.Module) -> None:
    for layer, base, own in getattr(model, "pretrained", ()):
        if layer.get_base_layer() is base:
            layer.merged_adapters.clear()
        else:
            layer.unmerge()  # its merging exchanges modules
        for name, parameter in own.items():
            parameter.data = parameter.data.to(getattr(base, name))  # the model's device and dtype now
            setattr(base, name, parameter)
    model.pretrained = []


def refuse_merged(model: nn.Module, *_: Any) -> None:
    """Raises: UserError: If an adapter is merged into the model: unmerging would take out what was loaded since."""
    if getattr(model, "pretrained", None) or getattr(model, "kept_layers", None):
        raise UserError("this adapter is merged: call unmerge before it is saved, or another state is loaded")


def method_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the method on a model, under the names of PEFT's files. Raises: UserError: If it is merged."""
    refuse_merged(model)
    with warnings.catch_warnings(action="ignore"):
        return library().get_peft_model_state_dict(Shell(model.tuner))


def set_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with warnings.catch_warnings(action="ignore"):
        result = library().set_peft_model_state_dict(Shell(model.tuner), dict(tensors))
    assert not result.unexpected_keys, result.unexpected_keys
