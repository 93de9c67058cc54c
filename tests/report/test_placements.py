"""Which layers to adapt, judged by the unselected score. The truth is SciPy's interval over pairs of seeds."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import yaml
from scipy import stats
from synthetic import keep_predictions, noise, populate, synthetic_record

from lora.config.plan import add_to_plan
from lora.files import ROOT
from lora.records.record import load_curves, load_frame, load_records, write_record
from lora.report.build import build_report
from lora.report.claims.shown import verdict_table, verdicts_json, word_text
from lora.report.claims.statements import read_claims
from lora.report.runs import method_label
from lora.sweep.request import select_runs

MORE = (("mrpc", "MRPC (acc.)"), ("stsb", "STS-B (Pearson)"))
LEVEL = {"full": 1.0, "houlsby-m8": 2.0, "lora-qv-r8": 0.0, "lora-qkvo-r5": 0.5, "lora-if-r4": 1.5}
LEVEL |= {"lora-qkvoif-r2": 1.0, "lora-qkvoif-r8": 3.0}


def unselected(run) -> float:
    return 0.7 + LEVEL[run.slug] / 100 + 0.002 * noise(run.run_id)


def with_scores(run, best: float, unselected: float):
    record = synthetic_record(run, best)
    return dataclasses.replace(record, selected=record.selected | {"split_half": {"value": unselected}})


@pytest.fixture(scope="module")
def runs():
    """One of them is not trained yet."""
    planned = select_runs("layers", ["experiment=layers"])
    return [run for run in planned if (run.slug, run.task.name, run.seed) != ("houlsby-m8", "mrpc", 28)]


@pytest.fixture(scope="module")
def report(tmp_path_factory, runs):
    """Records whose best epoch says nothing: all are near 90 points, and only the unselected score differs."""
    results = tmp_path_factory.mktemp("results")
    for run in runs:
        record = with_scores(run, 0.9 + 0.001 * noise(f"best {run.run_id}"), unselected(run))
        write_record(results / "layers", record)
    return build_report("layers", ["experiment=layers"], results)


def test_every_claim_is_judged_by_the_unselected_score(report, runs):
    scores = {(run.slug, run.task.name, run.seed): 100 * unselected(run) for run in runs}
    verdicts = [each for each in report.verdicts if each.claim.experiment == "layers"]
    assert {each.claim.id for each in verdicts} == {one.id for one in read_claims() if one.experiment == "layers"}
    assert len(verdicts) == 13
    slugs = {run.slug: run.slug for run in runs} | {run.method: run.slug for run in runs if run.method == "full"}
    for each in verdicts:
        (found,), (compare,), (task,) = each.findings, each.claim.compare, each.claim.tasks
        one, other = (slugs[(side.get("slug") or side["method"])[0]] for side in (compare.one, compare.other))
        seeds = [seed for slug, of, seed in scores if (slug, of) == (one, task)]
        assert len(seeds) == found.n == (5 if task == "mnli" else 7 if (one, task) == ("houlsby-m8", "mrpc") else 8)
        differences = [scores[one, task, seed] - scores[other, task, seed] for seed in seeds]
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (found.mean, found.low, found.high) == pytest.approx((sum(differences) / len(seeds), low, high))
        assert set(each.others) == {"best", "last"} and abs(each.others["best"].findings[0].mean) < 0.2


def test_the_rates_tried_for_layers_are_not_in_the_claim_about_loras_rate(tmp_path):
    """They have a rate of the head, and full fine-tuning's have not."""
    runs = populate(tmp_path / "layers", "layers", ["experiment=learning_rate"])
    assert {run.slug for run in runs} >= {"full", "lora-qv-r8"}
    report = build_report("layers", ["experiment=learning_rate"], tmp_path)
    assert "lora_takes_ten_times_the_rate" not in {each.claim.id for each in report.verdicts}


def test_the_paper_s_cells_are_those_of_table_2():
    cells = (ROOT / "experiments" / "layers" / "paper.csv").read_text().splitlines()
    assert len(cells) == 10 and set(cells) < set((ROOT / "experiments/glue_table2/paper.csv").read_text().splitlines())


