"""Tables from records: by hand for small cases, byte for byte for what is committed."""

import dataclasses
import json
import re
import shutil
import statistics
import subprocess

import pandas as pd
import pytest
from test_results import record

from lora.errors import UserError
from lora.provenance import ROOT
from lora.report import PAPER, build, in_readme, refuse_mixed_rows
from lora.results import load_frame, load_records, read_record, write_record
from lora.tables import (
    Planned,
    against_reference,
    cell_text,
    human_count,
    lora_of,
    markdown,
    published,
    start_table,
    summarise,
    table2,
    table5,
    table6,
)
from lora.tasks import GLUE_TASKS, TASKS


def run_id(slug, task, seed):
    return f"minilm.{slug}.{task}.s{seed}-0000000{seed}"


def runs(values: dict[int, float | None], method="lora", slug="lora-qv-r8", task="reviews"):
    made = []
    for seed, value in values.items():
        one = record(run_id(slug, task, seed), value)
        config = {**one.config, "method": {"name": method}, "task": task, "seed": seed}
        made.append(dataclasses.replace(one, config=config))
    return made


def plan(seeds, method="lora", slug="lora-qv-r8", task="reviews"):
    return [
        Planned(run_id(slug, task, seed), "minilm", "ours", "pretrained", slug, method, task, seed) for seed in seeds
    ]


def test_a_cell_is_the_median_with_its_spread():
    values = {1: 0.80, 2: 0.83, 3: 0.81}
    (row,) = summarise(load_frame(runs(values)), plan([1, 2, 3])).itertuples()
    assert row.median == pytest.approx(81.0)
    assert row.std == pytest.approx(statistics.stdev(100 * v for v in values.values()))
    assert (row.n, row.planned, row.min, row.max) == (3, 3, pytest.approx(80.0), pytest.approx(83.0))
    assert cell_text(summarise(load_frame(runs(values)), plan([1, 2, 3])).iloc[0]) == "81.0 ±1.5"


def test_missing_seeds_are_counted_and_missing_cells_shown_as_absent():
    frame = load_frame(runs({1: 0.8, 2: 0.9}))
    assert cell_text(summarise(frame, plan([1, 2, 3])).iloc[0]) == "85.0 ±7.1 (2/3)"
    assert cell_text(summarise(frame, plan([7])).iloc[0]) == "-"
    assert cell_text(summarise(load_frame([]), plan([1])).iloc[0]) == "-"
    assert cell_text(summarise(load_frame(runs({1: None})), plan([1])).iloc[0]) == "-"


def test_runs_that_nobody_planned_are_not_used():
    frame = load_frame(runs({1: 0.8, 9: 0.1}))
    assert summarise(frame, plan([1]))["median"].item() == pytest.approx(80.0)


def test_the_average_is_of_the_tasks_and_absent_unless_all_are_there():
    both = [*runs({1: 0.8}), *runs({1: 0.6}, task="ratings")]
    planned = [*plan([1]), *plan([1], task="ratings")]
    assert table2(summarise(load_frame(both), planned))["Avg."].item() == "70.0"
    assert table2(summarise(load_frame(both[:1]), planned))["Avg."].item() == "-"


def test_protocols_are_never_pooled():
    one = runs({1: 0.8})
    other = dataclasses.replace(
        runs({1: 0.6})[0],
        run_id="minilm.lora-qv-r8.reviews.s1-99999999",
        config={**one[0].config, "protocol": "printed"},
    )
    planned = [*plan([1]), dataclasses.replace(plan([1])[0], run_id=other.run_id, protocol="printed")]
    table = table2(summarise(load_frame([*one, other]), planned))
    assert list(table["Protocol"]) == ["ours", "printed"]
    assert list(table["reviews (acc.)"]) == ["80.0", "60.0"]


def lora_cells(values, task="ratings"):
    """Runs and plan of LoRA cells: slug -> value of seed 1."""
    made = [one for slug, value in values.items() for one in runs({1: value}, slug=slug, task=task)]
    return load_frame(made), [cell for slug in values for cell in plan([1], slug=slug, task=task)]


