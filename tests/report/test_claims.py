"""Claims: strict reading, and verdicts on hand-made differences. Too few seeds never decide."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from committed import committed
from scipy import stats
from synthetic import runs_of

from lora.errors import UserError
from lora.files import ROOT
from lora.models.sizes import gpt3_count
from lora.records.analysis import Analyses
from lora.records.record import FRAME_COLUMNS
from lora.report.claims import verdicts
from lora.report.claims.findings import Finding, judge_difference, smallest_p
from lora.report.claims.headlines import Headline, headlines
from lora.report.claims.shown import closest, commit_text, verdicts_json
from lora.report.claims.statements import Bound, Compare, read_claims
from lora.report.claims.verdicts import Verdict, after_holm, stated_later, verdict_on
from lora.report.labels import setting_columns
from lora.report.runs import with_labels
from lora.report.stats import MOST_SEEDS, mean_interval, mean_p

judge = functools.partial(verdicts.judge, records={})
KINDS = ("metric", "measure", "count", "check")  # of a claim, by what it is judged


def bound_of(**given) -> Bound:
    return Compare("", "", **given).bound


GOOD = """\
- id: one
  sentence: A is better than B.
  source: a paper
  margin: any
  metric: best
  compare:
    - {one: {method: lora}, other: {method: full}, above: 0}
  paper:
    - {model: M, task: Avg}
