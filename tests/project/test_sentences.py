"""What pages and figures say of the committed runs, counted again from the records with SciPy, not by lora.report."""

import json
import re
from datetime import date

import numpy as np
import pandas as pd
import pytest
from committed import committed
from scipy import stats

from lora.files import ROOT
from lora.records.record import load_curves, load_frame, load_records

PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md")))}
REFERENCES = ("base", "decide", "long", "mini", "small")
AVERAGED = ("cola", "mrpc", "stsb")
SLUGS = {"Full fine-tuning": "full", "Houlsby adapters (m8)": "houlsby-m8"}
SLUGS |= {"LoRA (qv, r8)": "lora-qv-r8", "LoRA (qkvo, r4)": "lora-qkvo-r4"}


class Runs:
    """The records of a reference, and the scores of a cell by seed, in points."""

    def __init__(self, name: str):
        self.records = [one for one in load_records(ROOT / "results" / "reference" / name)[0] if one.status == "ok"]
        at = [one.config["method"].get("alpha_at_rank") for one in self.records]
        loss = [one.epochs[-1]["train_loss"] for one in self.records]
        self.frame = load_frame(self.records).assign(alpha_at=at, loss=loss)
        self.curves = load_curves(self.records).pivot(index="epoch", columns="run_id", values="value")

    def scores(self, slug: str, task: str, score: str = "best", start: str = "pretrained") -> pd.Series:
        runs = self.frame[(self.frame["seed"] > 5) & (self.frame["epochs"] == (5 if task == "rte" else 10))]
        runs = runs[runs["alpha_at"].isna() & runs["slug"].eq(slug) & runs["task"].eq(task) & runs["start"].eq(start)]
        runs = runs.drop_duplicates("seed").set_index("seed").sort_index()
        if score == "others":  # at the epoch that is best by the other seeds
            values = self.curves[runs["run_id"]]
            runs["others"] = [values.at[values.drop(columns=run).mean(axis=1).idxmax(), run] for run in runs["run_id"]]
        return 100 * runs[score].astype(float)

    def minus(self, one: str, other: str, task: str, score: str = "best") -> pd.Series:
        return (self.scores(one, task, score) - self.scores(other, task, score)).dropna()


@pytest.fixture(scope="module")
def long() -> Runs:
    return Runs("long")


@pytest.fixture(scope="module")
def decide() -> Runs:
    return Runs("decide")


def page(name: str) -> str:
    """A page's text on one line, so that a sentence can be searched for across line ends."""
    return " ".join(PAGES[ROOT / name].split())


def interval(values: pd.Series) -> str:
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{values.mean():.1f} ({low:+.1f} to {high:+.1f})"


def ends(values: pd.Series) -> list[float]:
    return [values.mean(), *stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))]


def panels(figure: str) -> list[dict]:
    return json.loads((ROOT / "results/reference/long/figures" / f"{figure}.json").read_text())["panels"]


@pytest.mark.parametrize(("figure", "base"), [("targets", "lora-qv-r4"), ("ranks", "lora-{}-r64")])
def test_every_difference_of_tables_5_and_6_has_scipys_interval_of_its_seeds(long, figure, base):
    """`base`: the set and rank that the others are compared with; {} for a row's own set."""
    (panel,) = panels(figure)
    ours = panel["series"][0]
    assert len(panel["names"]) == len(ours["y"]) >= 6
    for name, *shown in zip(panel["names"], ours["y"], ours["low"], ours["high"], strict=True):
        letters, rank = re.sub(r"W|, (?!r)", "", name).split(", r = ")
        change = long.minus(f"lora-{letters}-r{rank}", base.format(letters), "cola")
        assert len(change) == 5 and shown == pytest.approx(ends(change), rel=1e-5)


