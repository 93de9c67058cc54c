"""Sizes of the paper's models, and GPT-3's number of trainable parameters, without torch or weights."""

import re
from typing import Any

# Source: config.json of FacebookAI/roberta-base, FacebookAI/roberta-large and microsoft/deberta-v2-xxlarge on the hub.
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_DEBERTA = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "position_biased_input": False,  # no absolute positions in the input
    "relative_attention": True,
    "position_buckets": 256,
    "max_relative_positions": -1,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,  # relative positions go through the query and key projections
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}
_KEYS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "roberta_base": _ROBERTA | dict(zip(_KEYS, (12, 768, 12, 3072), strict=True)),
    "roberta_large": _ROBERTA | dict(zip(_KEYS, (24, 1024, 16, 4096), strict=True)),
    "deberta_v2_xxl": _DEBERTA | dict(zip(_KEYS, (48, 1536, 24, 6144), strict=True)),
}
# Brown et al. 2020, table 2.1: 96 layers, FFN width 4 d, context length 2048, GPT-2's vocabulary.
GPT3_SIZES = {"layers": 96, "d": 12288, "vocabulary": 50257, "positions": 2048}


def gpt3_count(slug: str) -> int:
    """Number of trainable parameters of GPT-3 175B with full fine-tuning or with LoRA on attention matrices.

    Source: Hu et al. 2021, section 5.1, for LoRA. For full fine-tuning, the layers of Radford et al. 2019: per layer
    12 d^2 in matrices and 13 d in biases and LayerNorms, plus token and position embeddings and a final LayerNorm.

    Args:
        slug: `full`, or of the form `lora-qv-r4`.
    Raises: ValueError: For any other slug.
    """
    layers, d = GPT3_SIZES["layers"], GPT3_SIZES["d"]
    if slug == "full":
        return layers * (12 * d * d + 13 * d) + (GPT3_SIZES["vocabulary"] + GPT3_SIZES["positions"]) * d + 2 * d
    match = re.fullmatch(r"lora-([qkvo]+)-r(\d+)", slug)
    if match is None:
        raise ValueError(f"{slug!r} is neither full nor LoRA on q, k, v, o")
    return len(match[1]) * layers * 2 * d * int(match[2])