"""


@pytest.fixture
def experiments(tmp_path):
    """A function from the text of a claims file to a folder of experiments that contains it."""

    def make(content: str, name: str = "glue_table2") -> Path:
        folder = tmp_path / "experiments" / name
        folder.mkdir(parents=True)
        (folder / "claims.yaml").write_text(content)
        (folder / "paper.csv").write_text("source,model,method,task,value,std\n,M,LoRA,Avg,87,\n,M,LoRA,RTE,86.6,0.7\n")
        return folder.parent

    return make


def judged_parts(content: bytes | str) -> dict[str, str]:
    """Id -> what is judged: the sentence, the measure, the tasks and the comparisons with their bounds.

    `usual` was the word for a setting without a value.
    """
    known = ("sentence", "ours", *KINDS, "tasks", "compare")
    return {
        entry["id"]: json.dumps({key: entry[key] for key in known if key in entry}).replace('"usual"', "null")
        for entry in yaml.safe_load(content) or ()
    }


def test_every_claim_names_the_commit_that_stated_it(git):
    """The commit has the claim as it is judged now, and none of its parents does."""
    claims = read_claims()
    assert len(claims) > 20
    for claim in claims:
        path = f"experiments/{claim.experiment}/claims.yaml"
        now = judged_parts((ROOT / path).read_text())[claim.id]
        assert re.fullmatch("[0-9a-f]{40}", claim.stated), claim.id
        assert judged_parts(git("show", f"{claim.stated}:{path}"))[claim.id] == now, claim.id
        assert git("show", "-s", "--format=%cI", claim.stated).strip() == claim.stated_at, claim.id
        for parent in git("rev-list", "--parents", "-n", "1", claim.stated).split()[1:]:
            assert judged_parts(git("show", f"{parent}:{path}")).get(claim.id) != now, claim.id


def test_a_claim_is_later_than_runs_that_began_before_it():
    (claim,) = [one for one in read_claims() if one.id == "small_rank_is_enough"]
    one = verdict_on(claim, "minilm", [finding(1.0, 0.5, 1.5, runs=(("a",), ("b",)))])
    before, after = "2026-11-26T12:09:10+00:00", "2026-11-26T12:09:12+00:00"  # a second off the commit's time
    for made_at, later in (
        ({"a": after, "b": after}, ""),
        ({"a": after, "b": before}, "stated later"),
        ({"a": after, "b": None}, ""),
        ({}, None),
    ):
        assert stated_later(one, made_at) == later
    pairs = verdict_on(claim, "minilm", [finding(1.0, 0.5, 1.5, runs=(("a", "b"), ("c", "d")), sides=("DoRA", "LoRA"))])
    made_at = dict.fromkeys("abcd", after)
    assert stated_later(pairs, made_at) == ""
    assert stated_later(pairs, made_at | dict.fromkeys("bd", before)) == "the runs of LoRA were known"
    assert stated_later(pairs, made_at | dict.fromkeys("ad", before)) == "the runs of DoRA and LoRA were known"
    assert stated_later(pairs, made_at | dict.fromkeys("cd", before)) == "stated later"
    assert stated_later(verdict_on(dataclasses.replace(claim, stated_at=""), "", one.findings), {"a": after}) is None
    assert commit_text(dataclasses.replace(one, stated_later="stated later")) == f"{claim.stated[:8]}, stated later"


def test_every_comparison_of_every_claim_has_cells_in_some_committed_runs():
    """A mistyped method, slug, task or setting of a side would never be judged."""
    judged = {}
    for path in (ROOT / "results" / "reference").glob("*/claims/verdicts.json"):
        for entry in json.loads(path.read_text()):
            found = [one for one in entry["findings"] if one["n"] != 0]
            judged[entry["id"]] = max(judged.get(entry["id"], 0), len(found))
    for claim in read_claims():
        if claim.experiment not in ("layers", "rows"):  # not yet trained; their claims are judged on drawn records
            assert judged.get(claim.id, 0) >= len(claim.compare), claim.id


def test_every_claim_is_of_one_kind_and_bounds_each_comparison_once():
    for claim in read_claims():
        assert sum(getattr(claim, kind) is not None for kind in KINDS) == 1 and bool(claim.compare) != bool(claim.check)
        for one in claim.compare:
            assert [one.above, one.below, one.within].count(None) == 2, claim.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  metric: best", "  metric: bset"), "metric must be one of best, unselected, got 'bset'"),
        (("task: Avg", "task: MRPC"), "must be one row of paper.csv beside it, found 0"),
        (("above: 0", "above: much"), r"compare\[0\].above must be of type float, got 'much'"),
    ],
)
def test_a_broken_file_is_refused(experiments, change, message):
    with pytest.raises(UserError, match=rf"(?s)glue_table2/claims.yaml.*{message}"):
        read_claims(experiments(GOOD.replace(*change)))


@pytest.mark.parametrize(
    ("bound", "low", "high", "holds"),
    [
        (bound_of(above=-1), -0.5, 0.4, True),
        (bound_of(above=-1), -1.5, 0.4, None),
        (bound_of(above=-1), -3.0, -1.0, False),
        (bound_of(below=0), -3.0, -0.1, True),
        (bound_of(below=0), 0.0, 1.0, False),
        (bound_of(within=0.02, of=1), 0.99, 1.01, True),
        (bound_of(within=0.02, of=1), 0.97, 1.01, None),
        (bound_of(within=0.02, of=1), 1.05, 1.06, False),
        (bound_of(above=0), float("nan"), float("nan"), None),
    ],
)
def test_a_bound_holds_for_a_whole_interval(bound, low, high, holds):
    assert bound.holds(low, high) is holds


@pytest.mark.parametrize(
    ("added", "seeds", "word", "reason"),
    [
        (0.5, 5, "supported", ""),
        (-3.0, 5, "contradicted", ""),
        (-1.3, 5, "undecided", f"the interval includes the bound; more than {MOST_SEEDS} seeds would decide it"),
        (20.0, 4, "undecided", "4 seeds with a pair on every task, and this project's convention is at least 5; about"),
    ],
)
def test_a_difference_is_judged_by_its_interval_over_at_least_five_seeds(added, seeds, word, reason):
    """LoRA - full is `added` and 0.1 points x seed, against a bound of -1; Houlsby adapters are lower by 10."""
    planned = [
        p
        for slug, method in (("full", "full"), ("lora-qv-r8", "lora"), ("houlsby-m8", "houlsby"))
        for task in ("cola", "rte")
        for p in plan_of(slug=slug, method=method, task=task)[:seeds]
    ]
    level = {"full": 0, "lora": added, "houlsby": -10}
    planned = {"glue_table2": planned}
    found = judged(planned, lambda p: level[p["method"]] + 0.05 * p["seed"] * (p["method"] == "houlsby"))
    one = found["lora_as_good_as_full"]
    (average,) = one.findings
    values = added + 0.1 * np.arange(1, seeds + 1)
    assert (one.word, average.n, one.about, len(average.records)) == (word, seeds, "minilm", 2 * 2 * seeds)
    assert (average.low, average.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert reason in one.reason and bool(reason) == bool(one.reason) and not one.not_glue
    assert one.others["last"].findings[0].mean == 0 and one.others["unselected"].findings[0].mean == average.mean
    (kept,) = json.loads(verdicts_json([one]))
    assert kept["findings"][0]["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert kept["on_last"]["findings"][0]["mean"] == 0
    assert seeds < 5 or found["houlsby_below_both"].word == "supported"


def pairs_of(task_values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"task": task, "seed": seed, "run_id": f"a.{task}.{seed}", "run_id_other": f"b.{task}.{seed}", "difference": v}
        for task, values in task_values.items()
        for seed, v in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows)


SPREAD = [-0.6, -0.3, 0.0, 0.3, 0.6]  # mean 0; the t interval is -0.589 to 0.589


@pytest.mark.parametrize(("mean", "alone", "of_four"), [(-0.6, False, None), (-0.9, False, None), (-1.1, False, False)])
def test_one_rejection_among_several_takes_holms_correction(mean, alone, of_four):
    """SciPy's one-sided p values are 0.0238, 0.0066 and 0.0033. 2.5% over 4 is 0.00625."""
    values = np.array(SPREAD) + mean
    assert (stats.ttest_1samp(values, 0, alternative="less").pvalue <= 0.025 / 4) == (of_four is False)
    broken = judge_difference(bound_of(above=0), ["A", "B"], ["rte"], pairs_of({"rte": list(values)}))
    kept = judge_difference(bound_of(above=-5), ["A", "B"], ["rte"], pairs_of({"rte": SPREAD}))
    untested = judge_difference(bound_of(above=0), ["A", "B"], ["cola"], pairs_of({"rte": SPREAD}))
    assert (broken.holds, kept.holds, untested.holds) == (False, True, None)
    assert after_holm([broken])[0].holds is alone
    found = after_holm([kept, broken, untested, kept])
    assert [each.holds for each in found] == [True, of_four, None, True]
    if of_four is None:
        assert found[1].reason == "outside the bound, but not after correction for 4 comparisons"


