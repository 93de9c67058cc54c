"""Two-layer encoders of every architecture and of some others, with tokenizers, built on the fly."""

import itertools
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lora.methods.configs import (
    AdapterDropConfig,
    BitFitConfig,
    FullConfig,
    HoulsbyConfig,
    LoraConfig,
    MethodConfig,
    PfeifferConfig,
)

ARCHITECTURES = (
    *("bert", "roberta", "deberta-v2", "electra", "distilbert"),
    *("mpnet", "xlm-roberta", "camembert", "modernbert"),
)
OTHERS = ("albert", "deberta", "bart")  # outside the table; ALBERT shares its layers
PRE_NORM = ("modernbert",)  # without a place for Pfeiffer adapters
UNBIASED = ("modernbert",)  # like its released checkpoints: nothing for BitFit
ROBERTAS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # tokens and positions are RoBERTa's
SENTENCE = "a the film is was good bad dull bright very not and story actor plot music scene ends starts well badly"
WORDS = SENTENCE.split()
COMMON = {
    "vocab_size": len(WORDS) + 5,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PLACES = {"max_position_embeddings": 64}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
# model_type -> the class of its configuration, and what differs from COMMON, whose names some classes do not take
KINDS = {
    "bert": (transformers.BertConfig, {}),
    "roberta": (transformers.RobertaConfig, ROBERTA),
    "xlm-roberta": (transformers.XLMRobertaConfig, ROBERTA),
    "camembert": (transformers.CamembertConfig, ROBERTA),
    "mpnet": (transformers.MPNetConfig, {"pad_token_id": 1}),
    "electra": (transformers.ElectraConfig, {"embedding_size": 16}),
    "distilbert": (transformers.DistilBertConfig, {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48, **PLACES}),
    "deberta-v2": (
        transformers.DebertaV2Config,
        RELATIVE
        | {"share_att_key": True, "position_buckets": 8, "max_relative_positions": -1}
        | {"norm_rel_ebd": "layer_norm", "position_biased_input": False},
    ),
    "modernbert": (  # the second layer sees three tokens to each side: at least one is not padding
        transformers.ModernBertConfig,
        {"local_attention": 6, "global_attn_every_n_layers": 2}
        | {"cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    ),
    "albert": (transformers.AlbertConfig, {"embedding_size": 16}),
    "deberta": (transformers.DebertaConfig, RELATIVE),
    "bart": (
        transformers.BartConfig,
        {f"{side}_layers": 2 for side in ("encoder", "decoder")}
        | {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
        | {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
        | {"d_model": 32, **PLACES},
    ),
}
OWN_NAMES = ("distilbert", "bart")  # of sizes


def config(architecture: str, **extra) -> transformers.PretrainedConfig:
    kind, own = KINDS[architecture]
    kept = ("vocab_size", "pad_token_id") if architecture in OWN_NAMES else COMMON
    return kind(**{name: COMMON[name] for name in kept} | own | extra)


METHODS: dict[str, MethodConfig] = {  # every method, as applied to the tiny encoders
    "full": FullConfig(),
    "bitfit": BitFitConfig(),
    "lora": LoraConfig(rank=3),
    "houlsby": HoulsbyConfig(bottleneck=6),
    "pfeiffer": PfeifferConfig(bottleneck=6),
    "adapterdrop": AdapterDropConfig(bottleneck=6, drop_layers=1),
}
BOTTLENECKS = ("houlsby", "pfeiffer", "adapterdrop")


def takes(architecture: str, method: str) -> bool:
    """Whether an architecture supports a method; `tests/models/test_architectures.py` tries all of them."""
    lacking = {"pfeiffer": PRE_NORM, "adapterdrop": PRE_NORM, "bitfit": UNBIASED}
    return architecture not in lacking.get(method, ())


def pairs(*methods: str) -> list[tuple[str, str]]:
    """Each architecture with each of the methods that it supports."""
    return [pair for pair in itertools.product(ARCHITECTURES, methods) if takes(*pair)]


def model(architecture: str, outputs: int = 2, seed: int = 0, **extra) -> torch.nn.Module:
    """A float32 classifier with eager attention, its weights scaled up so that two layers already mix their inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = config(architecture, num_labels=outputs, **extra)
        settings._attn_implementation = "eager"
        built = transformers.AutoModelForSequenceClassification.from_config(settings)
        for name, parameter in built.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.15)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.05)
    return built.eval()


def inputs(architecture: str, rows: int = 5, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens. The last two examples are padded. BART's head looks for one end token in each."""
    source = torch.Generator().manual_seed(seed)
    settings = config(architecture)
    ids = torch.randint(5, settings.vocab_size, (rows, length), generator=source)
    mask = torch.ones_like(ids)
    mask[-2:, length - 3 :] = 0
    ids[mask == 0] = settings.pad_token_id
    if architecture == "bart":
        ids[range(rows), mask.sum(1) - 1] = settings.eos_token_id
    return {"input_ids": ids, "attention_mask": mask}


def folder(path: Path, architecture: str, seed: int = 0, **extra) -> Path:
    """Write a pretrained-model folder as a user has it: config.json, model.safetensors, tokenizer files."""
    model(architecture, seed=seed, **extra).base_model.save_pretrained(path)
    tokenizer(architecture).save_pretrained(path)
    return path


def tokenizer(architecture: str) -> transformers.PreTrainedTokenizerBase:
    special = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if architecture in ROBERTAS
        else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    unknown, begin, end, pad = (
        ("<unk>", "<s>", "</s>", "<pad>") if architecture in ROBERTAS else ("[UNK]", "[CLS]", "[SEP]", "[PAD]")
    )
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    names = {"unk_token": unknown, "pad_token": pad, "cls_token": begin, "sep_token": end}
    inputs_of = ["input_ids", "attention_mask"] + (["token_type_ids"] if architecture in ("bert", "electra") else [])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs_of, **names)


def sentences(count: int, seed: int = 0) -> list[str]:
    source = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(WORDS), (count, 6), generator=source)
    return [" ".join(WORDS[i] for i in row) for row in picks.tolist()]
