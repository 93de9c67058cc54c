"""Load an encoder with a new classification head from the embedded package, a local folder or the hub."""

import re
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from lora.config.encoder_files import hub_commit, locate, refuse_longer, tokenizer_name, weights_name
from lora.config.run import ModelConfig
from lora.data.tasks import Task
from lora.errors import UserError, first_line, listed
from lora.models.architectures import ARCHITECTURES
from lora.models.modules import architecture_of, is_head
from lora.models.sizes import ENCODER_SIZES
from lora.rng import generator

# The names of these two settings differ between architectures.
BODY_DROPOUT = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("mlp_dropout", "embedding_dropout"),
)
HEAD_DROPOUT = ("classifier_dropout", "cls_dropout", "seq_classif_dropout")


@dataclass(frozen=True)
class Encoder:
    """A loaded model.

    Args:
        weights: Identity of the loaded weights: `sha256:` and a hash of the files, or `commit:` and the hub's commit.
        tokenizer_files: The same for the tokenizer.
        revision: The hub's commit; None for other sources.
    """

    model: nn.Module
    tokenizer: Tokenizer
    weights: str
    tokenizer_files: str
    revision: str | None


def load_encoder(
    config: ModelConfig,
    task: Task,
    seed: int,
    dropout: float | None = None,
    head_dropout: float | None = None,
    max_length: int | None = None,
) -> Encoder:
    """Load the pretrained body, strictly and in float32, and add a new head for the task.

    The head is every parameter outside the body, and BERT's pooler, which is inside the body but used only by the
    classifier. The pooler trains with the head and keeps the checkpoint's values if there are any. So does ModernBERT's
    `head`, from masked-language modelling. Regardless of the checkpoint, the head's other weights are drawn from
    N(0, initializer_range^2), its biases are zero, and its LayerNorms are the identity.

    Args:
        seed: Seed of the head.
        dropout: Dropout of the body; None keeps the value in the pretrained config.
        head_dropout: Dropout of the head; None keeps the value in the pretrained config.
        max_length: Number of tokens that the model must read; None accepts any model.
    Raises: UserError: If weights or tokenizer are missing, a tensor of the body is missing, unknown or of another
        shape, or the model reads fewer tokens. Later changes of the files do not affect the model.
    """
    where, source = locate(config)
    commit = hub_commit(where, source) if config.source == "hub" else None
    if commit is not None:
        source = {"revision": commit}  # so that all files come from one commit, even if the branch moves
    logging.set_verbosity_error()  # check_loaded checks the load report instead
    logging.disable_progress_bar()
    settings = read_config(where, source, len(task.labels) or 1)
    if max_length is not None:  # before the weights are downloaded
        refuse_longer(config.name, settings.to_dict(), max_length)
    of_head = set_dropout(settings, dropout, head_dropout)
    known = ARCHITECTURES.get(settings.model_type)  # all have eager attention
    settings._attn_implementation = config.attention if known is not None and known.sdpa else "eager"
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            where,
            config=settings,
            dtype=torch.float32,
            use_safetensors=config.source != "hub" or config.pickle == "never",
            weights_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # check_loaded allows this only in the head
            output_loading_info=True,
            **source,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"cannot load weights of {config.name} from {where}: {first_line(error)}") from error
    with torch.no_grad():  # out of the memory-mapped files: writing to one would change the model
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    absent = check_loaded(model, report, config)
    tokenizer = load_tokenizer(where, source)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer in {where} has {len(tokenizer)} tokens, but {config.name} has embeddings for "
            f"{model.get_input_embeddings().num_embeddings}: one of the two belongs to another model"
        )
    if getattr(settings, "type_vocab_size", None) == 1:  # some RoBERTas have BERT's tokenizer, with a type per text
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    init_head(model, seed, absent)
    if of_head is not None:
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and is_head(model, name):
                module.p = of_head
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"model.gradient_checkpointing must be false: {type(model).__name__} has none")
        # renamed in transformers 5, whose first releases have only the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return Encoder(model, tokenizer, weights_name(where, commit, config), tokenizer_name(where, commit), commit)