def test_a_claim_is_wrongly_refuted_in_at_most_two_and_a_half_percent():
    """Five comparisons, each exactly at its bound: uncorrected, some interval is beyond it in 12% of the repeats."""
    bound, wrong, repeats = bound_of(above=0), 0, 1000
    for values in np.random.default_rng(5).normal(size=(repeats, 5, 5)):
        intervals = [mean_interval(each) for each in values]
        p = [smallest_p(each, bound, mean_p) for each in values]
        holds = [bound.holds(each.low, each.high) for each in intervals]
        found = after_holm([finding(0.0, holds=h, p_against=q) for h, q in zip(holds, p, strict=True)])
        wrong += any(each.holds is False for each in found)
    assert wrong / repeats <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / repeats)


def test_only_the_seeds_with_every_task_stand_behind_an_average():
    found = judge_difference(
        bound_of(above=0), ["A", "B"], ["rte", "cola"], pairs_of({"rte": [*SPREAD, 9], "cola": SPREAD})
    )
    assert found.n == 5 and found.mean == pytest.approx(0) and len(found.records) == 20
    assert not any(run.endswith(".6") for run in found.records)


def finding(mean: float, low: float = math.nan, high: float = math.nan, **changes) -> Finding:
    known = {"label": "A - B", "bound": bound_of(above=0), "p_against": 1.0, "holds": True, "unit": "points"}
    return Finding(n=5, mean=mean, low=low, high=high, **known | changes)


def test_a_terminal_shows_few_comparisons_and_the_worst_of_many():
    (claim,) = [each for each in read_claims() if each.id == "houlsby_below_both"]
    both = (finding(3.0, 2.0, 4.0), finding(-0.5, -2.0, 1.0, holds=None, label="A - C"))
    assert closest([verdict_on(claim, "minilm", both)]) == "+3.0 (+2.0 to +4.0); -0.5 (-2.0 to +1.0)"
    more = verdict_on(claim, "minilm", (*both, finding(9.0, 8.0, 10.0, label="A - D")))
    assert closest([more]) == "-0.5 (-2.0 to +1.0), smallest margin of 3"


