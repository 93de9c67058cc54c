"""The table of gaps between methods on experiments/README.md, against SciPy's intervals of the committed records."""

import pandas as pd
import pytest
from scipy import stats

from lora.files import RESULTS, ROOT
from lora.records.record import load_frame, load_records

PAGE = ROOT / "experiments" / "README.md"
TASKS = {"CoLA": ["cola"], "MRPC": ["mrpc"], "STS-B": ["stsb"], "Avg.": ["cola", "mrpc", "stsb"]}
SLUGS = {"LoRA": "lora-qv-r8", "full": "full", "Houlsby": "houlsby-m8"}
TUNED = {"lora-qv-r8": 5e-4, "full": 5e-5, "houlsby-m8": 2e-3}
NEXT = {"lora-qv-r8": 1e-3, "full": 2e-5, "houlsby-m8": 1e-3}
LONG = {"profile": "long", "epochs": (10,)}
CONDITIONS = {  # the words of a condition -> what its runs have, where it is not `LONG`
    "3 epochs of 2,000 to 4,000 rows, best of three rates": {"profile": "small", "epochs": (3,)},
    "20": {"epochs": (20,)},
    "each method's best on CoLA and STS-B": {"rates": TUNED},
    "the other of its best two on CoLA": {"rates": NEXT},
    "q,k,v,o at r = 4": {"lora": "lora-qkvo-r4"},
    "r = 64": {"lora": "lora-qv-r64"},
    "r = 64, `alpha_at_rank=8`": {"lora": "lora-qv-r64", "alpha": 8},
    "MNLI": {"start": "mnli"},
    "MPNet-base, 5 epochs": {"profile": "base", "epochs": (5,)},
}


@pytest.fixture(scope="module")
def records():
    frames = {}
    for name in ("small", "long", "base"):
        found, _ = load_records(RESULTS / "reference" / name)
        alphas = {r.run_id: r.config["method"].get("alpha_at_rank") for r in found}
        frame = load_frame(found)
        frames[name] = frame.assign(alpha=frame["run_id"].map(alphas).fillna(0))
    return frames


def scores(records, words: str, method: str, tasks: list[str]) -> pd.Series:
    """Seed -> the mean over tasks in points, of the seeds that have every task."""
    kind = LONG | CONDITIONS.get(words, {})
    slug, runs = SLUGS[method], records[kind["profile"]]
    rates = kind.get("rates")
    in_tables = runs["seed"].isin([0, 5]) if rates else runs["seed"].gt(5 if kind["profile"] == "long" else 0)
    runs = runs[in_tables & runs["start"].eq(kind.get("start", "pretrained")) & runs["epochs"].isin(kind["epochs"])]
    runs = runs[runs["lr"].eq(rates[slug])] if rates else runs
    slug = kind.get("lora", slug) if method == "LoRA" else slug
    runs = runs[runs["slug"].eq(slug) & runs["alpha"].eq(kind.get("alpha", 0) if method == "LoRA" else 0)]
    table = 100 * runs[runs["task"].isin(tasks)].pivot(index="seed", columns="task", values="best")
    return table.reindex(columns=tasks).dropna().mean(axis=1)


def shown(mean, found) -> str:
    low, high = found.confidence_interval(0.95)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def test_every_gap_and_change_has_scipys_interval_of_its_seeds(records):
    lines = PAGE.read_text().partition("| Factor | From |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = pd.DataFrame([[cell.strip() for cell in line.strip("|").split("|")] for line in lines])
    stated = list(range(4))
    rows[stated] = rows[stated].replace("", None).ffill()
    assert len(rows) == 28
    for _, before, after, gap, task, *texts in rows.itertuples(index=False):
        sides, tasks = [], TASKS[task.partition(" (")[0]]
        for words in (before, after):
            one, other = (scores(records, words, method, tasks) for method in gap.split(" - "))
            sides.append((one - other).dropna().round(9))
        common = sides[0].index.intersection(sides[1].index)
        paired = [side[common] for side in sides] if len(common) else sides
        expected = [shown(side.mean(), stats.ttest_1samp(side, 0)) for side in paired]
        change = paired[1].mean() - paired[0].mean()
        if len(common):
            expected += [shown(change, stats.ttest_1samp(paired[1] - paired[0], 0)), f"{len(common)} in pairs"]
        else:
            welch = stats.ttest_ind(paired[1], paired[0], equal_var=False)
            expected += [shown(change, welch), f"{len(sides[0])} and {len(sides[1])}"]
        assert texts == expected, (before, after, gap, task)
