"""From overrides to a validated RunConfig: what is refused, and what names a run."""

import re

import pytest

from lora.checks import SettingsError
from lora.compose import CONF, compose_config, compose_run, cpu_precision, settle
from lora.errors import UserError
from lora.sweep import expand, requested, split_override


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=colaa"], "task must be one of .*cola.*got 'colaa'"),
        (["profile=huge"], "profile must be one of mini, paper, small, got 'huge'"),
        (["experiment=table9"], "experiment must be one of glue_table2.*got 'table9'"),
        (["method.rank=0"], "method.rank must be >= 1, got 0"),
        (["train.learning_rate=1"], "learning_rate"),
        (["train.epochs=two"], "train.epochs must be of type int, got 'two'"),
        (["data.source=embedded"], "data.source must be tsv, parquet or hub for task cola, got 'embedded'"),
        (["start=mnli"], "start must be pretrained unless task is mrpc, rte, stsb, got 'mnli'"),
        (["start_seed=3"], "start_seed must be null unless start=mnli, got 3"),
        (["seed=-1"], r"seed must be in \[0, 2\^31\), got -1"),
        (["train.batch=8", "train.accumulation=3"], r"train.batch must be a multiple of accumulation \(3\), got 8"),
        (["method.targets=[]"], "method.targets must be a non-empty list"),
        (["method.targets=[q,q]"], "method.targets must be without repeats"),
        (["method.init_a=gaussian"], "method.init_std must be > 0 with init_a=gaussian"),
        (["method.dropout=1.0"], r"method.dropout must be in \[0, 1\), got 1.0"),
        (["runtime.threads=0"], "runtime.threads must be >= 1, got 0"),
        (["train.precision=fp8"], "train.precision must be one of fp32, bf16, got 'fp8'"),
        (["model.name=../x"], "model.name must be letters, digits, - and _, got"),
        (["method.lr=1"], "lr"),
    ],
)
def test_broken_settings_are_one_message(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        tiny_config(*overrides)


def test_all_problems_of_a_run_come_together(tiny_config):
    with pytest.raises(UserError) as caught:
        tiny_config("method.alpha=-1", "method.rank=0", "train.lr=-1", "data.max_length=1", "runtime.threads=0")
    assert len(str(caught.value).splitlines()) == 5


SAME_RUN = ["data.path=/elsewhere", "runtime.threads=2", "train.eval_batch=7", "model.gradient_checkpointing=true"]
OTHER_RUN = [
    "seed=2",
    "train.lr=2e-3",
    "train.batch=16",
    "train.precision=bf16",
    "model.revision=x",
    "data.max_length=33",
]
OTHER_RUN += [
    "method.alpha=8",
    "method.init_a=gaussian method.init_std=0.1",
    "train.selection=pooled",
    "data.train_rows=9",
]


def test_the_run_id_follows_the_science_and_nothing_else(tiny_config):
    base = tiny_config().run_id
    assert re.match(r"bert-[0-9a-f]{6}\.lora-qv-r8\.cola\.s1-", base)
    assert {tiny_config(override).run_id for override in SAME_RUN} == {base}
    others = [tiny_config(*override.split()).run_id for override in OTHER_RUN]
    assert len({base, *others}) == 1 + len(OTHER_RUN)


def test_the_order_of_targets_does_not_name_another_run(tiny_config):
    assert tiny_config("method.targets=[v,q]").run_id == tiny_config("method.targets=[q,v]").run_id


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("seed=1,2", "seed", ["1", "2"]),
        ("method.targets=[q,v]", "method.targets", ["[q,v]"]),
        ("method.targets=[q],[q,v]", "method.targets", ["[q]", "[q,v]"]),
        ("data.path='/a b/c'", "data.path", ["'/a b/c'"]),
    ],
)
def test_overrides_split_at_the_commas_between_values(override, key, values):
    assert split_override(override) == (key, values)


def test_the_command_line_wins_over_the_grid():
    cells = expand("mini", ["task=reviews", "seed=5", "method=lora,full"], ["glue_table2"])
    assert {(cell.method, cell.task, cell.seed) for cell in cells} == {("lora", "reviews", 5), ("full", "reviews", 5)}