def test_a_row_of_the_readme_is_one_comparison_of_the_profile_that_it_names(tmp_path, monkeypatch):
    (claim,) = [each for each in read_claims() if each.id == "qv_better_than_qk"]
    monkeypatch.setattr("lora.report.claims.headlines.FINDINGS", tmp_path / "findings.yaml")

    def rows(more: str, own: Verdict, other: Verdict) -> list[dict[str, str]]:
        line = f"- {{claim: {claim.id}, says: so, paper: {{word: none}}{more}}}"
        (tmp_path / "findings.yaml").write_text(line)
        return [row.cells for row in headlines([own], {"decide": [other]})]

    kept = finding(2.0, 1.0, 3.0, rows_low=-1.0, rows_high=5.0, place="STS-B")
    broken = finding(-2.0, -3.0, -1.0, holds=False, p_against=0.001, rows_low=-4.0, rows_high=-0.1, place="CoLA")
    own, other = verdict_on(claim, "minilm", [kept, broken]), verdict_on(claim, "minilm", [kept])
    (first,), (second,), (worst,) = (rows(more, own, other) for more in (", comparison: 0", ", comparison: 1", ""))
    assert (first["Verdict"], first["Other dev rows"]) == ("supported on these dev rows", "not known")
    assert (second["Verdict"], second["Other dev rows"], second["Task"]) == ("contradicted", "yes", "CoLA")
    assert worst["Verdict"] == "contradicted"
    assert worst["Here (95% interval)"] == "-2.0 (-3.0 to -1.0), smallest margin of 2"
    (named,) = rows(", profile: decide", own, other)
    assert named["Here (95% interval)"] == "+2.0 (+1.0 to +3.0)"
    unmeasured = verdict_on(claim, "minilm", [dataclasses.replace(kept, n=0)])
    assert rows(", profile: decide", own, unmeasured) == []


@pytest.mark.parametrize(
    ("low", "high", "best", "word"),
    [
        (-0.8, -0.1, True, "supported, interval below 0"),
        (-0.8, 0.2, None, "supported, interval includes 0 (best epoch: undecided)"),
        (0.1, 0.2, False, "supported, interval above 0 (best epoch: contradicted)"),
        (-1.2, -0.1, True, "undecided (best epoch: supported)"),
    ],
)
def test_a_row_judged_by_the_unselected_score_says_so_and_where_the_best_epoch_differs(low, high, best, word):
    (claim,) = [each for each in read_claims() if each.id == "qv_not_below_full_on_stsb"]
    (compare,) = claim.compare
    holds = compare.bound.holds(low, high)
    kept = finding((low + high) / 2, low, high, bound=compare.bound, holds=holds, place="STS-B")
    by_best = dataclasses.replace(kept, holds=best, p_against=0.001 if best is False else 1.0)
    others = {score: verdict_on(claim, "minilm", [by_best]) for score in ("best", "last")}
    verdict = dataclasses.replace(verdict_on(claim, "minilm", [kept]), others=others)
    line = {"claim": claim.id, "comparison": 0, "says": "so", "remark": "chosen later", "paper": {"word": "none"}}
    scores = {score: other.findings[0] for score, other in others.items()}
    cells = Headline(1, line, [verdict], verdict.findings[0], scores, {}).cells
    assert (cells["Verdict"], cells["Task"]) == (word, "STS-B (chosen later; unselected score)")


def test_the_papers_differences_are_those_of_its_table():
    """By hand, from Tables 2, 5 and 6 of Hu et al. 2021."""
    papers = [row.paper for row in committed("reference/long").headlines if row.gaps]
    assert papers[0] == f"{89.0 - 88.9:+.1f} (RoBERTa-large, both from MNLI)"  # not 88.6, which has no start
    assert papers[1].startswith(f"{86.4 - 88.6:+.1f} ") and papers[3].startswith(f"{87.4 - 85.2:+.1f} ")
    assert papers[5] == f"{91.3 - 91.3:+.1f} MultiNLI-matched; {73.7 - 71.4:+.1f} WikiSQL (GPT-3 175B)"
    assert papers[7] == f"{91.3 - 91.3:+.1f} to {73.7 - 70.0:+.1f} (GPT-3 175B)"