def test_the_table_and_the_figure_have_scipys_interval_of_each_arm_minus_q_v(report, runs):
    (table,) = [table for table in report.tables if table.name == "layers"]
    scores = {(run.slug, run.task.name, run.seed): 100 * unselected(run) for run in runs}
    cells = table.cells.set_index(["Task", "Method"])["Unselected, minus q, v"]
    (panel,) = report.figures["layers"]["panels"]
    labels = {method_label(run.slug): run.slug for run in runs}
    assert set(panel["names"]) == {*labels} - {"LoRA (qv, r8)"} and len(panel["names"]) == 6
    for series, (task, title) in zip(panel["series"], (("mnli", "MNLI (acc.)"), *MORE), strict=True):
        assert series["label"] == f"{title}, over seeds"
        for place, mean, low in zip(series["x"], series["y"], series["low"], strict=True):
            label = panel["names"][round(place)]
            seeds = [seed for slug, of, seed in scores if (slug, of) == (labels[label], task)]
            gaps = [scores[labels[label], task, seed] - scores["lora-qv-r8", task, seed] for seed in seeds]
            expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
            assert (mean, low) == pytest.approx((sum(gaps) / len(gaps), expected.low), rel=1e-4)
            text = f"{sum(gaps) / len(gaps):+.1f} ({expected.low:+.1f} to {expected.high:+.1f})"
            assert cells[title, label] == text


@pytest.mark.parametrize(
    ("lead", "gain", "start"),
    [(2.0, 0.0, "The head's rate does not"), (0.0, 1.0, "The head's rate explains"), (0.0, 0.0, "Whether the head's")],
)
def test_the_rule_about_the_heads_rate(tmp_path, lead, gain, start):
    """`lead`: of Houlsby adapters at LoRA's rate of the head; `gain`: of LoRA from theirs."""
    added = {("houlsby", 5e-4): lead, ("houlsby", 2e-3): 2.0, ("lora", 2e-3): gain}
    for run in select_runs("layers", ["experiment=head_rate"]):
        points = added.get((run.method, run.config.train.head_lr), 0.0)
        record = with_scores(run, 0.9, 0.7 + points / 100 + 0.001 * noise(run.run_id))
        write_record(tmp_path / "layers", record)
    report = build_report("layers", ["experiment=head_rate"], tmp_path)
    (table,) = [table for table in report.tables if table.name == "head_rate"]
    assert table.notes[0].startswith(start) and len(table.cells) == 6


def test_each_arm_takes_the_rate_with_the_best_unselected_score_on_each_task(tmp_path):
    tried = select_runs("layers", ["experiment=learning_rate", "task=mrpc,stsb", "seed=0"])
    add_to_plan(tmp_path / "layers", [*select_runs("layers", ["experiment=layers", "task=mrpc,stsb"]), *tried])
    for run in tried:
        best = {"mrpc": 1e-3, "stsb": 5e-4}[run.task.name] if run.method == "lora" else 1e-4
        value = 0.7 - abs(math.log10(run.config.train.lr / best)) / 10
        record = with_scores(run, 0.9 - value / 10, value)  # the best epoch would choose another
        if (run.slug, run.task.name, run.config.train.lr) == ("lora-if-r4", "mrpc", 2e-4):  # one class for all rows
            constant = {f"{epoch}.validation": np.zeros(4, np.int16) for epoch in (3, 4)}
            digest = keep_predictions(tmp_path / "layers", run, constant)
            record = dataclasses.replace(record, predictions=digest)
        write_record(tmp_path / "layers", record)
    report = build_report("layers", [], tmp_path)
    (table,) = [table for table in report.tables if table.name == "learning_rate"]
    cells = table.cells[table.cells["Taken"] != ""].set_index("Method")[["Learning rate", "Taken"]]
    assert cells.loc["LoRA (if, r4), MRPC"].tolist() == ["0.001", "yes (edge)"]
    assert cells.loc["LoRA (if, r4), STS-B"].tolist() == ["0.0005", "yes"]
    assert cells.loc["Full fine-tuning, MRPC"].tolist() == ["0.0001", "yes (edge)"]
    panels = report.figures["rates"]["panels"]
    assert [panel["title"] for panel in panels] == ["MRPC", "STS-B"]
    for panel in panels:  # an arm has one name on both tasks, and no point at a rate at which it collapsed
        drawn = {series["label"]: series["x"] for series in panel["series"]}
        assert len(drawn) == 7 and drawn["Full fine-tuning"] == [2e-5, 5e-5, 1e-4]
        assert drawn["LoRA (if, r4)"] == ([5e-4, 1e-3] if panel["title"] == "MRPC" else [2e-4, 5e-4, 1e-3])


