"""Parameter counts at full size, against numbers worked out by hand and against the published ones."""

import json

import pytest
from commands import command

from lora.cost.parameters import COLUMNS, SIZES, Published, closed_form, count, read_published, table
from lora.errors import UserError
from lora.methods.configs import BitFitConfig, HoulsbyConfig, LoraConfig, PfeifferConfig

main = command("parameters")


@pytest.fixture(scope="module")
def counts():
    return [count(row) for row in read_published()]


def counted(model: str, config) -> int:
    return count(Published("-", "-", model, config, None, None, "-")).without_head


def test_every_row_is_there(counts):
    tables = [each.published.table for each in counts]
    assert {name: tables.count(name) for name in set(tables)} == {"2": 14, "10": 1, "5": 3 * 7, "6": 3 * 3 * 5}


def test_the_model_the_closed_form_and_the_paper_s_formula_agree(counts):
    known = 0
    for each in counts:
        assert each.without_head == each.closed_form, each.published.label
        if each.published.exact is not None:
            known += 1
            assert each.without_head == each.published.exact, each.published.label
    assert known == 11 + 1 + 3 + 3 * 5  # Table 2 except full fine-tuning; Table 10; q,v in Tables 5 and 6


@pytest.mark.parametrize(
    ("model", "rank", "method", "head"),
    [
        ("roberta_base", 8, 294_912, 592_899),  # with the head 887,811: the values in the authors' MNLI checkpoint
        ("roberta_large", 8, 786_432, 1_052_675),
        ("deberta_v2_xxl", 16, 4_718_592, 1536 * 1536 + 1536 + 3 * 1536 + 3),
    ],
)
def test_lora_rows_match_exactly(counts, model, rank, method, head):
    (row,) = (
        each
        for each in counts
        if each.published.table == "2"
        and each.published.model == model
        and isinstance(each.published.config, LoraConfig)
        and "dagger" not in each.published.row
    )
    assert row.published.config.rank == rank
    assert (row.without_head, row.with_head) == (method, method + head)
    assert row.off_printed == 0


def test_what_does_not_round_to_the_printed_number_is_known(counts):
    off = {f"{e.published.table} {e.published.model} {e.published.config.slug}": e.off_printed for e in counts}
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
        ("roberta_large", LoraConfig(targets=("q", "f"), rank=1, ranks={"f": 2}), 24 * (2048 + 2 * 5120)),
        ("deberta_v2_xxl", LoraConfig(targets=tuple("qkvoif"), rank=1), 48 * 18 * 1536),
        ("deberta_v2_xxl", BitFitConfig(), 48 * (7 * 1536 + 6144) + 4 * 1536),
        ("deberta_v2_xxl", PfeifferConfig(bottleneck=96), 48 * (2 * 1536 * 96 + 96 + 1536)),
    ],
)
def test_closed_forms(model, config, expected):
    assert closed_form(model, config) == expected
    assert counted(model, config) == expected


@pytest.mark.parametrize("model", SIZES)
def test_the_target_sets_of_table_5_are_of_one_size(counts, model):
    rows = [each for each in counts if each.published.table == "5" and each.published.model == model]
    assert len({each.published.config.targets for each in rows}) == 7
    assert {each.without_head for each in rows} == {
        16 * SIZES[model]["hidden_size"] * SIZES[model]["num_hidden_layers"]
    }


@pytest.mark.parametrize("model", SIZES)
def test_all_linear_layers_at_rank_1_are_an_eighth_above_the_budget_of_table_5(model):
    everywhere = LoraConfig(targets=tuple("qkvoif"), rank=1)
    assert counted(model, everywhere) == 1.125 * counted(model, LoraConfig(targets=("q", "v"), rank=4))


def test_the_table_shows_both_where_they_differ(counts):
    (line,) = (line for line in table(counts).splitlines() if "houlsby-m64" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == [
        "AdptH dagger (houlsby-m64)", "6,343,680", "7,396,355", "6,343,680", "6.0M (6,343,680)", "+0.3M (0)",
    ]  # fmt: skip


def test_json(capsys):
    main(["--model", "roberta_base", "--table", "2", "--json"])
    entries = json.loads(capsys.readouterr().out)
    assert [entry["method"] for entry in entries] == [
        "full", "bitfit", "adapterdrop-m48-d8", "adapterdrop-m48-d0", "lora-qv-r8",
    ]  # fmt: skip
    assert entries[-1]["without_head"] == 294_912 and entries[-1]["printed"] == "0.3M"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt3"], "invalid choice: 'gpt3'"),
        (["--table", "7"], "invalid choice: '7'"),
        (["--table", "10", "--model", "roberta_base"], "table 10 has no row for model roberta_base"),
        (["--ranks", "3"], "unrecognized arguments: --ranks 3"),
    ],
)
def test_mistakes_in_the_call(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2,LoRA,gpt3,lora,q v,8,,,0.3M,,-", r"line 2: model must be one of .*, got 'gpt3'"),
        ("2,LoRA,roberta_base,prefix,q v,8,,,0.3M,,-", r"line 2: method must be one of .*, got 'prefix'"),
        ("2,LoRA,roberta_base,lora,q v,eight,,,0.3M,,-", "line 2: invalid literal"),
        ("2,LoRA,roberta_base,lora,q v,0,,,0.3M,,-", "line 2: rank must be >= 1, got 0"),
        ("2,FT,roberta_base,full,q v,,,,125.0M,,-", "line 2: targets is not a setting"),
        ("2,FT,roberta_base,full,,,,,many,,-", "line 2: could not convert"),
        ("2,FT", "line 2: model must be one of"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    path = tmp_path / "published.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_published(path)


def test_a_file_of_another_form_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_published(tmp_path / "absent.csv")
    path = tmp_path / "published.csv"
    path.write_text("table,row\n2,LoRA\n")
    with pytest.raises(UserError, match="must have rows with the columns table, row, model"):
        read_published(path)