def test_the_findings_figure_shows_each_rows_word_bound_and_number():
    """Against the table, which another function writes."""
    report = committed("reference/long")
    rows = {row.cells["#"]: row for row in report.headlines if not row.is_aside}
    (panel,) = report.figures["findings"]["panels"]
    words = {x: series["label"] for series in panel["series"][:-1] for x in series["x"]}
    assert len(words) == len(panel["names"]) == 10
    for place, (name, (low, high)) in enumerate(zip(panel["names"], panel["supports"], strict=True)):
        row = rows[name.partition(".")[0]]
        assert row.line["says"] in name and row.cells["Verdict"].startswith(words[place])
        assert [-math.inf if low is None else low, math.inf if high is None else high] == [*row.finding.bound[:2]]
    text, highest = report.figures["findings"]["note"], max(max(s["y"]) for s in panel["series"])
    assert f"Row 4 is off the scale: {rows['4'].cells['Here (95% interval)']}" in text and highest < 5


def test_a_task_of_which_there_is_no_record_stays_in_the_average():
    planned = {"glue_table2": [*plan_of(task="rte"), *plan_of(task="rte", slug="full", method="full")]}
    cola = [*plan_of(task="cola"), *plan_of(task="cola", slug="full", method="full")]
    runs, *more = scored({"glue_table2": [*planned["glue_table2"], *cola]}, lambda p: 0.0)
    untrained = runs["task"] == "cola"
    runs = runs.assign(best=runs["best"].mask(untrained), last=runs["last"].mask(untrained))
    (first, *_) = judge(read_claims(), runs, *more, Path("none"), Analyses())
    assert first.findings[0].label.endswith("average of CoLA, RTE")
    assert (first.word, first.reason) == ("undecided", "no pair of seeds on CoLA")
    assert math.isnan(first.findings[0].mean), "one of two tasks gives no average of two"


def test_an_average_is_over_the_common_tasks_and_over_whole_ones_where_there_are_any():
    """Full fine-tuning lacks STS-B. Of the common tasks, CoLA was trained on a part of its rows."""
    lora = [p for task in ("cola", "mrpc", "rte", "stsb") for p in plan_of(task=task)]
    full = [p for task in ("cola", "mrpc", "rte") for p in plan_of(task=task, slug="full", method="full")]
    planned = {"glue_table2": [*lora, *full]}
    runs, *more = scored(planned, lambda p: 3.0 * (p["task"] == "cola") * (p["method"] == "lora"))

    def compared(*parts):
        kinds = runs["kind"].mask(runs["task"].isin(parts), "part")
        found = judge(read_claims(), runs.assign(kind=kinds), *more, Path("none"), Analyses())
        return next(each for each in found if each.claim.id == "lora_as_good_as_full").findings[0]

    three, two = compared(), compared("cola")
    assert three.label.endswith("average of MRPC, CoLA, RTE") and three.mean == pytest.approx(0.3 + 3 / 3)
    assert two.label.endswith("average of MRPC, RTE") and two.mean == pytest.approx(0.3)
    assert compared("cola", "mrpc", "rte", "stsb").label == three.label


def plan_of(given=(), **cell):
    """Five runs, one per seed, without a score: `scored` adds it."""
    usual = {"protocol": "ours", "start": "pretrained", "slug": "lora-qv-r8", "method": "lora", "task": "rte"} | cell
    name = f"{usual['slug']}.{usual['task']}.{usual['start']}.{'+'.join(given)}"
    settings = dict(one.split("=") for one in given)
    return [{"run_id": f"{name}.s{s}", "seed": s, **settings, **usual} for s in range(1, 6)]


