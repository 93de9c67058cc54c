"""Write and read the adapter folders of Hugging Face's `peft`.

Source: peft 0.21, `LoraConfig` and `save_and_load.py`: `adapter_config.json`, `adapter_model.safetensors`, tensor names
prefixed with `base_model.model.`. A module's scale is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora;
`rank_pattern` and `alpha_pattern` override r and lora_alpha for single modules. PEFT has no LoRA on a slice of a fused
layer: such slices are written, and read again, as LoRA on the whole layer.
"""

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from lora.adapters.adapter import Adapter, in_scores
from lora.adapters.base import check_base
from lora.adapters.folder import apart, inside, read_adapter, read_tensors, write_folder
from lora.adapters.loralib import config_of
from lora.checks import SettingsError, build
from lora.config.encoder_files import locate
from lora.errors import UserError, first_line
from lora.files import at_home, read_object
from lora.methods.bridge import peft_settings
from lora.methods.configs import LoraConfig, PeftConfig
from lora.methods.lowrank import in_blocks
from lora.models.architectures import in_order, module_of, slice_of

BASE = "base"  # the folder of a base below one that PEFT loads
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PROBLEMS = {True: "single_label_classification", False: "regression"}  # by whether there are labels: for pipelines
PEFT_TENSORS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "lora_m"}
# Settings that only say how an adapter was made or found. Any other that is not in `Settings` must be off, because it
# would change what the adapter computes, and so would an init outside INITS, which changes the pretrained weights.
DESCRIPTIVE = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules "
    "exclude_modules init_lora_weights layers_to_transform layers_pattern megatron_core qalora_group_size eva_config "
    "ensure_weight_tying"
).split()
OFF = (None, False, "none", {}, [])
ROUNDING = 1e-12  # relative; of a scale or an alpha that was computed from one
INITS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Settings:
    """The settings of `adapter_config.json` that determine what an adapter computes."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


def to_peft(adapter: Adapter | str | Path, out: str | Path, base: str | Path | None = None) -> None:
    """Write an adapter of LoRA, or of one of PEFT's methods, as a folder that PEFT loads, with the same logits.

    `AutoPeftModelForSequenceClassification.from_pretrained` loads it together with its base and the names of its
    labels: for a base in a folder, `out` holds its files, and a config with the labels. A base of the hub needs
    `num_labels`, unless there are 2. `PeftModel.from_pretrained` loads the adapter onto a base in memory. PEFT has no
    field for the rest of what an adapter states: task, score, and the base's hashes.

    Args:
        adapter: Adapter in memory, or its folder.
        base: Folder or hub id that PEFT shall load the base from. None uses the hub id or the embedded encoder that the
            adapter names. The weights in a folder must be those that the adapter was trained on.
    Raises: UserError: If the adapter is of another method, or has LoRA of several scales in one fused layer; if neither
        it nor `base` says where the base is, or it is another one; or if `out` cannot be written.
    """
    adapter = in_scores(adapter if isinstance(adapter, Adapter) else read_adapter(adapter), torch.float32)
    method = adapter.method
    if not isinstance(method, LoraConfig | PeftConfig):
        raise UserError(f"method {method.name} is of no format that peft loads; python -m lora predict uses it here")
    # PEFT saves whole modules: children of the model, and the pooler in its body
    parts = [name.split(".") for name in adapter.head]
    saved = sorted({".".join(part[: 1 + (part[1:2] == ["pooler"])]) for part in parts})
    if isinstance(method, LoraConfig):
        settings, tensors = lora_files(adapter, method)
    else:
        settings, tensors = peft_settings(method), adapter.weights
    place, revision = locate_base(adapter, base)
    if base is not None and Path(place).is_dir():
        check_base_folder(place, adapter)
    labelled = labelled_base(Path(place), adapter) if saved and Path(place).is_dir() else {}
    config = settings | {
        "task_type": "SEQ_CLS" if saved else None,
        "base_model_name_or_path": os.path.abspath(at_home(out) / BASE) if labelled else place,
        "revision": revision,
        "inference_mode": True,
        "modules_to_save": saved or None,
    }
    tensors = tensors | {f"{PREFIX}{name}": tensor for name, tensor in adapter.head.items()}
    weights = save(apart(tensors), metadata={"format": "pt"})
    write_folder(Path(out), labelled | {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights})


def check_base_folder(place: str, adapter: Adapter) -> None:
    """Raises: UserError: If the folder holds no base that PEFT can load with the adapter's head, or another one."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # a head that is not loaded is no news here
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load the base in {place}: {first_line(error)}") from error
    finally:
        logging.set_verbosity(level)
    shapes = {name: p.shape for name, p in model.named_parameters() if name not in report["missing_keys"]}
    if other := [name for name, tensor in adapter.head.items() if shapes.get(name, tensor.shape) != tensor.shape]:
        raise UserError(
            f"PEFT cannot load the base in {place} with the adapter's head: {', '.join(other)} have other shapes; save "
            f"the encoder alone, with model.base_model.save_pretrained"
        )
    check_base(model, adapter)


