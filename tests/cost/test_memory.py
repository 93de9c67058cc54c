"""The memory estimate of a run, against the tensors that really exist."""

import pytest
import torch

from lora.config.compose import compose_run
from lora.cost.memory import PAPER_RUNS, estimate, kept_activations, memory_table
from lora.files import ROOT
from lora.methods import apply
from lora.models.load import model_of_size
from lora.models.sizes import ENCODER_SIZES

SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 200,
}


@pytest.fixture
def small(monkeypatch):
    """RoBERTa-base with sizes that fit in a test."""
    monkeypatch.setitem(ENCODER_SIZES, "roberta_base", ENCODER_SIZES["roberta_base"] | SMALL)

    def build(*overrides):
        return compose_run(["profile=paper", "model=roberta_base", "protocol=printed", "task=cola", *overrides])

    return build


def real_model(config):
    model = model_of_size("roberta_base", outputs=2)
    apply(model, config.method)
    return model.train()


def test_activations_are_what_autograd_really_keeps(small):
    config = small("train.batch=6", "data.max_length=20")
    model = real_model(config)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    inputs = {name: torch.ones(6, 20, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(**inputs).logits.sum()
    real = sum(storage.nbytes() for storage in kept.values())
    assert estimate(config, 1)[0]["activations"] == pytest.approx(real, rel=0.01)
    assert out.requires_grad and kept_activations(model, 6, 20, "fp32") == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(small, method):
    config = small(*([f"method={method}", "protocol=released"] if method == "full" else []))
    model = real_model(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found, _ = estimate(config, 1)
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.requires_grad)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert found["optimizer"] == sum(tensor.nbytes for tensor in moments)


def test_processes_and_micro_batches_share_the_rows(small):
    whole, _ = estimate(small("train.batch=16"), 1)
    for config, processes in ((small("train.batch=16"), 4), (small("train.batch=16", "train.accumulation=4"), 1)):
        shared, _ = estimate(config, processes)
        assert shared["activations"] == pytest.approx(whole["activations"] / 4, rel=0.02)
        assert shared["weights"] == whole["weights"]


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(small):
    plain, recomputing = estimate(small("train.batch=8", "data.max_length=32"), 1)
    inputs = 4 * 8 * 32 * 64 * 4  # layers, examples, tokens, width, bytes
    assert recomputing["activations"] == inputs + plain["activations"] // 4


def test_the_page_of_efficiency_shows_what_is_computed():
    """Of two runs; a simulated step of the largest encoder takes seconds."""
    page = (ROOT / "experiments" / "efficiency" / "README.md").read_text()
    shown, computed = (
        [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()[2:]]
        for text in (
            page.partition("<!-- memory begin -->")[2].partition("<!-- memory end -->")[0],
            memory_table(PAPER_RUNS[::2]),
        )
    )
    assert len(shown) == 2 * len(PAPER_RUNS) and computed == shown[:2] + shown[4:6]