def test_a_rate_at_the_edge_of_those_tried_stands_beside_table_and_verdict(tmp_path):
    """On MRPC full fine-tuning takes the highest rate it tried, and LoRA on all six matrices (r = 8) the lowest."""
    for run in select_runs("layers", ["experiment=layers,learning_rate", "task=mrpc"]):
        write_record(tmp_path / "layers", with_scores(run, 0.9, unselected(run)))
    report = build_report("layers", [], tmp_path)
    (table,) = [table for table in report.tables if table.name == "layers"]
    rates = table.cells.set_index("Method")["Learning rate"]
    edges = {"Full fine-tuning": "0.0001 (edge)", "LoRA (qkvoif, r8)": "0.0002 (edge)"}
    assert len(rates) == 7 and rates[rates.str.contains("edge")].to_dict() == edges
    found = {
        each.claim.id: word_text(each).partition("; rate at the edge of those tried: ")[2] for each in report.verdicts
    }
    assert found["qv_not_below_full_on_mrpc"] == "Full fine-tuning"
    assert found["all_layers_above_qv_on_mrpc"] == "LoRA (qkvoif, r8)"
    assert found["mlp_above_attention_on_mrpc"] == ""


def test_where_the_best_epoch_says_otherwise_both_words_are_shown(report):
    by_id = {each.claim.id: each for each in report.verdicts}
    assert word_text(by_id["all_layers_above_qv_on_mrpc"]).startswith("supported (best epoch: ")
    assert word_text(by_id["qv_not_below_full_on_stsb"]) != by_id["qv_not_below_full_on_stsb"].word
    table = verdict_table([by_id["all_layers_above_qv_on_mrpc"]])
    assert list(table["Score"]) == ["Unselected"] and {"Best epoch", "Last epoch"} <= set(table)
    assert table["Unselected"].eq("-").all()  # it is what was found
    (kept,) = json.loads(verdicts_json([by_id["all_layers_above_qv_on_mrpc"]]))
    assert kept["verdict"] == "supported" and kept["on_best"]["verdict"] != "supported" and "unselected" not in kept


def test_records_of_every_schema_are_read_and_only_the_newest_has_a_dev_loss(tmp_path, runs):
    small, decide = (load_records(ROOT / "results" / "reference" / name)[0] for name in ("small", "decide"))
    assert {record.schema for record in small} == {1} and {record.schema for record in decide} == {2}
    assert load_frame([*small[:3], *decide[:3]])[["last_loss", "lowest_loss"]].isna().all(axis=None)
    record = synthetic_record(runs[0], 0.9)
    losses = [0.9, 0.4, 0.5, 0.6]
    epochs = [one | {"loss": {record.selected["split"]: loss}} for one, loss in zip(record.epochs, losses, strict=True)]
    write_record(tmp_path, dataclasses.replace(record, epochs=epochs))
    (read,), _ = load_records(tmp_path)
    (row,) = load_frame([read]).itertuples()
    assert (read.schema, row.last_loss, row.lowest_loss) == (3, 0.6, 0.4)
    assert load_curves([read])["loss"].tolist() == losses


def test_the_arms_share_what_the_plan_says(runs):
    """Equal parameters where it says so, one rate of LoRA's head, one alpha, and seeds that no earlier run has."""
    parameters = {"lora-qv-r8": 4 * 8, "lora-qkvo-r5": 8 * 5, "lora-if-r4": 10 * 4, "lora-qkvoif-r2": 18 * 2}
    printed = {slug: 6 * 384 * width for slug, width in parameters.items()}
    plan = (ROOT / "experiments" / "plans" / "layers.md").read_text()
    assert {f"{count:,}" for count in printed.values()} <= set(re.findall(r"\| ([\d,]+) \|", plan))
    lora = [run for run in runs if run.method == "lora"]
    assert {(run.config.method.alpha, run.config.train.head_lr) for run in lora} == {(16.0, 5e-4)}
    assert {run.config.train.head_lr for run in runs if run.method != "lora"} == {None}
    planned = {run.seed for run in select_runs("layers", [])} - {0, 5}
    for folder in ("base", "decide", "long", "mini", "small"):
        assert planned.isdisjoint(load_frame(load_records(ROOT / "results" / "reference" / folder)[0])["seed"])