def test_slopes_and_scores_by_parameters_have_scipys_intervals_of_their_seeds(long):
    slopes = [(panel["title"], series) for panel in panels("start") for series in panel["series"]]
    slopes = [(title, series) for title, series in slopes if series["label"] in SLUGS]
    assert len(slopes) == 4
    for title, series in slopes:
        for i, start in enumerate(("pretrained", "mnli")):
            scores = long.scores(SLUGS[series["label"]], title.lower(), start=start)
            assert [series[key][i] for key in ("y", "low", "high")] == pytest.approx(ends(scores), rel=1e-5)
    methods = [series for panel in panels("parameters") for series in panel["series"]]
    assert len(methods) == 4
    for series in methods:
        scores = sum(long.scores(SLUGS[series["label"]], task) for task in AVERAGED) / 3
        assert [series[key][0] for key in ("y", "low", "high")] == pytest.approx(ends(scores), rel=1e-5)


def test_q_v_and_q_k_have_opposite_signs_on_the_two_tasks(long, decide):
    text, sets = page("experiments/lora_targets/README.md"), ("lora-qv-r4", "lora-qk-r4")
    best, others = (long.minus(*sets, "cola", score) for score in ("best", "others"))
    assert f"{interval(best)} by the best epoch and {interval(others)} by the unselected score" in text
    on_stsb = [decide.minus(*sets, "stsb", score) for score in ("best", "last", "split_half")]
    on_cola = [best, long.minus(*sets, "cola", "last"), others]
    p = [stats.ttest_ind(a, b, equal_var=False).pvalue for a, b in zip(on_stsb, on_cola, strict=True)]
    assert [f"{value:.3f}" for value in p] == ["0.100", "0.015", "0.004"]
    assert "(p = .10 by the best epoch, .015 by the last, .004 unselected)" in text
    assert decide.minus(*sets, "stsb").mean() > 0 > best.mean()


def test_decide_shares_seeds_and_tasks_with_long_and_no_configuration(long, decide):
    place = ["task", "seed"]
    on_stsb = decide.frame[decide.frame["task"] == "stsb"]
    of_long = set(map(tuple, long.frame.loc[long.frame["start"] == "pretrained", place].itertuples(index=False)))
    shared = sum(tuple(row) in of_long for row in on_stsb[place].itertuples(index=False))
    assert f"{shared} of its {len(on_stsb)} runs share seed and task" in page("experiments/plans/decide.md")
    assert f"Of the {len(on_stsb)} runs on STS-B, {shared} share seed and task" in page("experiments/VERDICTS.md")
    assert set(decide.frame["run_id"]).isdisjoint(long.frame["run_id"])
    alone = decide.minus("lora-qv-r4", "lora-qk-r4", "stsb").loc[11:13]
    assert len(alone) == 3 and f"by {interval(alone).replace('+', '')}" in page("experiments/plans/decide.md")


def test_houlsby_adapters_are_above_lora_narrowly_and_on_mrpc_clearly(long):
    best, last, others = (
        sum(long.minus("houlsby-m8", "lora-qv-r8", task, score) for task in AVERAGED) / 3
        for score in ("best", "last", "others")
    )
    p, *dropped = (
        stats.ttest_1samp(values, 0, alternative="greater").pvalue
        for values in (best, *(best.drop(seed) for seed in best.index))
    )
    for name in ("experiments/README.md", "experiments/glue_table2/README.md"):
        assert f"p = {p:.4f}".replace("0.", ".") in page(name) and p < 0.0125
    assert sum(one > 0.0125 for one in dropped) == 4 and "any one of four" in page("experiments/README.md")
    text = page("experiments/glue_table2/README.md")
    assert f"By the last epoch ({last.mean():+.1f}) and the unselected score ({others.mean():+.1f})" in text
    on_mrpc = long.minus("houlsby-m8", "lora-qv-r8", "mrpc")
    assert f"On MRPC alone it is clear ({on_mrpc.mean():+.1f}" in page("experiments/README.md")


