"""What explains the gaps between methods on the encoders trained here: each gap before and after one factor changes.

To add a factor, add an entry to `FACTORS`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from lora.data.tasks import TASKS
from lora.files import REFERENCE
from lora.report.gather import Gathered
from lora.report.notes import note
from lora.report.stats import DIGITS, by_seed, mean_interval, paired_differences, welch_interval
from lora.report.titles import task_label
from lora.table import markdown

SMALL, LONG, BASE = (f"{REFERENCE}/{profile}" for profile in ("small", "long", "base"))
ROWS = {"LoRA": "LoRA (qv, r8)", "full": "Full fine-tuning", "Houlsby": "Houlsby adapters (m8)"}


class Condition(NamedTuple):
    """A condition under which methods are compared.

    Args:
        words: The name of the condition.
        records: The folder below results/.
        rows: Method -> the label of its runs.
        start: Where its runs start.
        tried: Whether the runs are those that chose the learning rates, whose seeds stay out of the tables of results.
    """

    words: str
    records: str = LONG
    rows: Mapping[str, str] = ROWS
    start: str = "pretrained"
    tried: bool = False

    def runs(self, method: str, gathered: Gathered) -> pd.DataFrame:
        runs = gathered.tried if self.tried else gathered.every
        return runs[(runs["label"] == self.rows[method]) & (runs["start"] == self.start)]


class Factor(NamedTuple):
    """What may explain a gap: two conditions that differ in it.

    Args:
        gaps: Pairs of methods; a gap is the first minus the second.
        tasks: Several are averaged too.
    """

    name: str
    before: Condition
    after: Condition
    gaps: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...] = ("cola",)


LORA_FULL = (("LoRA", "full"),)
EVERY = (*LORA_FULL, ("Houlsby", "full"), ("LoRA", "Houlsby"))
TABLE_2 = ("cola", "mrpc", "stsb")
LONGER = {method: f"{label}, epochs=20" for method, label in ROWS.items()}
RATES = {method: f"{label}, lr={'2e-05' if method == 'full' else '0.001'}" for method, label in ROWS.items()}
ROWS_OF_SMALL = "3 epochs of 2,000 to 4,000 rows, best of three rates"
QV = Condition("LoRA on q,v at r = 8")
QKVO, R64, SCALED = (ROWS | {"LoRA": f"LoRA ({row}"} for row in ("qkvo, r4)", "qv, r64)", "qv, r64), alpha_at_rank=8"))
FACTORS = (
    Factor(
        "Epochs, train rows and rates",
        Condition(ROWS_OF_SMALL, SMALL),
        Condition("10 epochs of all rows, best of five rates"),
        EVERY,
        TABLE_2,
    ),
    Factor("Epochs", Condition("10"), Condition("20", rows=LONGER), EVERY),
    Factor(
        "Rates",
        Condition("each method's best on CoLA and STS-B", tried=True),
        Condition("the other of its best two on CoLA", rows=RATES, tried=True),
        EVERY,
    ),
    Factor("Target set", QV, Condition("q,k,v,o at r = 4", rows=QKVO), LORA_FULL, TABLE_2),
    Factor("Rank", QV, Condition("r = 64", rows=R64), LORA_FULL),
    Factor("Rank and alpha", QV, Condition("r = 64, `alpha_at_rank=8`", rows=SCALED), LORA_FULL),
    Factor("Start", Condition("pretrained"), Condition("MNLI", start="mnli"), EVERY, ("mrpc",)),
    Factor("Encoder", Condition("MiniLM, 10 epochs"), Condition("MPNet-base, 5 epochs", BASE), LORA_FULL),
)
RECORDS = tuple(dict.fromkeys(c.records for factor in FACTORS for c in (factor.before, factor.after)))


def gap_table(gathered: Mapping[str, Gathered]) -> str:
    """The table of all factors in Markdown, with its note. A condition or a gap is stated only where it begins.

    Args:
        gathered: The records by name, for each of `RECORDS`.
    """
    tables = []
    for factor in FACTORS:
        table = pd.DataFrame(factor_lines(factor, gathered))
        stated = table[["Factor", "From", "To", "Gap"]]
        tables.append(table.assign(**stated.mask(stated.eq(stated.shift()), "")))
    return f"{markdown(pd.concat(tables), words=5)}\n{note('gap')}"


def factor_lines(factor: Factor, gathered: Mapping[str, Gathered]) -> list[dict[str, str]]:
    """A line per gap and task, and per gap one for the average of several tasks."""
    places: dict[str, tuple[str, ...]] = {task_label(TASKS[task]): (task,) for task in factor.tasks}
    places |= {"Avg.": factor.tasks} if len(factor.tasks) > 1 else {}
    lines = []
    for one, other in factor.gaps:
        before, after = (differences(c, one, other, gathered[c.records]) for c in (factor.before, factor.after))
        line = {"Factor": factor.name, "From": factor.before.words, "To": factor.after.words, "Gap": f"{one} - {other}"}
        lines += [line | {"Task": place} | change_cells(before, after, tasks) for place, tasks in places.items()]
    return lines


def differences(condition: Condition, one: str, other: str, gathered: Gathered) -> pd.DataFrame:
    """`paired_differences` of two methods under a condition."""
    return paired_differences(*(condition.runs(method, gathered) for method in (one, other)))


def change_cells(pairs_before: pd.DataFrame, pairs_after: pd.DataFrame, tasks: Sequence[str]) -> dict[str, str]:
    """A gap under both conditions, and its change. If seeds are in both, only these count, in pairs.

    Args:
        pairs_before, pairs_after: `paired_differences` of the gap.
        tasks: One task, or several to average over.
    """
    before, after = (by_seed(pairs, tasks) for pairs in (pairs_before, pairs_after))
    shared = before.index.intersection(after.index)
    if len(shared):
        before, after = before[shared], after[shared]
        change, n = mean_interval((after - before).round(DIGITS).to_numpy()), f"{len(shared)} in pairs"
    else:
        change, n = welch_interval(after.to_numpy(), before.to_numpy()), f"{len(before)} and {len(after)}"
    gaps = {"Before": mean_interval(before.to_numpy()).text, "After": mean_interval(after.to_numpy()).text}
    return gaps | {"Change": change.text, "Seeds": n}