def test_table_5_names_sets_and_ranks():
    values = {"lora-q-r8": 0.7, "lora-qk-r4": 0.6, "lora-qkvo-r2": 0.8}
    table = table5(summarise(*lora_cells(values)))
    assert list(table["Adapted"]) == ["Wq", "Wq, Wk", "Wq, Wk, Wv, Wo"]
    assert list(table["Rank"]) == [8, 4, 2]
    assert list(table["ratings (Pearson)"]) == ["70.0", "60.0", "80.0"]


def test_table_6_has_a_column_per_rank_and_shows_what_is_absent():
    values = {"lora-qv-r1": 0.7, "lora-qv-r64": 0.8, "lora-q-r1": 0.5}
    table = table6(summarise(*lora_cells(values)))
    assert list(table.columns) == ["Task", "Adapted", "r = 1", "r = 64"]
    assert table.values.tolist() == [
        ["ratings (Pearson)", "Wq, Wv", "70.0", "80.0"],
        ["ratings (Pearson)", "Wq", "50.0", "-"],
    ]


def test_cells_of_other_kinds_are_not_in_tables_5_and_6():
    with pytest.raises(ValueError, match="does not name target sets"):
        lora_of("lora-qv-r8-rslora")


def test_the_start_is_compared_in_pairs_of_one_seed():
    """Seed 3 has no partner: it is in the medians, not in the differences."""
    apart = runs({1: 0.60, 2: 0.70, 3: 0.10}, task="rte")
    started = []
    for one in runs({1: 0.65, 2: 0.72}, task="rte"):
        name = one.run_id.replace(".rte.", ".rte.mnli.")
        started.append(dataclasses.replace(one, run_id=name, config={**one.config, "start": "mnli"}))
    planned = plan([1, 2, 3], task="rte")
    planned += [dataclasses.replace(p, run_id=p.run_id.replace(".rte.", ".rte.mnli."), start="mnli") for p in planned]
    frame = load_frame([*apart, *started])
    (line,) = start_table(frame, summarise(frame, planned), planned).to_dict("records")
    assert (line["pretrained"], line["MNLI"]) == ("60.0 ±32.1", "68.5 ±4.9 (2/3)")
    assert (line["MNLI - pretrained"], line["Range"], line["Pairs"]) == ("+3.5", "+2.0 to +5.0", "2")


def test_records_of_different_rows_share_no_table():
    one, two = runs({1: 0.8, 2: 0.9})
    data = {**two.provenance["data"], "fingerprint": "0" * 64}
    with pytest.raises(UserError, match=r"reviews were made from different rows.*s1-.*s2-"):
        refuse_mixed_rows(load_frame([one, dataclasses.replace(two, provenance={"data": data})]))


def test_agreement_is_overlap_of_the_seeds():
    def summary(values):
        return summarise(load_frame(runs(values)), plan(list(values)))

    same = against_reference(summary({1: 0.8, 2: 0.9}), summary({1: 0.8, 2: 0.9}))
    assert (same["Agrees"].item(), same["Difference"].item()) == ("yes", "+0.0")
    apart = against_reference(summary({1: 0.8, 2: 0.81}), summary({1: 0.9, 2: 0.95}))
    assert (apart["Agrees"].item(), apart["Difference"].item()) == ("no", "-12.0")
    none = against_reference(summary({1: None}), summary({1: 0.9}))
    assert (none["Agrees"].item(), none["This run"].item()) == ("-", "-")


@pytest.mark.parametrize(
    ("count", "text"), [(294912, "0.3M"), (786432, "0.8M"), (4718592, "4.7M"), (102144, "0.1M"), (73728, "74k")]
)
def test_counts_read_as_the_paper_prints_them(count, text):
    assert human_count(count) == text