def test_values_on_the_command_line_alone_are_the_grid():
    cells = requested("mini", ["task=ratings", "seed=4,5"])
    assert sorted(cell.run_id for cell in cells) == sorted(
        settle(compose_config(["profile=mini", "task=ratings", f"seed={seed}"])).run_id for seed in (4, 5)
    )
    everything = requested("mini", [])
    assert {cell.run_id for cell in everything} == {cell.run_id for cell in expand("mini")}


def test_the_quick_way_composes_what_hydra_does(tiny_overrides):
    """Hydra's own composition is the truth, over every group and kind of value that a grid uses."""
    seen = 0
    for more in (
        ["method=full", "task=stsb", "seed=3"],
        ["method=lora", "method.targets=[q,k]", "method.rank=4", "method.alpha_at_rank=null", "method.ranks={q:2}"],
        ["method=houlsby", "task=rte", "train.lr=5e-4", "train.precision=bf16", "data.train_rows=7"],
        ["profile=paper", "model=roberta_base", "protocol=printed", "method=lora", "task=sst2", "data.source=tsv"],
        ["+train.extra=1"],
        ["~model.path"],
    ):
        overrides = [*tiny_overrides, *more]
        try:
            expected = settle(compose_config(overrides))
        except UserError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                compose_run(overrides)
        else:
            assert compose_run(overrides) == expected
            seen += 1
    assert seen == 4


def test_nothing_in_conf_is_made_from_the_seed(tiny_overrides):
    """What lets cells that differ by it alone be resolved once; the last of two seeds holds, as Hydra has it."""
    assert not [path for path in CONF.rglob("*.yaml") if re.search(r"\$\{(oc\.select:)?\.*seed\b", path.read_text())]
    for seeds in (["seed=7"], ["seed=7", "seed=11"], [], ["seed=0"], ["seed='3'"], ["seed=-1"], ["seed=007"]):
        overrides = [*tiny_overrides, *seeds]
        try:
            expected = settle(compose_config(overrides))
        except (UserError, SettingsError) as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                compose_run(overrides)
        else:
            assert compose_run(overrides) == expected


def test_an_unknown_key_is_refused_the_quick_way_too(tiny_overrides):
    with pytest.raises(UserError, match="learning_rate"):
        compose_run([*tiny_overrides, "train.learning_rate=1"])


def test_invalid_cells_are_all_listed():
    with pytest.raises(UserError, match="2 cells are invalid") as caught:
        expand("mini", ["train.epochs=0", "seed=1,2"], adhoc=True)
    assert str(caught.value).count("train.epochs must be >= 1, got 0") == 2


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("avx512_bf16 amx_bf16 amx_tile", "bf16"), ("avx512_bf16 avx512_vnni", "fp32"), ("neon not_amx_bf16", "fp32")],
)
def test_mini_multiplies_in_bf16_where_the_cpu_does(flags, precision, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu sse2 {flags}\n")
    monkeypatch.setattr("lora.compose.CPUINFO", cpuinfo)
    assert compose_run(["task=reviews"]).train.precision == precision
    assert compose_run(["task=reviews", "train.precision=bf16"]).train.precision == "bf16"
    assert compose_run(["profile=small", "task=rte"]).train.precision == "fp32"  # committed records: one precision


def test_where_no_list_of_cpus_is_the_precision_is_fp32(tmp_path):
    assert cpu_precision(tmp_path / "absent") == "fp32"


def test_a_cell_keeps_the_launchers_precision_on_another_kind_of_machine(tmp_path, monkeypatch):
    """A worker of a cluster may have another CPU: its run must be the one that the sweep expects."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags: amx_bf16\n")
    monkeypatch.setattr("lora.compose.CPUINFO", cpuinfo)
    monkeypatch.setattr("lora.sweep.CPUINFO", cpuinfo)
    cells = expand("mini", ["task=reviews", "seed=1"], ["glue_table2"])
    cpuinfo.write_text("flags: avx2\n")
    assert len(cells) == 5
    assert [compose_run(cell.overrides).run_id for cell in cells] == [cell.run_id for cell in cells]
    assert not {cell.run_id for cell in cells} & {
        cell.run_id for cell in expand("mini", ["task=reviews", "seed=1"], ["glue_table2"])
    }