def scored(planned, add):
    """The report's frame of these runs, by experiment, with 60 points + `add` of the run + `spread`; no rates tried."""
    runs = [{**p, "experiment": experiment} for experiment, found in planned.items() for p in found]
    rows = [
        {**dict.fromkeys(FRAME_COLUMNS), **{key: p[key] for key in ("run_id", "slug", "task", "seed")}}
        | {"model": "minilm", "device": "a CPU", "best": 0.6 + add(p) / 100 + spread(p), "is_part": False}
        | {"last": 0.6, "trainable_method": 22_565_376 if p["slug"] == "full" else 73_728}
        for p in {p["run_id"]: p for p in runs}.values()
    ]
    frame = pd.DataFrame(rows, columns=FRAME_COLUMNS)
    runs = with_labels(runs_of(runs, frame), without=["start"])
    return runs.assign(others_epoch=runs["best"]), frame, runs[:0]


def spread(p):
    """Noise: the difference of any two kinds of runs varies by seed. The second part averages 0 over five seeds."""
    return 0.001 * (p["seed"] * (p["method"] == "lora") + 0.5 * (p["seed"] - 3) * len(setting_columns(p)))


def judged(planned, add, claims=None):
    found = judge(claims or read_claims(), *scored(planned, add), Path("none"), Analyses())
    return {each.claim.id: each for each in found}


def test_lora_takes_the_mnli_start_where_a_task_has_it():
    """RTE and MRPC gain 5 points from MNLI, and CoLA has no such start: the average of three gains 10 / 3."""
    lora = [p for task in ("cola", "mrpc", "rte") for p in plan_of(task=task)]
    full = [p for task in ("cola", "mrpc", "rte") for p in plan_of(task=task, slug="full", method="full")]
    children = [p for task in ("mrpc", "rte") for p in plan_of(task=task, start="mnli", given=("start_seed=1",))]
    planned = {"glue_table2": [*lora, *full], "mnli_start": [*lora[5:], *children]}
    found = judged(planned, lambda p: 5.0 * (p["start"] == "mnli"))
    (apart,) = found["lora_as_good_as_full"].findings
    (started,) = found["lora_from_mnli_as_good_as_full"].findings
    assert apart.mean == pytest.approx(0.3) and started.mean == pytest.approx(0.3 + 10 / 3)
    assert started.label.startswith("LoRA (qv, r8) from MNLI (MRPC, RTE) - Full fine-tuning from pretrained, ")
    assert len(set(started.records)) == 2 * 3 * 5
    assert "lora_as_good_as_full_both_from_mnli" not in found  # no run of full fine-tuning starts from MNLI

    for task in ("mrpc", "rte"):
        planned["mnli_start"] += plan_of(task=task, slug="full", method="full", start="mnli")
    both = judged(planned, lambda p: 5.0 * (p["start"] == "mnli"))["lora_as_good_as_full_both_from_mnli"]
    assert both.findings[0].mean == pytest.approx(0.3) and both.word == "supported"


def test_a_setting_tells_cells_of_one_slug_apart(experiments):
    kept = plan_of(slug="lora-qv-r64", given=("method.alpha_at_rank=8",), task="cola")
    fixed = [p for slug in ("lora-qv-r8", "lora-qv-r64", "lora-qv-r4") for p in plan_of(slug=slug, task="cola")]
    full = plan_of(slug="full", method="full", task="cola")
    planned = {"lora_ranks": [*fixed, *kept]}
    found = judged(planned, lambda p: 3.0 * bool(setting_columns(p)))["ranks_do_not_hang_on_alpha"]
    assert [each.mean for each in found.findings] == pytest.approx([-3.0, 3.0])
    assert found.word == "contradicted"
    assert judged(planned, lambda p: 0.0)["small_rank_is_enough"].findings[0].n == 5
    claims = read_claims(experiments(GOOD.replace("method: lora", "slug: lora-qv-r64"), "lora_ranks"))
    (one,) = judged({"lora_ranks": [*kept, *fixed, *full]}, lambda p: 0.0, claims).values()
    assert one.reason.startswith("one side has LoRA (qv, r64), alpha_at_rank=8 (ours) and LoRA (qv, r64) (ours), and")


