"""LoRA's successors beside LoRA. The truth is SciPy's interval over pairs of seeds, and the cells that papers print."""

import pandas as pd
import pytest
from scipy import stats
from synthetic import populate

from lora.config.compose import compose_run
from lora.files import ROOT
from lora.report.build import build_report
from lora.report.claims.headlines import read_findings

GIVEN = ["experiment=successors"]
LORA = {6: 86.0, 7: 86.2, 8: 85.9, 9: 86.1, 10: 86.3}
ABOVE = {  # slug -> points above LoRA, by seed
    "full": (0.6, 0.5, 0.7, 0.4, 0.8),
    "lora-qv-r8-pissa": (-0.3, 0.1, 0.2, -0.1, 0.0),
    "lora-qv-r8-dora": (0.3, 0.4, 0.2, 0.3, 0.5),
    "peft-vera-qv-r256": (-2.1, -1.9, -2.4, -1.6, -2.2),
    "peft-miss-qv-r16": (-0.1, 0.0, 0.1, 0.2, 0.0),
    "peft-ia3-kvf": (-0.7, -0.4, -0.6, -0.5, -0.9),
    "lora-qv-r8-plus": (0.2, 0.1, 0.4, 0.3, 0.2),
}


def value(run):
    return (LORA[run.seed] + ABOVE.get(run.slug, (0.0,) * 5)[run.seed - 6]) / 100


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    populate(results / "long", "long", GIVEN, value=value)
    return build_report("long", GIVEN, results)


def test_each_method_has_its_rate_and_its_difference_from_lora(report):
    (table,) = [table for table in report.tables if table.name == "successors"]
    cells = table.cells.set_index("Method")
    assert list(cells.index) == [
        "Full fine-tuning", "Houlsby adapters (m8)", "LoRA (qv, r8)", "DoRA (qv, r8)", "PiSSA (qv, r8)",
        "LoRA+ (qv, r8)", "(IA)^3 (kvf)", "MiSS (qv, r16)", "VeRA (qv, r256)",
    ]  # fmt: skip
    for label, key in (("DoRA (qv, r8)", "lora-qv-r8-dora"), ("LoRA+ (qv, r8)", "lora-qv-r8-plus")):
        low, high = stats.ttest_1samp(ABOVE[key], 0).confidence_interval(0.95)
        text = f"{sum(ABOVE[key]) / 5:+.1f} ({low:+.1f} to {high:+.1f})"
        assert cells.loc[label, "STS-B, minus LoRA"] == cells.loc[label, "MRPC, minus LoRA"] == text
    assert cells.loc["LoRA (qv, r8)", "STS-B, minus LoRA"] == "-"
    for method in ("dora", "lora_plus", "vera"):
        rate = compose_run(["profile=long", "protocol=long", "task=stsb", f"method={method}"]).train.lr
        assert f"{rate:g}" in set(cells["Learning rate"])
    dora = [88.71 - 88.58, 91.79 - 91.68, 91.60 - 91.60, 91.80 - 91.60]  # CorDA, PiSSA, PSOFT, SVFT
    assert cells.loc["DoRA (qv, r8)", "STS-B, in papers"] == f"{min(dora):+.1f} to {max(dora):+.1f} (4)"
    assert cells.loc["MiSS (qv, r16)", ["STS-B, in papers", "MRPC, in papers"]].tolist() == ["-", "+0.2 (1)"]
    (panel,) = table.figures["successors"]["panels"]
    for series in panel["series"]:
        drawn = {
            panel["names"][round(x)].partition(":")[0]: f"{y:+.1f}"
            for x, y in zip(series["x"], series["y"], strict=True)
        }
        task = series["label"].partition(" ")[0]
        assert drawn == cells[f"{task}, minus LoRA"].str.partition(" ")[0].drop("LoRA (qv, r8)").to_dict()


def test_claims_are_judged_on_sts_b(report):
    words = {each.claim.id: each.word for each in report.verdicts}
    assert words == {
        "dora_better_than_lora": "supported",
        "pissa_better_than_lora": "undecided",
        "lora_plus_better_than_lora": "supported",
        "vera_comparable_with_a_tenth": "contradicted",
        "no_successor_is_a_point_better": "supported",
        "ten_thousand_times_fewer_on_gpt3": "supported",
        "a_hundred_times_fewer_here": "supported",
    }
    (plus,) = [each for each in report.verdicts if each.claim.id == "lora_plus_better_than_lora"]
    assert plus.findings[0].label == "LoRA+ (qv, r8) - LoRA (qv, r8), STS-B"
    assert plus.findings[0].mean == pytest.approx(0.24)


def test_what_papers_print_is_in_the_list_of_published_cells():
    printed = pd.read_csv(ROOT / "experiments" / "successors" / "paper.csv", dtype=str, keep_default_na=False)
    published = pd.read_csv(ROOT / "experiments" / "published" / "published.csv", dtype=str, keep_default_na=False)
    names = {"source": "paper", "model": "base_model", "row": "method"}
    rows = printed.drop(columns="method").rename(columns=names)
    assert len(rows) == len(rows.merge(published, on=list(rows.columns))) > 50
    assert printed.groupby(["source", "model", "task"])["method"].apply(lambda found: "LoRA" in set(found)).all()
    sts_b = printed[printed["task"] == "STS-B"].assign(value=printed["value"].astype(float))
    lora = sts_b[sts_b["method"] == "LoRA"].set_index(["source", "model"])["value"]
    others = sts_b[sts_b["method"] != "LoRA"].set_index(["source", "model"])["value"]
    gaps = others - lora.reindex(others.index)
    (line,) = [line for line in read_findings() if line["claim"] == "no_successor_is_a_point_better"]
    papers = gaps.index.get_level_values("source").nunique()
    assert line["paper"]["word"] == f"{gaps.min():+.1f} to {gaps.max():+.1f} ({papers} later papers)"


def test_runs_at_rates_of_their_own_are_set_beside_the_reference(tmp_path):
    given = [*GIVEN, "task=stsb", "seed=6,7", "method=lora,dora"]
    for folder in ("long", "reference/long"):
        populate(tmp_path / folder, "long", given, value=value)
    (table,) = [table for table in build_report("long", (), tmp_path).tables if table.name == "reference"]
    assert table.cells[["Method", "Seeds", "Change"]].values.tolist() == [
        ["LoRA (qv, r8)", "2", "+0.0"],
        ["DoRA (qv, r8)", "2", "+0.0"],
    ]