def test_the_papers_rows_average_to_what_it_prints():
    """Table 2's own arithmetic, so a slip in copying a cell shows."""
    paper = pd.read_csv(PAPER)
    rows = 0
    for _, group in paper.groupby(["model", "method", "trainable_params"], sort=False):
        values = group.set_index("task")["value"].astype(float)
        assert values.drop("Avg").mean() == pytest.approx(values["Avg"], abs=0.051)
        rows += 1
    assert rows == 14
    assert len(published(paper, list(GLUE_TASKS))) == 14
    assert (
        published(paper, ["rte"]).query("Model == 'RoBERTa-base' and Method == 'LoRA'")["RTE (acc.)"].item()
        == "86.6 ±0.7"
    )


def test_markdown():
    assert markdown(pd.DataFrame({"A": ["x"], "B": [1]})) == "| A | B |\n| --- | ---: |\n| x | 1 |\n"


COMMITTED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files", "results"], capture_output=True, text=True, check=True
).stdout.split()
PROFILES = sorted({path.split("/runs/")[0].removeprefix("results/") for path in COMMITTED if "/runs/" in path})


@pytest.mark.parametrize("name", PROFILES)
def test_committed_tables_are_what_the_records_give_byte_for_byte(name):
    report = build(name)
    assert not (report.state.failed or report.state.missing or report.state.extra or report.state.problems)
    for path, content in report.files.items():
        assert (ROOT / "results" / name / path).read_bytes() == content
    readme = (ROOT / "README.md").read_text()
    assert in_readme(readme, name, report.text) == readme
    assert "| LoRA" in readme.partition(f"results:{name} begin")[2].partition(f"results:{name} end")[0]


def test_profiles_are_committed():
    assert PROFILES == ["reference/mini"]


@pytest.fixture
def planted(tmp_path):
    """The committed reference, in a folder where it can be changed."""
    shutil.copytree(ROOT / "results" / "reference", tmp_path / "reference")
    return tmp_path


def test_a_changed_record_changes_every_table_that_shows_it(planted):
    before = build("reference/mini", results=planted)
    path = next(iter(sorted((planted / "reference" / "mini" / "runs").glob("*lora-qv-r8.ratings.s*.json"))))
    changed = read_record(path)
    selected = {**changed.selected, "best": {"epoch": 1, "value": 0.123}}
    write_record(planted / "reference" / "mini", dataclasses.replace(changed, selected=selected))
    after = build("reference/mini", results=planted)
    assert set(before.files) == set(after.files)
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed == {f"tables/table{number}.{ending}" for number in (2, 6) for ending in ("md", "csv")}
    readme = (ROOT / "README.md").read_text()
    assert in_readme(readme, "reference/mini", after.text) != readme


def test_what_is_missing_failed_broken_or_extra_is_named(planted):
    folder = planted / "reference" / "mini"
    gone, failed, *_ = sorted((folder / "runs").glob("*.json"))
    gone_id = read_record(gone).run_id
    one = read_record(failed)
    gone.unlink()
    write_record(folder, dataclasses.replace(one, status="failed", error="the loss is not finite at step 7"))
    (folder / "runs" / "junk.json").write_text(json.dumps({"a": 1}))
    write_record(folder, dataclasses.replace(one, run_id="minilm.full.reviews.s99-00000000"))
    text = build("reference/mini", results=planted).text
    assert f"- missing: `{gone_id}`" in text
    assert f"- failed: `{one.run_id}`: the loss is not finite at step 7" in text
    assert "- extra, not used: `minilm.full.reviews.s99-00000000`" in text
    assert "junk.json is not a run record" in text
    assert "(1/3)" in text


def test_a_run_is_set_beside_the_reference(planted):
    shutil.copytree(planted / "reference" / "mini", planted / "mini")
    text = build("mini", results=planted).text
    assert re.search(r"\b(\d+) of \1 cells agree", text)
    assert "Not GLUE" in text


def test_records_name_their_own_settings():
    """Each committed record's config is valid and gives the record's run_id: nothing was edited."""
    from lora.config import run_config

    seen = 0
    for name in PROFILES:
        records, problems = load_records(ROOT / "results" / name)
        assert not problems
        for one in records:
            assert run_config(one.config).run_id == one.run_id
            assert one.config["task"] in TASKS
            seen += 1
    assert seen >= 45