def test_comparisons_without_runs_are_named_and_the_others_shown():
    """Two of the four comparisons concern Wq alone, of which one rank is planned."""
    runs = [p for rank in (1, 8, 64) for p in plan_of(slug=f"lora-qv-r{rank}", task="cola")]
    planned = {"lora_ranks": [*runs, *plan_of(slug="lora-q-r1", task="cola")]}
    found = judged(planned, lambda p: 0.0)["rank_1_suffices_for_qv_and_not_for_q"]
    assert [each.n for each in found.findings] == [5, 5, 0, 0] and found.word == "undecided"
    last = found.findings[3]
    assert (last.label, last.reason) == ("LoRA (q, r8) - LoRA (q, r1)", "no runs of LoRA (q, r8) are planned here")


def test_gpt3_s_ratio_is_that_of_counts_by_hand():
    """r = 4 on two matrices of 96 layers of width 12,288: 18.9M. Brown et al. 2020 state 175B for the whole model."""
    (finding,) = judged({}, lambda p: 0.0)["ten_thousand_times_fewer_on_gpt3"].findings
    assert gpt3_count("lora-qv-r4") == 96 * 2 * 4 * (12288 + 12288) == 18_874_368
    assert round(gpt3_count("full") / 1e9) == 175
    assert (finding.n, finding.holds) == (None, True) and 9_200 < finding.mean < 9_300
    with pytest.raises(ValueError, match="neither full nor LoRA"):
        gpt3_count("houlsby-m8")


def test_the_ratio_of_rates_is_that_of_the_best_of_each_grid_and_is_not_judged():
    """A grid's best has no interval. The same method with another dropout has rates of its own, which do not count."""
    tried = [
        {"run_id": f"{slug}.{rate}.{dropout}", "slug": slug, "method": slug.partition("-")[0]}
        | {"task": "stsb", "seed": 0}
        | {"train.lr": str(rate), "train.dropout": dropout, "lr": rate, "best": best}
        for slug, dropout, values in (
            ("full", "null", {1e-5: 0.7, 1e-4: 0.8, 1e-3: 0.0}),
            ("lora-qv-r8", "null", {1e-4: 0.7, 6e-4: 0.81, 1e-3: 0.8}),
            ("lora-qv-r8", "0.2", {1e-6: 0.9, 1e-5: 0.8}),
        )
        for rate, best in values.items()
    ]
    records = pd.DataFrame([{**dict.fromkeys(FRAME_COLUMNS), **one} for one in tried], columns=FRAME_COLUMNS)
    found = judge(read_claims(), *scored({}, None)[:2], runs_of(tried, records), Path("none"), Analyses())
    (one,) = [each for each in found if each.claim.count == "rate"]
    assert (one.word, one.reason) == ("undecided", "the best of a coarse grid of rates has no interval")
    assert one.findings[0].mean == pytest.approx(6)
    assert one.findings[0].records == ["lora-qv-r8.0.0006.null", "full.0.0001.null"]


def test_the_encoder_s_ratio_is_that_of_its_records():
    planned = {"glue_table2": [*plan_of(), *plan_of(slug="full", method="full")]}
    found = judged(planned, lambda p: 0.0)["a_hundred_times_fewer_here"]
    assert found.word == "supported" and found.findings[0].mean == pytest.approx(22_565_376 / 73_728)
    assert found.about == "minilm"
    assert "a_hundred_times_fewer_here" not in judged({}, lambda p: 0.0)


