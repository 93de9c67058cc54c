"""Which layers to adapt: the arms of `layers` and `head_rate` by the unselected score, which judges their claims."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lora.records.analysis import Compared, compared
from lora.report.figures import Figure, beside, figure, series_of
from lora.report.runs import in_order, slug_label, task_labels
from lora.report.stats import LEVEL, Interval, mean_interval, paired_differences
from lora.report.tables import number, trainable_text

BASE = "lora-qv-r8"  # what the others are compared with
SCORE = "split_half"  # records of these experiments have it, so it is their unselected score
SCORES = {"Unselected": SCORE, "Best epoch": "best", "Last epoch": "last"}
HEADS = (5e-4, 2e-3)  # rates of the head: LoRA's, and that of Houlsby adapters


def from_base(runs: pd.DataFrame) -> Iterator[tuple[str, str, tuple[tuple[str, str], ...], Interval]]:
    """(task, label, pairs of run_ids, difference) of every arm minus LoRA on Wq and Wv, by the unselected score."""
    for task in in_order(runs):
        of_task = runs[runs["task"] == task]
        base = of_task[of_task["slug"] == BASE]
        for label, arm in of_task[of_task["slug"] != BASE].groupby("label", sort=False):
            pairs = paired_differences(arm, base, SCORE)
            ids = tuple(zip(pairs["run_id"], pairs["run_id_other"], strict=True))
            yield task, str(label), ids, mean_interval(pairs["difference"].to_numpy(float))


def layers_table(runs: pd.DataFrame, examples: Mapping[Compared, Mapping[str, Any]]) -> pd.DataFrame:
    """One line per task and arm: its rate, every score, the dev loss, and the difference from LoRA on Wq and Wv."""
    minus = {(task, label): (ids, found) for task, label, ids, found in from_base(runs)}
    lines = []
    for task, title in task_labels(runs).items():
        for label, arm in runs[runs["task"] == task].groupby("label", sort=False):
            ids, difference = minus.get((task, label), ((), Interval(np.nan, np.nan, np.nan, 0)))
            rows = examples.get(compared(ids, "unselected"), {})
            line = {"Task": title, "Method": label, "Trainable": trainable_text(arm)}
            line |= {"Learning rate": " and ".join(f"{rate:g}" for rate in sorted(arm["lr"].dropna().unique())) or "-"}
            line |= scores(arm)
            for heading, loss in (("Dev loss, last", "last_loss"), ("Dev loss, lowest", "lowest_loss")):
                line[heading] = number(arm[loss].astype(float).mean(), ".3f")
            ends = [rows.get(f"both_{end}") for end in ("low", "high")]
            both = "-" if None in ends else f"{ends[0]:+.1f} to {ends[1]:+.1f}"
            lines.append(line | {"Unselected, minus q, v": difference.text, "Seeds and rows": both})
    return pd.DataFrame(lines)


def layers_figure(runs: pd.DataFrame, examples: Mapping[Compared, Mapping[str, Any]]) -> Figure | None:
    """Each arm minus LoRA on Wq and Wv, task by task, with the interval over seeds and that for other rows too."""
    found = [one for one in from_base(runs) if one[3].n]
    names, tasks = list(dict.fromkeys(label for _, label, _, _ in found)), list(dict.fromkeys(one[0] for one in found))
    series, labels = [], task_labels(runs)
    for place, task in enumerate(tasks):
        narrow, wide = [], []
        for _, label, ids, each in (one for one in found if one[0] == task):
            at = names.index(label) + beside(place, len(tasks))
            narrow.append((at, each.mean, each.low, each.high))
            rows = examples.get(compared(ids, "unselected"))
            wide += [] if rows is None else [(at + 0.06, each.mean, rows["both_low"], rows["both_high"])]
        series.append(series_of(f"{labels[task]}, over seeds", narrow))
        series += [series_of(f"{labels[task]}, over seeds and rows", wide)] if wide else []
    panels = [{"title": "", "names": names, "bounds": [], "series": series}] if names else []
    note = (
        f"Mean paired differences of the unselected score, with {LEVEL:.0%} intervals. Right of 0, the arm is higher."
    )
    return figure("Each arm minus LoRA on Wq and Wv", note, "intervals", "points", panels)


def scores(arm: pd.DataFrame) -> dict[str, str]:
    """The number of an arm's runs, and the mean of each score."""
    means = {title: 100 * arm[score].astype(float).mean() for title, score in SCORES.items()}
    return {"Seeds": f"{arm['best'].count()}"} | {title: number(mean) for title, mean in means.items()}


def head_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per method and rate of its head."""
    arms = with_head(runs).groupby(["slug", "method", "head"], sort=False)
    return pd.DataFrame(
        [{"Method": slug_label(slug), "Head's rate": f"{head:g}"} | scores(arm) for (slug, _, head), arm in arms]
    )


def head_rule(runs: pd.DataFrame) -> str:
    """What the plan's rule says (experiments/plans/layers.md, part 0): does the head explain Houlsby adapters' lead?"""
    runs, (own, faster) = with_head(runs), HEADS
    lead, gain = change(runs, ("houlsby", own), ("lora", own)), change(runs, ("lora", faster), ("lora", own))
    numbers = (
        f"Houlsby adapters - LoRA, both heads at {own:g}: {lead.text}; LoRA, head at {faster:g} - {own:g}: {gain.text}"
    )
    if lead.low > 0:
        return f"The head's rate does not explain the lead of Houlsby adapters. {numbers}."
    if lead.low <= 0 <= lead.high and (gain.low > 0 or gain.high < 0):
        return f"The head's rate explains the lead of Houlsby adapters in part. {numbers}."
    return f"Whether the head's rate explains the lead of Houlsby adapters is undecided. {numbers}."


def with_head(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(head=runs["columns"].map(lambda columns: float(columns["train.head_lr"])))


def change(runs: pd.DataFrame, one: tuple[str, float], other: tuple[str, float]) -> Interval:
    """The difference of two arms, each a method and its head's rate."""
    first, second = (runs[runs["method"].eq(method) & runs["head"].eq(rate)] for method, rate in (one, other))
    return mean_interval(paired_differences(first, second, SCORE)["difference"].to_numpy(float))
