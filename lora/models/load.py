"""An encoder with a new classification head, from the embedded package, a local folder or the hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from lora.config.encoder_files import locate, weights_name
from lora.config.run import ModelConfig
from lora.data.tasks import Task
from lora.errors import UserError, first_line
from lora.models.modules import is_head
from lora.rng import generator

# The same two quantities under each architecture's name for them.
BODY_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
HEAD_DROPOUT = ("classifier_dropout", "cls_dropout", "seq_classif_dropout")


@dataclass(frozen=True)
class Encoder:
    """A loaded model. `weights` names what was read: a sha256 of the files, or the hub's commit."""

    model: nn.Module
    tokenizer: Tokenizer
    weights: str
    revision: str | None


def load_encoder(
    config: ModelConfig, task: Task, seed: int, dropout: float | None = None, head_dropout: float | None = None
) -> Encoder:
    """Read the pretrained body, strictly, in float32, and give it a new head for the task.

    The head is every parameter outside the body, and BERT's pooler, which lies inside the body but which only the
    sequence head reads: it keeps its pretrained values if the checkpoint has them, and trains with the head.
    The head's other weights are N(0, initializer_range^2), its biases zero, whatever the checkpoint holds.

    Raises: UserError: If weights or tokenizer are absent, a body tensor is missing, unknown or of another shape, or a
        local file changes meanwhile: `weights` names what is in the model, and later changes do not reach it.
    """
    where, source = locate(config)
    commit = hub_commit(where, source) if config.source == "hub" else None
    if commit is not None:
        source = {"revision": commit}  # whatever the branch does meanwhile, all files are of one commit
    before = weights_name(where, commit, config) if commit is None else None  # no commit of the hub is ever rewritten
    logging.set_verbosity_error()  # its load report is checked below, not printed for every cell
    logging.disable_progress_bar()
    settings = read_config(where, source, len(task.labels) or 1, dropout, head_dropout)
    settings._attn_implementation = (
        config.attention if config.attention == "eager" or supports_sdpa(settings) else "eager"
    )
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            where,
            config=settings,
            dtype=torch.float32,
            use_safetensors=config.source != "hub" or config.pickle == "never",
            weights_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # of the head only: the check below refuses any other
            output_loading_info=True,
            **source,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"cannot load weights of {config.name} from {where}: {first_line(error)}") from error
    own_memory(model)
    check_loaded(model, report, config)
    weights = weights_name(where, commit, config)
    if before not in (None, weights):
        raise UserError(f"the files of {where} changed while {config.name} was read from them; try again")
    init_head(model, seed, missing=set(report["missing_keys"]))
    if config.gradient_checkpointing:
        # renamed within transformers 5, whose first releases have the old name only
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return Encoder(model, load_tokenizer(where, source), weights, commit)


def hub_commit(hub_id: str, source: dict) -> str:
    """The commit that a branch or tag of the hub stands for: the name of the snapshot its files lie in."""
    try:
        return Path(hf_hub_download(hub_id, "config.json", **source)).parent.name
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(f"cannot read the model's config from {hub_id}: {first_line(error)}") from error


def read_config(
    where: str, source: dict, outputs: int, dropout: float | None, head_dropout: float | None
) -> PretrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(where, num_labels=outputs, trust_remote_code=False, **source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the model's config from {where}: {first_line(error)}") from error
    for keys, value in ((BODY_DROPOUT, dropout), (HEAD_DROPOUT, head_dropout)):
        for key in keys:
            # DeBERTa-v2 reads a cls_dropout that its config class does not declare.
            known = hasattr(settings, key) or (key == "cls_dropout" and settings.model_type == "deberta-v2")
            if value is not None and known:
                setattr(settings, key, value)
    return settings


def supports_sdpa(settings: PretrainedConfig) -> bool:
    """DeBERTa's disentangled attention exists in one implementation only."""
    return settings.model_type not in ("deberta", "deberta-v2")


@torch.no_grad()
def own_memory(model: nn.Module) -> None:
    """Copy every tensor out of the files that it was read from.

    transformers maps them into memory, so that writing to a file would change the weights of a model in use. One tensor
    is copied at a time; the mapped pages are the system's to drop whenever it needs room.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def check_loaded(model: nn.Module, report: dict, config: ModelConfig) -> None:
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    lacking = sorted(name for name in [*report["missing_keys"], *mismatched] if not is_head(model, name))
    unused = re.compile("|".join(config.unused_weights) or r"(?!)")
    unknown = sorted(n for n in report["unexpected_keys"] if not unused.search(n) and not n.endswith("position_ids"))
    if lacking or unknown:
        raise UserError(
            f"weights of {config.name} do not fit {type(model).__name__}: missing or of another shape: "
            f"{listed(lacking)}; not expected: {listed(unknown)} (tensors of a pretraining head are named in "
            f"model.unused_weights)"
        )


@torch.no_grad()
def init_head(model: nn.Module, seed: int, missing: set[str]) -> None:
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if not is_head(model, name) or (name.startswith(f"{model.base_model_prefix}.") and name not in missing):
            continue
        if name.endswith("bias"):
            parameter.zero_()
        else:
            draw = torch.empty(parameter.shape).normal_(0.0, std, generator=generator(seed, "head", name))
            parameter.copy_(draw)


def load_tokenizer(where: str, source: dict) -> Tokenizer:
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"cannot load the tokenizer from {where}: {first_line(error)}") from error


def max_positions(settings: PretrainedConfig) -> int:
    """The longest input in tokens. RoBERTa's positions start after the padding index, which costs it two."""
    positions = settings.max_position_embeddings
    return positions - settings.pad_token_id - 1 if settings.model_type in ("roberta", "xlm-roberta") else positions


def listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"
