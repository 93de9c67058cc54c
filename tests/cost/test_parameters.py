"""Parameter counts at full size, against numbers worked out by hand and against the published ones."""

import pytest

from lora.cost.parameters import count, off_printed, read_published
from lora.methods.configs import BitFitConfig, HoulsbyConfig, LoraConfig, PfeifferConfig
from lora.models.sizes import ENCODER_SIZES


@pytest.fixture(scope="module")
def counts():
    """(row, parameters without head, with head)"""
    return [(row, *count(row.model, row.config)) for row in read_published()]


def test_the_model_and_the_paper_s_formula_agree(counts):
    tables = [row.table for row, _, _ in counts]
    assert {name: tables.count(name) for name in set(tables)} == {"2": 14, "10": 1, "5": 3 * 7, "6": 3 * 3 * 5}
    for row, without_head, _ in counts:
        assert row.exact in (None, without_head), row.label
    known = sum(row.exact is not None for row, _, _ in counts)
    assert known == 11 + 1 + 3 + 3 * 5  # Table 2 except full fine-tuning; Table 10; q,v in Tables 5 and 6


@pytest.mark.parametrize(
    ("model", "rank", "method", "head"),
    [
        ("roberta_base", 8, 294_912, 592_899),  # with the head 887,811: the values in the authors' MNLI checkpoint
        ("roberta_large", 8, 786_432, 1_052_675),
        ("deberta_v2_xxl", 16, 4_718_592, 1536 * 1536 + 1536 + 3 * 1536 + 3),
    ],
)
def test_lora_and_its_head_match_exactly(model, rank, method, head):
    assert count(model, LoraConfig(rank=rank)) == (method, method + head)


def test_what_does_not_round_to_the_printed_number_is_known(counts):
    printed = [(row, n) for row, n, _ in counts if row.printed]
    off = {f"{row.table} {row.model} {row.config.slug}": off_printed(row.printed, n) for row, n in printed}
    assert {name: value for name, value in off.items() if value} == {
        "2 roberta_base full": -0.9,
        "2 roberta_large full": -0.7,
        "2 deberta_v2_xxl full": 64.5,
        "2 roberta_large pfeiffer-m64": 0.2,
        "2 roberta_large houlsby-m64": 0.3,
        "10 deberta_v2_xxl lora-qv-r8": -2.3,
    }


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("roberta_large", HoulsbyConfig(bottleneck=8), 835_968),
        ("roberta_large", HoulsbyConfig(bottleneck=64), 6_343_680),
        ("roberta_large", PfeifferConfig(bottleneck=16), 811_392),
        ("roberta_large", PfeifferConfig(bottleneck=64), 3_171_840),
        ("roberta_large", HoulsbyConfig(bottleneck=8, layer_norms="trained"), 835_968 + 24 * 2 * 2 * 1024),
        ("roberta_large", BitFitConfig(), 271_360),
        ("roberta_base", LoraConfig(targets=("q", "k", "v", "o"), rank=1, ranks={"o": 4}), 12 * 2 * 768 * (3 + 4)),
        ("roberta_base", LoraConfig(targets=("i",), rank=8), 12 * 8 * (768 + 3072)),
        ("roberta_base", LoraConfig(targets=("i", "f"), rank=8, frozen_a=True, dora=True), 12 * 9 * (3072 + 768)),
        ("roberta_large", LoraConfig(targets=("q", "f"), rank=1, ranks={"f": 2}), 24 * (2048 + 2 * 5120)),
        ("deberta_v2_xxl", LoraConfig(targets=tuple("qkvoif"), rank=1), 48 * 18 * 1536),
        ("deberta_v2_xxl", BitFitConfig(), 48 * (7 * 1536 + 6144) + 4 * 1536),
        ("deberta_v2_xxl", PfeifferConfig(bottleneck=96), 48 * (2 * 1536 * 96 + 96 + 1536)),
    ],
)
def test_closed_forms(model, config, expected):
    assert count(model, config)[0] == expected


@pytest.mark.parametrize("model", ENCODER_SIZES)
def test_the_target_sets_of_table_5_are_of_one_size(counts, model):
    """All linear layers at rank 1 are an eighth above it."""
    rows = {row.config.targets: n for row, n, _ in counts if (row.table, row.model) == ("5", model)}
    budget = 16 * ENCODER_SIZES[model]["hidden_size"] * ENCODER_SIZES[model]["num_hidden_layers"]
    assert len(rows) == 7 and set(rows.values()) == {budget}
    assert count(model, LoraConfig(targets=tuple("qkvoif"), rank=1))[0] == 1.125 * budget