def labelled_base(place: Path, adapter: Adapter) -> dict[str, bytes | Path]:
    """A base's files, with the adapter's labels and dtype in its config, and in its tokenizer's the number of tokens
    that inputs are cut to: PEFT has no fields for them."""
    labels = adapter.origin.labels or ()
    sizes = {len(tensor) for tensor in adapter.head.values() if tensor.dim() == 2}  # outputs, and a dense layer's
    outputs = len(labels) if len(labels) in sizes else min(sizes)
    names = dict(enumerate(labels if len(labels) == outputs else [f"LABEL_{number}" for number in range(outputs)]))
    config = read_object(place / "config.json")
    config.pop("torch_dtype", None)  # of older versions
    config |= {"dtype": "float32", "id2label": names, "label2id": {name: number for number, name in names.items()}}
    if labels or outputs == 1:
        config["problem_type"] = PROBLEMS[outputs > 1]
    files: dict[str, bytes | Path] = {f"{BASE}/{path.name}": path for path in sorted(place.iterdir()) if path.is_file()}
    described = {"config.json": config}
    if adapter.origin.max_length is not None:
        stated = place / "tokenizer_config.json"
        described[stated.name] = read_object(stated) if stated.exists() else {}
        described[stated.name]["model_max_length"] = adapter.origin.max_length
    return files | {f"{BASE}/{name}": json.dumps(content, indent=1).encode() for name, content in described.items()}


