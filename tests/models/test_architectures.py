"""The modules of each architecture: layers written by hand, and the table of conf/README.md."""

import math

import pytest
import tiny
import torch
import transformers
from torch.nn.functional import gelu, relu, silu

from lora.config.auto import not_covered
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import METHODS, apply
from lora.methods.configs import BitFitConfig, HoulsbyConfig, LoraConfig, PeftConfig, PfeifferConfig
from lora.models.architectures import ARCHITECTURES
from lora.models.modules import count_parameters, is_head, trainable

RANDOM = {"bottleneck": 5, "init_std": 0.3, "init_truncated": False}


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def linear(x, layer):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def norm(x, layer):
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + layer.eps)
    return x * layer.weight + (0 if layer.bias is None else layer.bias)


def bottleneck(x, adapter, activation):
    return linear(activation(linear(x, adapter.down)), adapter.up)


def attend(q, k, v, bias=0.0, turn=lambda heads: heads):
    """softmax(q k^T / sqrt(d) + bias) v of four heads, each (2, 6, 32)."""
    q, k, v = (x.view(2, 6, 4, 8).transpose(1, 2) for x in (q, k, v))
    scores = turn(q) @ turn(k).transpose(2, 3) / math.sqrt(8) + bias
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(2, 6, 32)


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "distilbert"])
def test_a_post_norm_layer_with_adapters_by_hand(architecture, method):
    """Houlsby: projection, adapter with its skip, residual, LayerNorm, twice. Pfeiffer: LN(s + adapter(LN(s)))."""
    model = tiny.model(architecture).double()
    apply(model, HoulsbyConfig(**RANDOM) if method == "houlsby" else PfeifferConfig(**RANDOM), seed=0)
    body, x, bias = model.base_model, draw(2, 6, 32), 0.0
    if architecture == "distilbert":
        layer = body.transformer.layer[1]
        q, k, v, o = (layer.attention.get_submodule(f"{name}_lin") for name in ("q", "k", "v", "out"))
        first, second, ends = layer.ffn.lin1, layer.ffn.lin2, (o, layer.ffn.dropout)
        norms, more = (layer.sa_layer_norm, layer.output_layer_norm), ()
    else:
        layer = body.encoder.layer[1]
        attention, first, second = layer.attention, layer.intermediate.dense, layer.output.dense
        if architecture == "mpnet":
            q, k, v, o = (attention.attn.get_submodule(name) for name in "qkvo")
            end = attention
            bias = draw(1, 4, 6, 6)
        else:
            q, k, v = (attention.self.get_submodule(name) for name in ("query", "key", "value"))
            o, end = attention.output.dense, attention.output
        ends, norms = (end.dropout, layer.output.dropout), (end.LayerNorm, layer.output.LayerNorm)
        more = (None, bias) if architecture == "mpnet" else ()
    h = linear(attend(linear(x, q), linear(x, k), linear(x, v), bias), o)
    if method == "houlsby":
        h = h + bottleneck(h, ends[0].adapter, silu)
    a = norm(h + x, norms[0])
    h = linear(gelu(linear(a, first)), second)
    if method == "houlsby":
        expected = norm(h + bottleneck(h, ends[1].adapter, silu) + a, norms[1])
    else:
        s = h + a
        expected = norm(s + bottleneck(norm(s, norms[1]), norms[1].adapter, relu), norms[1])
    found = layer(x, *more)
    assert torch.allclose(found[0] if isinstance(found, tuple) else found, expected, atol=1e-10)
    adapters = [module for module in layer.modules() if type(module).__name__ == "Bottleneck"]
    assert len(adapters) == (2 if method == "houlsby" else 1)


