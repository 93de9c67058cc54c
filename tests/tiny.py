"""Two-layer encoders of every architecture and of some others, with tokenizers, built on the fly."""

from pathlib import Path

import sentencepiece
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
OTHERS = ("albert", "roformer", "deberta", "xlnet", "longformer", "bart")  # outside the table; ALBERT shares its layers
PRE_NORM = ("modernbert",)  # without a place for Pfeiffer adapters
UNBIASED = ("modernbert",)  # like its released checkpoints: nothing for BitFit
ROBERTAS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # tokens and positions are RoBERTa's
WORDS = (
    "a the film is was good bad dull bright very not and story actor plot music scene ends starts well badly".split()
)
COMMON = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def config(architecture: str, **extra) -> transformers.PretrainedConfig:
    vocabulary = {"vocab_size": 64 if architecture == "deberta-v2" else len(WORDS) + 5}
    if architecture == "distilbert":
        sizes = {
            "n_layers": 2,
            "dim": 32,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        }
        return transformers.DistilBertConfig(**vocabulary, **sizes, **extra)
    if architecture == "deberta-v2":
        relative = {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_buckets": 8,
        }
        relative |= {"max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
        return transformers.DebertaV2Config(
            **vocabulary, **COMMON, **relative, type_vocab_size=0, pad_token_id=0, **extra
        )
    if architecture == "modernbert":  # the second layer sees three tokens to each side: at least one is not padding
        special = {"local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0, "cls_token_id": 2}
        special |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        return transformers.ModernBertConfig(**{**vocabulary, **COMMON, **special, **extra})
    if architecture in OTHERS:
        return other(architecture, **extra)
    kinds = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "electra": transformers.ElectraConfig,
        "mpnet": transformers.MPNetConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "camembert": transformers.CamembertConfig,
    }
    special = {"embedding_size": 16} if architecture == "electra" else {}
    special |= {"pad_token_id": 1} if architecture in ROBERTAS else {"pad_token_id": 0}
    special |= {"type_vocab_size": 1} if architecture in ("roberta", "xlm-roberta", "camembert") else {}
    return kinds[architecture](**{**vocabulary, **COMMON, **special, **extra})


def other(architecture: str, **extra) -> transformers.PretrainedConfig:
    vocabulary = {"vocab_size": len(WORDS) + 5, "pad_token_id": 0}
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    sides = ("layers", 2), ("attention_heads", 4), ("ffn_dim", 48)
    kinds = {
        "albert": (transformers.AlbertConfig, {**COMMON, "embedding_size": 16}),
        "roformer": (transformers.RoFormerConfig, COMMON),
        "deberta": (transformers.DebertaConfig, {**COMMON, **relative}),
        "xlnet": (transformers.XLNetConfig, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
        "longformer": (transformers.LongformerConfig, {**COMMON, "attention_window": 4}),
        "bart": (
            transformers.BartConfig,
            {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sides}
            | {"d_model": 32, "max_position_embeddings": 64},
        ),
    }
    kind, sizes = kinds[architecture]
    return kind(**{**vocabulary, **sizes, **extra})


METHODS: dict[str, MethodConfig] = {  # every method, as applied to the tiny encoders
    "full": FullConfig(),
    "bitfit": BitFitConfig(),
    "lora": LoraConfig(rank=3),
    "houlsby": HoulsbyConfig(bottleneck=6),
    "pfeiffer": PfeifferConfig(bottleneck=6),
    "adapterdrop": AdapterDropConfig(bottleneck=6, drop_layers=1),
}


def takes(architecture: str, method: str) -> bool:
    """Whether an architecture supports a method; `tests/test_architectures.py` tries all of them."""
    lacking = {"pfeiffer": PRE_NORM, "adapterdrop": PRE_NORM, "bitfit": UNBIASED}
    return architecture not in lacking.get(method, ())


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
    tokenizer(path, architecture).save_pretrained(path)
    return path


def tokenizer(path: Path, architecture: str) -> transformers.PreTrainedTokenizerBase:
    if architecture == "deberta-v2":
        path.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(path / "spm"),
            vocab_size=60,
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
            minloglevel=2,
        )
        return transformers.DebertaV2Tokenizer.from_pretrained(path, vocab_file=str(path / "spm.model"))
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