def write_measurements(folder: Path, times: dict, rounds: int = 20, **counts) -> dict:
    """Write a summary and the samples of rounds whose speed varies, and judge all claims on them.

    Args:
        times: (kind, method) -> shape -> ms, or ms per round, in a round of usual speed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"saved_activation_bytes": {"16x28": 0.3}, "optimizer_bytes": 0.0098, "checkpoint_bytes": 0.0098}
    about = {"started_at": "2026-11-27T00:00:00+00:00", "schema": 1}
    (folder / "summary.json").write_text(json.dumps({"about": about, "lora": {"to_full": usual | counts}}))
    rows = [
        (kind, method, shape, i, (1 + 10 * (i % 3)) * np.broadcast_to(ms, rounds)[i])
        for (kind, method), by_shape in times.items()
        for shape, ms in by_shape.items()
        for i in range(rounds)
    ]
    pd.DataFrame(rows, columns=["kind", "method", "shape", "round", "ms"]).to_csv(folder / "samples.csv", index=False)
    efficiency = next(path for path in folder.parents if path.name == "efficiency")
    return {
        (each.claim.id, each.about): each for each in judge(read_claims(), *scored({}, None), efficiency, Analyses())
    }


STEP = {("step", "lora"): {"16x28": 0.41}, ("step", "full"): {"16x28": 1 + 0.001 * np.arange(20)}}


def test_costs_are_judged_by_counts_and_by_the_ratios_of_each_round(tmp_path):
    folder = tmp_path / "efficiency" / "cpu"
    times = {("latency", "base"): {"1x128": 1.0}, ("latency", "houlsby"): {"1x128": 2.0}}
    times[("latency", "lora")] = {"1x128": 2.0 * (1 + 0.0005 * np.arange(20))}
    times[("latency", "lora_merged")] = {"1x128": [0.99, 1.03] * 10}
    found = write_measurements(folder, STEP | times)
    words = {claim: each.word for (claim, about), each in found.items() if about == "cpu"}
    assert words["less_time_to_train"] == words["less_memory_to_train"] == words["far_less_to_store"] == "supported"
    assert words["adapters_add_latency"] == words["unmerged_adds_latency_as_adapters_do"] == "supported"
    assert words["merged_adds_no_latency"] == "undecided"  # 1.03 is more than 2%
    _, to_houlsby = found["unmerged_adds_latency_as_adapters_do", "cpu"].findings
    assert to_houlsby.mean == pytest.approx(1 + 0.0005 * 9.5) and 1 < to_houlsby.low < to_houlsby.high < 1.01
    (exact,) = found["small_optimizer_state", "cpu"].findings
    assert (exact.n, exact.low, exact.high) == (None, 0.0098, 0.0098)
    again = write_measurements(folder / "other-stock", STEP)
    assert {about for claim, about in again if claim == "less_time_to_train"} == {"cpu", "cpu/other-stock"}


def test_three_rounds_of_a_time_decide_nothing(tmp_path):
    """Six values are the fewest whose range is a 95% interval of a median."""
    found = write_measurements(tmp_path / "efficiency" / "cpu", STEP | {("step", "full"): {"16x28": 1.0}}, rounds=3)
    few = found["less_time_to_train", "cpu"]
    assert (few.word, few.reason) == ("undecided", "3 rounds: an interval of their median needs more")
    assert found["far_less_to_store", "cpu"].word == "supported"  # counted, not timed


@pytest.mark.parametrize(("slower", "word"), [(20, "contradicted"), (15, "undecided")])
def test_a_ratio_of_times_breaks_its_bound_by_the_sign_test(tmp_path, slower, word):
    """15 of 20 rounds above 1 give p = 0.021, which is not enough for one of two shapes."""
    assert (stats.binomtest(slower, 20, alternative="greater").pvalue <= 0.025 / 2) == (word == "contradicted")
    ratios = {"16x28": [1.05] * slower + [0.99] * (20 - slower), "32x64": [0.9] * 20}
    times = {("step", "lora"): ratios, ("step", "full"): dict.fromkeys(ratios, 1.0)}
    assert write_measurements(tmp_path / "efficiency" / "cpu", times)["less_time_to_train", "cpu"].word == word


def test_a_broken_summary_is_named(tmp_path):
    (tmp_path / "efficiency" / "cpu").mkdir(parents=True)
    (tmp_path / "efficiency" / "cpu" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json"):
        judge(read_claims(), *scored({}, None), tmp_path / "efficiency", Analyses())


@pytest.mark.parametrize(("failures", "word"), [(0, "supported"), (1, "contradicted")])
def test_an_exact_claim_is_refuted_by_one_failure(tmp_path, failures, word):
    cases = ({"label": "fp32", "trials": 1000, "failures": failures, "runs": ["a"]},)
    found = judge(read_claims(), *scored({}, None), tmp_path / "efficiency", Analyses(checks={"swap": cases}))
    (verdict,) = [each for each in found if each.claim.check]
    assert (verdict.word, verdict.about) == (word, "swap")
    (kept,) = verdict.findings
    assert (kept.label, kept.mean, kept.n, kept.records, kept.unit) == ("fp32", failures, 1000, ["a"], "failures")