@pytest.mark.parametrize("method", [HoulsbyConfig(**RANDOM), LoraConfig(targets=tuple("qkvoif"), rank=3, alpha=6)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_modernbert_layer_by_hand(method, dropout):
    """x + adapted(Wo(attention(LN x))), the same for the gated FFN: LayerNorms first, adapters before residuals."""
    model = tiny.model("modernbert", attention_dropout=dropout, attention_bias=True, mlp_bias=True).double()
    apply(model, method, seed=0)
    layer, x = model.model.layers[1], draw(2, 6, 32)
    source = torch.Generator().manual_seed(1)
    for name, parameter in layer.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=source)

    def computed(x, module, *slices):
        """The output of a linear layer, with LoRA's update added to each slice."""
        h = linear(x, module)
        for rows, part in slices or [(slice(None), module)]:
            if hasattr(part, "lora_a"):
                h[..., rows] += 2 * (x @ part.lora_a.T @ part.lora_b.T)
        return h

    def adapted(h, end):
        return h + bottleneck(h, end.adapter, silu) if hasattr(end, "adapter") else h

    angles = torch.arange(6).double()[:, None] / 10_000 ** (torch.arange(0, 8, 2).double() / 8)
    cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))

    def turn(heads):  # pairs of dimensions i and i + 4 turn by the position's angle
        return heads * cos + torch.cat([-heads[..., 4:], heads[..., :4]], -1) * sin

    fused = layer.attn.Wqkv
    thirds = [(slice(32 * n, 32 * n + 32), getattr(fused, name, None)) for n, name in enumerate("qkv")]
    q, k, v = computed(norm(x, layer.attn_norm), fused, *thirds).split(32, -1)
    h = x + adapted(computed(attend(q, k, v, turn=turn), layer.attn.Wo), layer.attn.out_drop)
    inner, gate = computed(norm(h, layer.mlp_norm), layer.mlp.Wi).chunk(2, -1)
    expected = h + adapted(computed(gelu(inner) * gate, layer.mlp.Wo), layer.mlp.Wo)
    found = layer(x, position_embeddings=model.model.rotary_emb(x, torch.arange(6)[None], "sliding_attention"))
    assert torch.allclose(found, expected, atol=1e-6)  # the rotation is computed in float32


def test_bitfit_trains_modernberts_biases_where_a_checkpoint_has_some():
    model = tiny.model("modernbert", attention_bias=True, norm_bias=True)
    names = apply(model, BitFitConfig(), seed=0)
    body = [name for name in names if not is_head(model, name)]
    assert "model.layers.1.attn.Wqkv.bias" in body and all(name.endswith(".bias") for name in body)
    assert count_parameters(model)["trainable_method"] == 2 * (96 + 32) + 32 * 5  # five LayerNorms


# The table of conf/README.md.


METHOD_CONFIGS = tiny.METHODS | {"lora": LoraConfig(targets=tuple("qkvoif"), rank=2)}
METHOD_CONFIGS |= {"peft": PeftConfig(targets=tuple("qkvoif"), options={"r": 4})}
BY_NAME = [LoraConfig(targets=("*.query", "*.value"), rank=2), PeftConfig(targets=("*.query",), options={"r": 4})]
REASONS = {"Pfeiffer adapters have no place": "no: pre-norm", "no layer of its body has a bias": "no: no biases"}


def tried(model, inputs, config) -> str:
    """The table's entry for a method, after one forward and backward pass."""
    try:
        apply(model, config, seed=0)
    except UserError as error:
        return next((cell for text, cell in REASONS.items() if text in str(error)), "no")
    model(**inputs, labels=torch.arange(len(inputs["input_ids"])) % 2).loss.backward()
    assert all(p.grad is not None for name, p in trainable(model) if "position" not in name)
    return "yes"


def support_table() -> list[str]:
    rows = [["encoder", "`model_type`", *(f"`{name}`" for name in METHOD_CONFIGS), "compiled on a CPU"]]
    for name, known in ARCHITECTURES.items():
        cells = [tried(tiny.model(name), tiny.inputs(name), config) for config in METHOD_CONFIGS.values()]
        rows.append([known.title, f"`{name}`", *cells, "no" if not_covered(tiny.config(name).to_dict()) else "yes"])
    settings = transformers.AlbertConfig(embedding_size=16, **tiny.COMMON)
    cells, inputs = [], {"input_ids": torch.tensor([[2, 5, 6], [2, 7, 6]])}
    for config in (*METHOD_CONFIGS.values(), *BY_NAME):
        other = transformers.AutoModelForSequenceClassification.from_config(settings)
        cells.append(tried(other, inputs, config))
    assert cells[2] == cells[-3] == "no" and cells[-2:] == ["yes", "yes"]  # by short names, and by patterns
    cells[2:3], cells[-3:] = ["by name"], ["by name"]
    rows.append(["any other", "", *cells, "no" if not_covered(settings.to_dict()) else "yes"])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def test_the_table_of_the_settings_page_is_what_each_method_does_on_each_architecture():
    assert set(METHOD_CONFIGS) == set(METHODS)
    table = "\n".join(support_table())
    assert table in (ROOT / "conf" / "README.md").read_text(), f"conf/README.md should have this table:\n{table}"