def test_lora_is_below_full_fine_tuning_on_each_task_by_the_best_epoch(long):
    for slug in ("lora-qv-r8", "lora-qkvo-r4"):
        assert all(long.minus(slug, "full", task).mean() < 0 for task in AVERAGED)
    level = long.minus("lora-qv-r8", "full", "stsb", "others").mean()
    average = sum(long.minus("lora-qv-r8", "full", task, "others") for task in AVERAGED) / 3
    assert f"({level:+.1f}), and the average is {interval(average)}" in page("experiments/README.md")


def test_mnli_and_rte_without_the_start(long):
    mnli = long.frame[long.frame["task"] == "mnli"].set_index("slug")["best"] * 100
    assert len(mnli) == 3
    full, houlsby, lora = (f"{mnli[slug]:.1f}" for slug in ("full", "houlsby-m8", "lora-qv-r8"))
    for name in ("experiments/README.md", "experiments/glue_table2/README.md"):
        assert f"full fine-tuning {full}, Houlsby adapters {houlsby}, LoRA {lora}" in page(name)
    assert f"score {full} (full fine-tuning), {houlsby} (Houlsby adapters) and {lora}" in page(
        "experiments/mnli_start/README.md"
    )
    rte = long.scores("lora-qv-r8", "rte")
    low, high = stats.ttest_1samp(rte, 0).confidence_interval(0.95)
    assert f"end at {rte.mean():.1f} ({low:.1f} to {high:.1f})" in page("experiments/mnli_start/README.md")
    assert f"LoRA without the start scores {rte.mean():.1f}" in page("experiments/README.md")


def test_ranks_4_and_8_are_below_rank_64_after_holm(decide):
    found = []
    for score in ("best", "split_half"):
        p = [stats.ttest_1samp(decide.minus(f"lora-qv-r{r}", "lora-qv-r64", "cola", score), 0).pvalue for r in (4, 8)]
        found.append(f"{max(2 * min(p), max(p)):.3f}".removeprefix("0"))
    assert f"p is {found[0]} by the best epoch and {found[1]} by" in page("experiments/lora_ranks/README.md")


def test_the_successors_on_sts_b_and_mrpc(long):
    text = page("experiments/successors/README.md")
    slugs = ["full", "houlsby-m8", "lora-qv-r8-dora", "lora-qv-r8-pissa", "lora-qv-r8-plus"]
    slugs += ["peft-ia3-kvf", "peft-miss-qv-r16", "peft-vera-qv-r256"]
    left = {}
    for task in ("stsb", "mrpc"):
        p = sorted((stats.ttest_1samp(long.minus(slug, "lora-qv-r8", task), 0).pvalue, slug) for slug in slugs)
        steps = np.maximum.accumulate([value * (len(p) - place) for place, (value, _) in enumerate(p)])
        left[task] = {slug for (_, slug), corrected in zip(p, steps, strict=True) if corrected <= 0.05}
    assert left == {"stsb": set(), "mrpc": {"houlsby-m8", "peft-ia3-kvf"}}
    assert "no method differs from LoRA on STS-B, and only Houlsby adapters and (IA)^3 do on MRPC" in text
    tried = long.frame[long.frame["seed"].isin([0, 5]) & long.frame["task"].eq("stsb")].groupby("slug")["lr"].nunique()
    threes = {"full", "houlsby-m8", "lora-qv-r8", "lora-qkvo-r4", "lora-qv-r8-dora", "lora-qv-r8-pissa"}
    fours = {"lora-qv-r8-plus", "peft-miss-qv-r16", "peft-ia3-kvf"}
    assert tried.to_dict() == dict.fromkeys(threes, 3) | dict.fromkeys(fours, 4) | {"peft-vera-qv-r256": 5}
    runs = long.frame.query("task == 'mrpc' and 6 <= seed <= 10 and start == 'pretrained'")
    mean = runs.groupby("slug")["loss"].mean()
    shown = {"(IA)^3": "peft-ia3-kvf", "LoRA": "lora-qv-r8", "PiSSA": "lora-qv-r8-pissa", "MiSS": "peft-miss-qv-r16"}
    assert ", ".join(f"{name} {mean[slug]:.2f}".replace("0.", ".") for name, slug in shown.items()) in text