def read_config(where: str, source: dict, outputs: int) -> PretrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(where, num_labels=outputs, trust_remote_code=False, **source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the model's config from {where}: {first_line(error)}") from error
    if getattr(settings, "quantization_config", None) is not None:
        raise UserError(f"the model in {where} is quantized: use the one with floating-point weights")
    return settings


def set_dropout(settings: PretrainedConfig, dropout: float | None, head_dropout: float | None) -> float | None:
    """Set the given dropouts. Returns: The head's if the architecture has no setting for it; None to keep it.

    A head without a value of its own takes the body's: if only the body's changes, the head keeps the earlier one.
    """
    # DeBERTa-v2 uses a cls_dropout that its config class does not declare. MPNet's head has no setting.
    undeclared = ["cls_dropout"] if settings.model_type == "deberta-v2" else []
    head = [key for key in HEAD_DROPOUT if hasattr(settings, key) or key in undeclared]
    if dropout is not None:
        if head_dropout is None and all(getattr(settings, key, None) is None for key in head):
            head_dropout = getattr(settings, "hidden_dropout_prob", None)
        for key in (key for key in BODY_DROPOUT if hasattr(settings, key)):
            setattr(settings, key, dropout)
    if head_dropout is not None:
        for key in head:
            setattr(settings, key, head_dropout)
    return None if head else head_dropout


def check_loaded(model: nn.Module, report: dict, config: ModelConfig) -> set[str]:
    """Check the load report. Returns: The head's tensors that were not loaded.

    Raises: UserError: If a tensor of the body is missing or of another shape, or the checkpoint has an unknown one.
    """
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    absent, known = {*report["missing_keys"], *mismatched}, architecture_of(model)
    lacking = sorted(name for name in absent if not is_head(model, name))
    try:
        unused = re.compile("|".join([*config.unused_weights, r"(?!)" if known is None else known.unused]))
    except re.error as error:
        raise UserError(f"model.unused_weights must hold regular expressions: {error}") from error
    unknown = sorted(
        name for name in report["unexpected_keys"] if not unused.search(name) and not name.endswith("position_ids")
    )
    if lacking or unknown:
        raise UserError(
            f"weights of {config.name} do not fit {type(model).__name__}: missing or of another shape: "
            f"{listed(lacking) or 'none'}; not expected: {listed(unknown) or 'none'} (model.unused_weights names the "
            f"tensors of a pretraining head)"
        )
    return absent


@torch.no_grad()
def init_head(model: nn.Module, seed: int, missing: set[str]) -> None:
    """Initialise the head. Parameters of its pretrained modules are drawn only if `missing` from the checkpoint."""
    # 0.02 is the default of transformers' encoders; a few lack the setting
    std = getattr(model.config, "initializer_range", 0.02)
    known = architecture_of(model)
    pretrained = (model.base_model_prefix, *(() if known is None else known.pretrained_head))
    for name, parameter in model.named_parameters():
        if not is_head(model, name) or (name.startswith(tuple(f"{m}." for m in pretrained)) and name not in missing):
            continue
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:  # of a LayerNorm
            parameter.fill_(1.0)
        else:
            draw = torch.empty(parameter.shape).normal_(0.0, std, generator=generator(seed, "head", name))
            parameter.copy_(draw)


def load_tokenizer(where: str, source: dict) -> Tokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"cannot load the tokenizer from {where}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one if the vocabulary's file is absent
        raise UserError(f"the tokenizer in {where} has no vocabulary, only {', '.join(tokenizer.all_special_tokens)}")
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer in {where} has no padding token: name one as pad_token in tokenizer_config.json"
        )
    return tokenizer


def model_of_size(model: str, outputs: int, attention: str = "eager") -> nn.Module:
    """A model of a published size, with its classification head and newly initialised weights."""
    sizes = dict(ENCODER_SIZES[model])
    settings = AutoConfig.for_model(sizes.pop("model_type"), num_labels=outputs, **sizes)
    settings._attn_implementation = attention
    return AutoModelForSequenceClassification.from_config(settings)
