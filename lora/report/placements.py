"""Which layers to adapt: the arms of `layers` and `head_rate` by the unselected score, which judges their claims."""

import pandas as pd

from lora.records.analysis import Analyses
from lora.report.comparisons import minus
from lora.report.figures import Figure, by_task, figure, on_lines
from lora.report.runs import method_label, task_labels
from lora.report.stats import LEVEL, Interval, ends, interval_of, mean_interval, paired_differences
from lora.report.tables import rates_text, trainable_cell
from lora.table import Cell, number

BASE_SLUG = "lora-qv-r8"  # what the others are compared with
SCORE = "split_half"  # records of these experiments have it, so it is their unselected score
ARM_SCORES = {"Unselected": SCORE, "Best epoch": "best", "Last epoch": "last"}
HEADS = ("0.0005", "0.002")  # rates of the head: LoRA's, and that of Houlsby adapters


def from_base(runs: pd.DataFrame, analyses: Analyses) -> pd.DataFrame:
    """Every arm minus LoRA on Wq and Wv, by the unselected score: rows of `lora.report.stats.all_pairs`, with the ends
    rows_low and rows_high of the interval for other dev rows."""
    pairs = minus(runs, method_label(BASE_SLUG), SCORE)
    wider = [analyses.over_rows(ids, "unselected") for ids in pairs["runs"]]
    return pairs.assign(rows_low=[low for low, _ in wider], rows_high=[high for _, high in wider])


def layers_table(runs: pd.DataFrame, analyses: Analyses) -> pd.DataFrame:
    """One line per task and arm: its rate, every score, the dev loss, and the difference from LoRA on Wq and Wv."""
    differences = {
        (row.task, row.one): (interval_of(row).shown, ends(row.rows_low, row.rows_high))
        for row in from_base(runs, analyses).itertuples()
    }
    lines = []
    for task, title in task_labels(runs).items():
        for label, arm in runs[runs["task"] == task].groupby("label", sort=False):
            line = {"Task": title, "Method": label, "Trainable": trainable_cell(arm)}
            edge = " (edge)" if arm["edge"].any() else ""
            line |= {"Learning rate": f"{rates_text(arm)}{edge}"} | mean_scores(arm)
            for heading, loss in (("Dev loss, last", "last_loss"), ("Dev loss, lowest", "lowest_loss")):
                line[heading] = number(arm[loss].astype(float).mean(), ".3f")
            difference, both = differences.get((task, label), ("-", "-"))
            lines.append(line | {"Unselected, minus q, v": difference, "Seeds and rows": both})
    return pd.DataFrame(lines)


def layers_figure(runs: pd.DataFrame, analyses: Analyses) -> Figure | None:
    """Each arm minus LoRA on Wq and Wv, task by task, with the interval over seeds and that for other rows too."""
    pairs, groups = from_base(runs, analyses), {}
    for task, of_task in by_task(pairs).items():
        groups[f"{task}, over seeds"] = of_task
        wider = of_task.assign(low=of_task["rows_low"], high=of_task["rows_high"]).dropna(subset="low")
        groups |= {f"{task}, over seeds and rows": wider} if len(wider) else {}
    names = list(dict.fromkeys(pairs["one"]))
    series = on_lines(groups, "one", names)
    panels = [{"title": "", "names": names, "bounds": [], "series": series}] if names else []
    note = (
        f"Mean paired differences of the unselected score, with {LEVEL:.0%} intervals. Right of 0, the arm is higher."
    )
    return figure("Each arm minus LoRA on Wq and Wv", note, "intervals", "points", panels)


def mean_scores(arm: pd.DataFrame) -> dict[str, Cell]:
    """The number of an arm's runs, and the mean of each score."""
    means = {title: 100 * arm[score].astype(float).mean() for title, score in ARM_SCORES.items()}
    return {"Seeds": int(arm["best"].count())} | {title: number(mean) for title, mean in means.items()}


def head_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per method and rate of its head."""
    lines = []
    for (slug, head), arm in runs.groupby(["slug", "train.head_lr"], sort=False):
        lines.append({"Method": method_label(slug), "Head's rate": head} | mean_scores(arm))
    return pd.DataFrame(lines)


def head_rule(runs: pd.DataFrame) -> str:
    """What the plan's rule says (experiments/plans/layers.md, part 0): does the head explain Houlsby adapters' lead?"""
    own, faster = HEADS
    lead, gain = change(runs, ("houlsby", own), ("lora", own)), change(runs, ("lora", faster), ("lora", own))
    numbers = f"Houlsby adapters - LoRA, both heads at {own}: {lead.shown}"
    numbers += f"; LoRA, head at {faster} - {own}: {gain.shown}"
    if lead.low > 0:
        return f"The head's rate does not explain the lead of Houlsby adapters. {numbers}."
    if lead.low <= 0 <= lead.high and (gain.low > 0 or gain.high < 0):
        return f"The head's rate explains the lead of Houlsby adapters in part. {numbers}."
    return f"Whether the head's rate explains the lead of Houlsby adapters is undecided. {numbers}."


def change(runs: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]) -> Interval:
    """The difference of two arms, each a method and its head's rate."""
    first, second = (runs[runs["method"].eq(name) & runs["train.head_lr"].eq(rate)] for name, rate in (one, other))
    return mean_interval(paired_differences(first, second, SCORE)["difference"].to_numpy(float))