def test_by_seed_loras_best_rate_on_cola_is_10_and_20_times_full_fine_tunings(long):
    tried = long.frame[long.frame["task"].eq("cola") & long.frame["seed"].isin([0, 5]) & long.frame["epochs"].eq(10)]
    best = tried.loc[tried.groupby(["seed", "slug"])["best"].idxmax()].set_index(["seed", "slug"])["lr"]
    ratios = [round(best[seed, "lora-qv-r8"] / best[seed, "full"]) for seed in (0, 5)]
    assert ratios == [10, 20] and "10 on seed 0 and 20 on seed 5" in page("experiments/learning_rate/README.md")


def test_how_many_records_come_from_uncommitted_changes():
    dirty = {}
    for name in REFERENCES:
        records = load_records(ROOT / "results" / "reference" / name)[0]
        dirty[name] = [one.provenance["code"]["dirty"] for one in records if one.provenance]
    small = dirty.pop("small")
    assert f"Of the {len(small)} records of `small`, {sum(small)} come from" in page("experiments/README.md")
    assert not any(map(any, dirty.values()))


def test_what_a_change_of_the_cpu_moves(long):
    again = Runs("long/repeated")
    both = long.frame.merge(again.frame, on="run_id", suffixes=("", "_2"))
    change = 100 * (both["best_2"] - both["best"])
    best = change.groupby([both["slug"], both["task"]]).mean().abs().max()
    epoch = (100 * (again.curves - long.curves[again.curves.columns])).abs().max().max()
    text = (ROOT / "conf" / "profile" / "long.yaml").read_text()
    assert f"up to {best:.1f} points, one epoch of a run by up to {epoch:.1f}" in text


def test_what_the_dev_rows_alone_leave():
    report, halves = committed("reference/long"), {}
    for one in report.analyses.examples.values():
        (first, other), tasks = one["pairs"][0], one["tasks"]
        if ".lora-qv-r8." in first and ".full." in other and len(tasks) == 1:
            halves[tasks[0]] = f"±{(one['examples_high'] - one['examples_low']) / 2:.1f}"
    text = f"{halves['cola']} points on CoLA, {halves['mrpc']} on MRPC and {halves['stsb']} on STS-B"
    assert text in page("experiments/README.md")


def test_every_commit_on_a_page_is_an_ancestor(git):
    commit = re.compile(r"(?<![-\w])(?=\w*\d)(?=\w*[a-f])[0-9a-f]{8}(?!\w)")
    named = {word for text in PAGES.values() for word in commit.findall(text)}
    assert len(named) > 8 and named <= {one[:8] for one in git("rev-list", "HEAD").split()}
    assert not [path for path, text in PAGES.items() if re.search(r"\btag `", text)]


def test_the_dates_of_the_runs():
    started = [
        one.started_at[:10] for name in REFERENCES for one in load_records(ROOT / "results" / "reference" / name)[0]
    ]
    first, last = (date.fromisoformat(day) for day in (min(started), max(started)))
    assert f"All runs date from {first.day} {first:%B} to {last.day} {last:%B %Y}" in page("README.md")


def test_each_page_answers_first_with_intervals_that_a_table_shows():
    """Those of the README's findings, or of the page's own generated tables."""
    findings = [line for line in PAGES[ROOT / "README.md"].splitlines() if line.startswith("|")]
    answers = {path: text.split("\n\n")[1] for path, text in PAGES.items() if "**Answer.**" in text}
    assert len(answers) == 10
    for path, answer in answers.items():
        tables = "".join([*findings, *(line for line in PAGES[path].splitlines() if line.startswith("|"))])
        assert answer.startswith("**Answer.** ") and answer.count("\n") < 8, path
        stated = re.findall(r"[+-]\d+\.\d%? \(([^)]+ to [^)]+)\)", " ".join(answer.split()))
        assert [one for one in stated if f"({one})" not in tables and f"| {one} |" not in tables] == [], path