def lora_files(adapter: Adapter, method: LoraConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's settings and tensors of a LoRA adapter.

    Slices of a fused layer become one update of the whole, with their B as blocks. The product of the joined factors is
    exactly that of the slices, and its rank is the sum of theirs.
    """
    pairs, modules = adapter.pairs(), {}
    for name in in_order(pairs):
        modules.setdefault(module_of(name), []).append(name)
    tensors: dict[str, Tensor] = {}
    ranks = {}
    alphas = {}
    alpha = method.alpha_at(method.rank)
    for module, names in modules.items():
        a, b = pairs[names[0]]
        scales = {name: adapter.scale(name) for name in names}
        alphas[module] = method.alpha_at(len(a))
        if names != [module]:
            count, scale = slice_of(names[0]).count, scales[names[0]]
            one_scale = all(math.isclose(own, scale, rel_tol=ROUNDING) for own in scales.values())
            if not one_scale or (method.dora and len(names) != count):
                listed = ", ".join(f"{own:g} on {name}" for name, own in scales.items())
                raise UserError(
                    f"PEFT has one factor of B A for all of {module}, and DoRA on all of it or on none; the adapter "
                    f"has {listed}: train all slices, with equal ranks or with method.alpha_at_rank"
                )
            outputs = count * len(b)
            a, b = in_blocks([(slice_of(name).rows(outputs), *pairs[name]) for name in names], outputs)
            alphas[module] = scale * (math.sqrt(len(a)) if method.scaling == "rslora" else len(a))
        ranks[module] = len(a)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        if method.dora:
            norms = torch.cat([adapter.weights[f"{name}.lora_m"] for name in names])
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = norms
    config = {
        "peft_type": "LORA",
        "target_modules": list(modules),
        "r": method.rank,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout,
        "use_rslora": method.scaling == "rslora",
        "use_dora": method.dora,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != method.rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
    }
    return config, tensors


def locate_base(adapter: Adapter, base: str | Path | None = None) -> tuple[str, str | None]:
    """The absolute folder or the hub id that `from_pretrained` takes for an adapter's base, and the revision.

    An adapter names its base without a path, because folders are copied between machines.
    """
    encoder = adapter.origin.encoder
    name, revision = (None, None) if adapter.base is None else (adapter.base.name, adapter.base.revision)
    if base is not None:
        place = os.path.abspath(at_home(base)) if at_home(base).is_dir() else str(base)
        return place, revision if encoder is not None and place == encoder.hub_id else None
    if encoder is not None and encoder.source == "hub":
        return encoder.hub_id, revision or encoder.revision
    if encoder is not None and encoder.source == "embedded":
        return locate(encoder)[0], None
    raise UserError(
        f"the adapter does not say where its base{f' ({name})' if name else ''} is: name the folder or the hub id that "
        f"it is loaded from, as base= of to_peft or as --model of export"
    )


def from_peft(folder: str | Path) -> Adapter:
    """Read a LoRA folder written by PEFT or by `to_peft`, including a head saved through `modules_to_save`.

    Raises: UserError: If it is not LoRA, or uses a feature that `LoraConfig` here lacks (trained biases, separate
        scales for modules, inits that change the base), or a file is missing, broken, or a pickle.
    """
    folder = at_home(folder)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder} has adapter_model.bin, a pickle, which is not read; PEFT saves safetensors by default"
        )
    try:
        settings = read_peft_settings(folder)
        tensors, _ = read_tensors(inside(folder, WEIGHTS))
        weights, head = split(tensors, settings.modules_to_save or (), folder / WEIGHTS)
        return Adapter(method_of(settings, weights, folder / CONFIG), weights, head)
    except SettingsError as error:
        raise UserError(f"{folder / CONFIG}: {'; '.join(error.problems)}") from error


def read_peft_settings(folder: Path) -> Settings:
    """Read PEFT's settings. Raises: SettingsError, UserError: If a type is wrong, or one is on but not supported."""
    path = inside(folder, CONFIG)
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type must be LORA, got {config.get('peft_type')!r}")
    read = {field.name for field in dataclasses.fields(Settings)}
    on = [f"{key}={value!r}" for key, value in config.items() if key not in {*DESCRIPTIVE, *read} and value not in OFF]
    if config.get("init_lora_weights", True) not in INITS:
        on.append(f"init_lora_weights={config['init_lora_weights']!r}, which changes the base")
    if on:
        raise UserError(f"{path} uses settings that are not supported: {'; '.join(on)}")
    settings = build(Settings, {key: value for key, value in config.items() if key in read})
    patterns = [*(settings.rank_pattern or ()), *(settings.alpha_pattern or ())]
    if strange := [name for name in patterns if not re.fullmatch(r"[\w.]+", name)]:
        # matching a stranger's regular expression may take forever
        raise UserError(f"{path}: pattern {strange[0]!r}: only module names are read, no regular expressions")
    return settings


def split(
    tensors: dict[str, Tensor], saved: tuple[str, ...], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """LoRA's tensors and the head's, under our names. Raises: UserError: If there is any other tensor."""
    weights, head = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        parts = name.split(".")
        factor = next((factor for factor in PEFT_TENSORS if name.endswith(f".{factor}")), None)
        if key != name and factor is not None:
            weights[f"{name.removesuffix(factor)}{PEFT_TENSORS[factor]}"] = tensor
        elif key != name and any(".".join(parts[:end]).endswith(saved) for end in range(1, len(parts))):
            head[name] = tensor
        else:
            raise UserError(
                f"{path} has {key}, which is neither LoRA's ({PREFIX}<module>.lora_A.weight) nor of modules_to_save "
                f"({', '.join(saved) or 'none'})"
            )
    return weights, head


def method_of(settings: Settings, weights: dict[str, Tensor], path: Path) -> LoraConfig:
    """A `LoraConfig` with every module's full name. Raises: UserError: If it cannot express the ranks or scales."""
    config = config_of(weights, settings.lora_alpha)
    ranks = {name: config.rank_of(name) for name in config.targets}
    for name, rank in ranks.items():
        if rank != (stated := by_pattern(settings.rank_pattern, name, settings.r)):
            raise UserError(f"{path} says rank {stated} for {name}, and its lora_A has rank {rank}")
    alphas = {name: by_pattern(settings.alpha_pattern, name, settings.lora_alpha) for name in ranks}
    usual = next(name for name in ranks if ranks[name] == config.rank)
    own = "rslora" if settings.use_rslora else "lora"
    as_lora = {name: alphas[name] * (math.sqrt(ranks[name]) if settings.use_rslora else 1) for name in ranks}
    shared = {"dropout": settings.lora_dropout, "dora": settings.use_dora}
    # one alpha for all, one ratio of alpha to rank, or one scale, as of rsLoRA on slices
    for scaling, at, given in ((own, None, alphas), (own, config.rank, alphas), ("lora", config.rank, as_lora)):
        method = dataclasses.replace(config, alpha=given[usual], alpha_at_rank=at, scaling=scaling, **shared)
        if all(math.isclose(method.alpha_at(ranks[name]), given[name], rel_tol=ROUNDING) for name in ranks):
            return method
    raise UserError(
        f"{path}: alpha_pattern gives modules separate scales: {alphas}; only one alpha, one ratio of alpha to "
        f"rank, or one scale, is supported"
    )


def by_pattern(pattern: dict[str, float] | None, name: str, default: float) -> float:
    """PEFT's rule: the first key that equals the module's name or ends it decides."""
    return next((own for key, own in (pattern or {}).items() if f".{name}".endswith(f".{key}")), default)