def trains_the_same(git, commit: str, other: str) -> bool:
    """Whether two commits differ only in records, plan and train.lr of layers' grid."""
    grid = "conf/experiment/layers.yaml"
    plan = "experiments/plans/layers.md"
    changed = git("diff", "--name-only", commit, other).splitlines()
    if [path for path in changed if path not in (grid, plan) and not path.startswith("results/reference/layers/")]:
        return False
    blocks = [yaml.safe_load(git("show", f"{one}:{grid}"))["grid"]["layers"] for one in (commit, other)]
    first, second = ([{**block, "train.lr": None} for block in one] for one in blocks)
    return first == second


def test_tries_and_results_come_from_two_commits_that_differ_in_rates_records_and_plan(git):
    commits = {"tries": set(), "results": set()}
    for record in load_records(ROOT / "results" / "reference" / "layers")[0]:
        code = record.provenance["code"]
        commits["results" if record.config["seed"] in range(21, 29) else "tries"].add(code["commit"])
        assert not code["dirty"], record.run_id
    (tries,), (results,) = commits.values()
    assert trains_the_same(git, tries, results)
    assert tries in git("rev-list", results).splitlines() and results in git("rev-list", "HEAD").splitlines()
    assert not trains_the_same(git, tries, "HEAD")  # another grid of another profile is more than that


def test_the_grid_has_the_rates_that_the_committed_tries_chose():
    """By the scores of the records: the best mean of the rates that have every seed tried, the lower on a tie."""
    tried: dict[tuple[str, str], dict[float, list[float]]] = {}
    for record in load_records(ROOT / "results" / "reference" / "layers")[0]:
        (row,) = load_frame([record]).itertuples()
        if row.seed in (0, 5):
            rates = tried.setdefault((row.slug, row.task), {})
            rates.setdefault(row.lr, []).append(record.selected["split_half"]["value"])
    planned = {(run.slug, run.task.name): run.config.train.lr for run in select_runs("layers", ["experiment=layers"])}
    assert len(planned) == 16 and set(planned) == set(tried)
    for arm, rates in tried.items():
        most = max(map(len, rates.values()))
        means = {rate: sum(scores) / most for rate, scores in sorted(rates.items()) if len(scores) == most}
        assert planned[arm] == max(means, key=means.get), arm


def test_committed_differences_have_scipys_mean_and_interval():
    """By the scores in the records: unselected, which judges, and best and last beside it; six digits are kept."""
    folder = ROOT / "results" / "reference" / "layers"
    records = [record for record in load_records(folder)[0] if record.config["seed"] in range(21, 29)]
    frame = load_frame(records)
    frame["unselected"] = [record.selected["split_half"]["value"] for record in records]
    frame = frame.set_index(["slug", "task", "seed"])
    claims = {claim.id: claim for claim in read_claims() if claim.experiment == "layers"}
    entries = json.loads((folder / "claims" / "verdicts.json").read_text())
    compared = 0
    for entry in filter(lambda one: one["id"] in claims, entries):
        (compare,), (task,) = claims[entry["id"]].compare, claims[entry["id"]].tasks
        sides = ((side.get("slug") or side["method"])[0] for side in (compare.one, compare.other))
        one, other = ("houlsby-m8" if name == "houlsby" else name for name in sides)
        for score, found in (("unselected", entry), ("best", entry["on_best"]), ("last", entry["on_last"])):
            of_task = 100 * frame[score].astype(float).unstack("seed")
            of_both = of_task.reindex([(one, task), (other, task)])
            gaps = (of_both.iloc[0] - of_both.iloc[1]).dropna().round(9)
            (finding,) = found["findings"]
            assert finding["n"] == len(gaps), entry["id"]
            if len(gaps):
                compared += 1
                assert finding["mean"] == pytest.approx(gaps.mean(), rel=1e-5, abs=1e-5)
            if gaps.nunique() > 1:  # equal differences have no interval
                ends = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
                assert (finding["low"], finding["high"]) == pytest.approx((ends.low, ends.high), rel=1e-5, abs=1e-5)
    assert compared
