"""The settings that distinguish runs of one method: table rows that differ in a setting are never merged."""

import pytest
import tiny
from machines import inject
from synthetic import populate, write_run

from lora.config.compose import compose_run
from lora.config.run import run_config
from lora.config.variants import Variant, said, variant, words
from lora.errors import UserError
from lora.files import RESULTS, python_command
from lora.records.record import load_records
from lora.report.aggregate import Planned, labelled, summarise
from lora.report.build import build, print_sweep
from lora.sweep.progress import words_of
from lora.sweep.request import requested

RATES = ["task=reviews", "method=lora", "train.lr=0.0005,0.002", "train.epochs=1", "seed=1,2"]
Q, V = (f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value"))


def rows_of(table) -> list[str]:
    return table.cells["Method"].tolist()


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        (["train.lr=0.0005,0.002"], ["LoRA (qv, r8), lr=0.0005", "LoRA (qv, r8), lr=0.002"]),
        (["method.alpha=4,64"], ["LoRA (qv, r8), alpha=4", "LoRA (qv, r8), alpha=64"]),
        ([f"method.targets=[{Q}],[{V}]"], [f"LoRA (1modules, r8), targets={name}" for name in (Q, V)]),
        (["method.targets=['*.query','*.value']"], ["LoRA (2modules, r8), targets=*.query+*.value"]),
        (["method.targets=[*.query,*.value]"], ["LoRA (2modules, r8), targets=*.query+*.value"]),
        (["method.rank=2,4"], ["LoRA (qv, r2)", "LoRA (qv, r4)"]),
        (["data.train_rows=50,60"], ["LoRA (qv, r8), train_rows=50", "LoRA (qv, r8), train_rows=60"]),
        (["method.ranks={q:2},{q:4}"], ["LoRA (qv, r8x), ranks=q:2", "LoRA (qv, r8x), ranks=q:4"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_each_value_of_a_grid_is_a_row(grid, labels, tmp_path):
    arguments = ["task=reviews", "method=lora", "train.epochs=1", "seed=1,2", *grid]
    for number, run in enumerate(requested("mini", arguments)):
        write_run(tmp_path / "mini", run, 0.6 + number / 100)
    (table,) = [table for table in build("mini", arguments, tmp_path).tables if table.name == "table2"]
    assert sorted(rows_of(table)) == sorted(labels)
    assert set(table.cells["Seeds"]) == {"2"}


def test_a_row_joins_what_its_hyperparameter_file_makes_by_task():
    """MRPC starts from MNLI and CoLA does not, at other rates. The printed protocol's LoRA is one row nonetheless."""
    tasks = "task=mnli,sst2,mrpc,cola,qnli,qqp,rte,stsb"
    runs = requested("paper", ["model=roberta_base", "protocol=printed", "method=lora", tasks])
    assert len({run.task for run in runs}) == 8 and {run.start for run in runs} == {"pretrained", "mnli"}
    assert {run.given for run in runs} == {()}


def test_the_parents_seed_is_a_setting_where_it_does_not_follow_the_childs():
    base = ["profile=paper", "model=roberta_base", "protocol=printed", "method=lora", "task=rte"]
    following, fixed = (compose_run([*base, f"seed={seed}", *more]) for seed, more in ((3, []), (3, ["start_seed=1"])))
    usual = compose_run([*base, "seed=1"])
    assert variant(following, usual).given == ()
    assert variant(fixed, usual).given == ("start_seed=1",)


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        ("train.epochs=2", ["LoRA (qv, r8)"]),
        ("train.epochs=2,4", ["LoRA (qv, r8), epochs=2", "LoRA (qv, r8), epochs=4"]),
        ("train.epochs=4,8", ["LoRA (qv, r8), epochs=4", "LoRA (qv, r8), epochs=8"]),
        ("train.epochs=1,3", ["LoRA (qv, r8), epochs=1", "LoRA (qv, r8), epochs=3"]),
    ],
)
def test_a_value_that_conf_gives_to_one_task_only_is_one_row(grid, labels, tmp_path):
    """conf/ trains reviews for 2 epochs and scrambled for 4, so a value can be the usual one of either, or of none."""
    arguments = ["task=reviews,scrambled", "method=lora", "seed=1,2", grid]
    runs = populate(tmp_path / "mini", "mini", arguments, lambda run: 0.5 + run.examples / 1e6)
    (table,) = [table for table in build("mini", arguments, tmp_path).tables if table.name == "table2"]
    assert sorted(rows_of(table)) == labels and set(table.cells["Seeds"]) == {"2"}
    assert not (table.cells == "-").any(axis=None)
    for run in runs:
        epochs = compose_run(run.overrides).train.epochs
        shown = words_of(runs)[run.run_id]
        assert shown == (f"epochs={epochs}" if len(labels) > 1 else "")
        (row,) = [row for row in table.cells.to_dict("records") if row["Method"].endswith(shown)]
        (cell,) = [value for key, value in row.items() if key.startswith(run.task)]
        assert cell.startswith(f"{50 + run.examples / 1e4:.1f}")


def test_the_rows_of_the_hyperparameter_file_stay_one_row_beside_a_value_of_ones_own(tmp_path):
    """The usual row has 2 and 4 epochs, and 4 was given to reviews alone: no label is true of the whole usual row."""
    usual = ["task=reviews,scrambled", "method=lora", "seed=1,2"]
    populate(tmp_path / "mini", "mini", ["experiment=glue_table2", *usual])
    populate(tmp_path / "mini", "mini", [*usual[1:], "task=reviews", "train.epochs=4"])
    tables = {table.name: table for table in build("mini", ["experiment=glue_table2", *usual], tmp_path).tables}
    assert rows_of(tables["table2"]) == rows_of(tables["own"]) == ["LoRA (qv, r8)"]
    given = {"reviews 2": None, "scrambled 4": None, "reviews 4": "4"}
    assert said(given, {run: run[-1] for run in given}) == given


def test_words_name_what_differs_and_what_conf_gives_where_that_is_one_value():
    one = Variant(("train.lr=0.1", "train.epochs=1"), ("train.lr=0.1", "train.epochs=1"))
    two = Variant(("train.epochs=1",), ("train.lr=0.2", "train.epochs=1"))
    assert words([one, two]) == {one: "lr=0.1", two: "lr=0.2"}
    third = Variant(("train.epochs=1",), ("train.lr=0.4", "train.epochs=1"))
    assert words([one, two, third]) == {one: "lr=0.1", two: "", third: ""}
    assert words([one]) == {one: ""} and words([]) == {}


@pytest.mark.parametrize(
    ("arguments", "file", "column", "adapted"),
    [
        (
            ["experiment=lora_targets", "method.targets=[*.query],[*.value]"],
            "table5",
            "ratings (Pearson)",
            {f"LoRA (1modules, r{rank}), targets=*.{name}" for rank in (2, 4, 8) for name in ("query", "value")},
        ),
        (
            ["experiment=lora_ranks", "method.ranks={q:2}"],
            "table6",
            "r = 4",
            {f"LoRA (qv, r{rank}x)" for rank in (1, 4, 8, 64)},
        ),
    ],
    ids=["targets", "ranks"],
)
def test_what_the_papers_notation_lacks_is_named_by_its_label(arguments, file, column, adapted, tmp_path, capsys):
    arguments = [*arguments, "seed=1,2"]
    populate(tmp_path / "mini", "mini", arguments, lambda run: 0.7 if "r4" in run.slug else 0.6)
    report = build("mini", arguments, tmp_path)
    (table,) = [table for table in report.tables if table.name == file]
    assert set(table.cells["Adapted"]) == adapted and len(table.cells) == len(adapted)
    assert {line["Adapted"] for line in table.cells.to_dict("records") if line[column].startswith("70.0")} == {
        name for name in adapted if "r4" in name
    }
    print_sweep("mini", [*arguments, f"runtime.results={tmp_path}/mini"])
    out = capsys.readouterr().out
    assert table.markdown() in out and f"next: {python_command()} -m lora report" in out


def test_a_setting_given_at_one_rank_makes_a_row_of_its_own_and_leaves_the_other_ranks_together(tmp_path):
    """In the long run, rank 64 is trained with alpha constant, as all ranks are, and with alpha / r constant."""
    arguments = ["experiment=lora_ranks", "seed=6,7"]
    populate(
        tmp_path / "long", "long", arguments, lambda run: 0.5 if "method.alpha_at_rank=8" in run.overrides else 0.6
    )
    report = build("long", arguments, tmp_path)
    (table,) = [table for table in report.tables if table.name == "table6"]
    names = ["Wq", "Wq, Wv, alpha_at_rank=null", "Wq, Wv, alpha_at_rank=8"]
    assert table.cells["Adapted"].tolist() == [*names, *["Wq", "Wq, Wv"] * 2]  # the last four are the paper's
    ours = table.cells.iloc[:3, 2:].map(lambda text: text.partition(" ")[0])
    assert ours.values.tolist() == [["60.0"] * 4, ["60.0"] * 4, ["-", "-", "-", "50.0"]]
    (panel,) = report.figures["ranks"]["panels"]
    ranks = {series["label"]: series["x"] for series in panel["series"]}
    assert ranks == dict(zip(names, ([1, 4, 8, 64], [1, 4, 8, 64], [64]), strict=True))


def test_a_sweep_whose_table_is_refused_says_so_in_a_line(tmp_path, capsys):
    arguments = ["experiment=lora_ranks", "method.rank=1", "task=cola", "seed=1", "protocol=ours,long"]
    populate(tmp_path / "small", "small", arguments)
    print_sweep("small", [*arguments, f"runtime.results={tmp_path}/small"])
    assert "no table of this sweep: the table of lora_ranks would mix the protocols" in capsys.readouterr().err


@pytest.mark.parametrize("methods", ["lora", "bitfit,lora"])
def test_rows_that_differ_in_the_start_are_named_by_it(methods, tmp_path):
    arguments = ["task=rte", f"method={methods}", "start=pretrained,mnli", "seed=1,2"]
    populate(tmp_path / "small", "small", arguments)
    report = build("small", arguments, tmp_path)
    tables = {table.name: table for table in report.tables}
    names = {"bitfit": "BitFit", "lora": "LoRA (qv, r8)"}
    rows = [f"{names[m]}, from {start}" for m in methods.split(",") for start in ("MNLI", "pretrained")]
    assert rows_of(tables["table2"]) == rows
    alone = tables["table2_paper"].cells
    assert set(alone["Method"]) == set(rows) and not alone.duplicated(["Method", "Task"]).any()
    pairs = tables["pairs"].cells
    compared = set(zip(pairs["Method"], pairs["Minus"], strict=True))
    assert compared == {(one, other) for i, one in enumerate(rows) for other in rows[:i]}
    (panel,) = [panel for panel in report.figures["curves"]["panels"] if panel["title"] == "RTE"]
    assert {series["label"] for series in panel["series"]} == set(rows)


def test_a_row_of_several_starts_names_them_beside_another_of_its_method():
    """As printed, MRPC starts from MNLI and CoLA does not. A second row starts both from the pretrained encoder."""
    both = Variant((), ())
    own = Variant(("start=pretrained",), ("start=mnli",))
    cells = [("mrpc", "mnli", both), ("cola", "pretrained", both), ("mrpc", "pretrained", own)]
    runs = [
        Planned(f"{task}.{start}", "m", "printed", start, "lora-qv-r8", "lora", task, 1, given)
        for task, start, given in cells
    ]
    assert [p.label for p in labelled(runs[:2])] == ["LoRA (qv, r8)"] * 2
    names = [f"LoRA (qv, r8), from {starts}" for starts in ("MNLI and pretrained", "MNLI and pretrained", "pretrained")]
    assert [p.label for p in labelled(runs)] == names
    assert {p.label for p in labelled(runs, start=False)} == {"LoRA (qv, r8)"}


def test_two_runs_of_one_seed_in_one_cell_are_refused(tmp_path):
    (run,) = requested("mini", ["task=reviews", "method=lora", "seed=1,1"])[:1]
    twice = [
        Planned(f"{run.run_id}{i}", run.model, run.protocol, run.start, run.slug, run.method, run.task, 1)
        for i in range(2)
    ]
    with pytest.raises(UserError, match="two runs of one seed"):
        summarise(build("mini", [], tmp_path).gathered.frame, twice)


def test_runs_that_no_experiment_expects_have_a_table_of_their_own(tmp_path):
    populate(tmp_path / "mini", "mini", RATES)
    report = build("mini", [], tmp_path)
    (own,) = [table for table in report.tables if table.name == "own"]
    assert sorted(rows_of(own)) == ["LoRA (qv, r8), lr=0.0005", "LoRA (qv, r8), lr=0.002"]
    assert not report.state.extra
    (table2,) = [table for table in report.tables if table.name == "table2"]
    assert set(table2.cells["Seeds"]) == {"0"}  # never in the paper's tables


def test_two_encoders_stand_in_one_table(tmp_path):
    arguments = ["experiment=glue_table2", "task=reviews", "method=lora", "seed=1", "train.epochs=1"]
    populate(tmp_path / "mini", "mini", arguments)
    populate(tmp_path / "mini", "mini", [*arguments, "model=local", "model.name=other-123abc"])
    report = build("mini", arguments, tmp_path)
    (table2,) = [table for table in report.tables if table.name == "table2"]
    assert table2.cells["Model"].tolist() == ["minilm", "other-123abc"]
    assert table2.cells["Seeds"].tolist() == ["1", "1"]


def test_two_encoders_stand_in_one_table_whichever_is_asked_for(tmp_path, monkeypatch):
    """The fused kernels do not cover DistilBERT, which the command about another encoder cannot know."""
    folder = tiny.folder(tmp_path / "distil", "distilbert")
    arguments = ["experiment=glue_table2", "task=reviews", "method=lora", "seed=1", "train.epochs=1"]
    there = [*arguments, "model=local", f"model.path={folder}"]
    (one,) = populate(tmp_path / "mini", "mini", arguments)
    (other,) = populate(tmp_path / "mini", "mini", there)
    assert "train.kernels=fused" in one.overrides and "train.kernels=stock" in other.overrides
    monkeypatch.setattr("lora.report.select.check_inputs", lambda *_, **__: None)  # the records are of no rows
    for command in (arguments, there):
        report = build("mini", command, tmp_path)
        tables = {table.name: table for table in report.tables}
        assert "own" not in tables and not report.state.extra
        assert set(tables["table2"].cells["Model"]) == {"minilm", other.model}
        assert rows_of(tables["table2"]) == ["LoRA (qv, r8)"] * 2


def test_kernels_of_another_encoder_that_has_several_are_apart(tmp_path):
    arguments = ["experiment=glue_table2", "task=reviews", "method=lora", "seed=1", "train.epochs=1"]
    populate(tmp_path / "mini", "mini", arguments)
    folder = tiny.folder(tmp_path / "bert", "bert")
    local = [*arguments, "model=local", f"model.path={folder}"]
    for kernels in ("fused", "stock"):
        populate(tmp_path / "mini", "mini", [*local, f"train.kernels={kernels}"])
    tables = {table.name: table for table in build("mini", arguments, tmp_path).tables}
    assert tables["table2"].cells["Model"].nunique() == 2 and set(tables["table2"].cells["Seeds"]) == {"1"}
    assert len(rows_of(tables["table2"])) + len(rows_of(tables["own"])) == 3


def test_every_committed_record_is_named_by_its_settings_and_expected():
    names = sorted(path.parent.name for path in (RESULTS / "reference").glob("*/runs"))
    assert names == ["base", "long", "mini", "small"]
    for name in names:
        records, problems = load_records(RESULTS / "reference" / name)
        assert len(records) > (0 if name in ("base", "long") else 60) and not problems
        assert all(run_config(record.config).run_id == record.run_id for record in records)
        gathered = build(f"reference/{name}").gathered
        assert set(gathered.state.ok) == {record.run_id for record in records}
        assert "own" not in gathered.planned and not gathered.state.extra


def test_the_reference_is_set_beside_runs_of_another_precision(tmp_path):
    arguments = ["experiment=glue_table2", "method=lora", "task=reviews", "seed=1,2"]
    populate(tmp_path / "reference" / "mini", "mini", [*arguments, "train.precision=fp32"])
    populate(tmp_path / "mini", "mini", [*arguments, "train.precision=bf16"])
    (table,) = [
        table
        for table in build("mini", [*arguments, "train.precision=bf16"], tmp_path).tables
        if table.name == "reference"
    ]
    assert len(table.cells) == 1 and table.cells["Agrees"].tolist() != ["-"]
    (tmp_path / "reference" / "mini" / "runs").rename(tmp_path / "elsewhere")
    assert not [table for table in build("mini", arguments, tmp_path).tables if table.name == "reference"]


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        ("train.precision=fp32,bf16", ["LoRA (qv, r8), precision=bf16", "LoRA (qv, r8), precision=fp32"]),
        ("train.kernels=fused,stock", ["LoRA (qv, r8), kernels=fused", "LoRA (qv, r8), kernels=stock"]),
        ("method.alpha=4,64", ["LoRA (qv, r8), alpha=4", "LoRA (qv, r8), alpha=64"]),
    ],
)
def test_each_variant_of_ones_own_stands_beside_its_reference_cell(grid, labels, tmp_path):
    """The reference has one precision and one kind of kernels, and both alphas."""
    arguments = ["task=reviews", "method=lora", "seed=1,2"]
    usual = [*arguments, *([grid] if "alpha" in grid else ["train.precision=fp32", "train.kernels=fused"])]

    def of_alpha(run):
        return 0.6 + 0.1 * ("method.alpha=64" in run.overrides)

    populate(tmp_path / "reference" / "mini", "mini", usual, of_alpha)
    runs = populate(tmp_path / "mini", "mini", [*arguments, grid], lambda run: 0.5)
    assert len(runs) == 4
    report = build("mini", [*arguments, grid], tmp_path)
    tables = {table.name: table.cells for table in report.tables}
    assert sorted(tables["reference"]["Method"]) == sorted(tables["table2"]["Method"]) == labels
    reference = tables["reference"].set_index("Method")["Reference"]
    wanted = ["60.0", "70.0"] if "alpha" in grid else ["60.0", "60.0"]
    assert [reference[label].partition(" ")[0] for label in labels] == wanted


def test_the_files_of_a_reference_do_not_follow_the_machine(tmp_path, monkeypatch):
    arguments = ["experiment=glue_table2", "method=lora", "task=reviews", "seed=1,2"]
    populate(tmp_path / "reference" / "mini", "mini", [*arguments, "train.precision=fp32"])
    files = []
    for precision in ("bf16", "fp32"):
        inject(monkeypatch, precision)
        files.append(build("reference/mini", arguments, tmp_path).files)
    assert files[0] == files[1] and "tables/cells.csv" in files[0]
