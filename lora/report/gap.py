"""What explains the gaps between methods on the encoders trained here: each gap before and after one factor changes.

To add a factor, add an entry to `FACTORS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from lora.data.tasks import TASKS
from lora.files import REFERENCE
from lora.report.gather import Gathered
from lora.report.notes import note
from lora.report.runs import Planned
from lora.report.stats import (
    DIGITS,
    by_seed,
    mean_interval,
    paired_differences,
    pairs_text,
    seeds_across,
    welch_interval,
)
from lora.report.titles import task_label
from lora.table import markdown

SMALL, LONG, BASE = (f"{REFERENCE}/{profile}" for profile in ("small", "long", "base"))


@dataclass(frozen=True)
class Side:
    """The runs of one method: those with this slug, start and settings."""

    slug: str
    settings: tuple[str, ...] = ()
    start: str = "pretrained"

    def has(self, p: Planned) -> bool:
        given = {setting for setting in p.varied.split("; ") if setting and not setting.startswith("start")}
        return (p.slug, p.start) == (self.slug, self.start) and given == set(self.settings)


SLUGS = {"LoRA": "lora-qv-r8", "full": "full", "Houlsby": "houlsby-m8"}
SIDES = {name: Side(slug) for name, slug in SLUGS.items()}


@dataclass(frozen=True)
class Condition:
    """A condition under which methods are compared.

    Args:
        words: The name of the condition.
        records: The folder below results/.
        sides: Method -> its runs.
        tried: Whether the runs are those that chose the learning rates, whose seeds no table of results has.
    """

    words: str
    records: str = LONG
    sides: Mapping[str, Side] = field(default_factory=lambda: SIDES)
    tried: bool = False


@dataclass(frozen=True)
class Factor:
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


LORA_FULL, HOULSBY_FULL, LORA_HOULSBY = ("LoRA", "full"), ("Houlsby", "full"), ("LoRA", "Houlsby")
EVERY = (LORA_FULL, HOULSBY_FULL, LORA_HOULSBY)
TABLE_2 = ("cola", "mrpc", "stsb")
QV, IN_PROPORTION = Condition("LoRA on q,v at r = 8"), "method.alpha_at_rank=8"
FACTORS = (
    Factor(
        "Epochs, train rows and rates",
        Condition("3 epochs of 2,000 to 4,000 rows, best of three rates", SMALL),
        Condition("10 epochs of all rows, best of five rates"),
        EVERY,
        TABLE_2,
    ),
    Factor(
        "Epochs",
        Condition("10"),
        Condition("20", sides={name: Side(slug, ("train.epochs=20",)) for name, slug in SLUGS.items()}),
        EVERY,
    ),
    Factor(
        "Rates",
        Condition("each method's best on CoLA and STS-B", tried=True),
        Condition(
            "the other of its best two on CoLA",
            sides={
                name: Side(SLUGS[name], (f"train.lr={rate}",))
                for name, rate in {"LoRA": "0.001", "full": "2e-05", "Houlsby": "0.001"}.items()
            },
            tried=True,
        ),
        EVERY,
    ),
    Factor(
        "Target set",
        QV,
        Condition("q,k,v,o at r = 4", sides=SIDES | {"LoRA": Side("lora-qkvo-r4")}),
        (LORA_FULL,),
        TABLE_2,
    ),
    Factor("Rank", QV, Condition("r = 64", sides=SIDES | {"LoRA": Side("lora-qv-r64")}), (LORA_FULL,)),
    Factor(
        "Rank and alpha",
        QV,
        Condition("r = 64, `alpha_at_rank=8`", sides=SIDES | {"LoRA": Side("lora-qv-r64", (IN_PROPORTION,))}),
        (LORA_FULL,),
    ),
    Factor(
        "Start",
        Condition("pretrained"),
        Condition("MNLI", sides={name: Side(slug, start="mnli") for name, slug in SLUGS.items()}),
        EVERY,
        ("mrpc",),
    ),
    Factor("Encoder", Condition("MiniLM, 10 epochs"), Condition("MPNet-base, 5 epochs", BASE), (LORA_FULL,)),
)
RECORDS = tuple(dict.fromkeys(c.records for factor in FACTORS for c in (factor.before, factor.after)))


def gap_table(gathered: Mapping[str, Gathered]) -> str:
    """The table of all factors in Markdown, with its note.

    Args:
        gathered: The records by name, for each of `RECORDS`.
    """
    lines = [without_repetition(factor_lines(factor, gathered)) for factor in FACTORS]
    return f"{markdown(pd.concat(lines), words=5)}\n{note('gap')}"


def without_repetition(lines: list[dict[str, str]]) -> pd.DataFrame:
    """The lines of a factor, which state a condition or a gap only where it begins."""
    table = pd.DataFrame(lines)
    said = table[["Factor", "From", "To", "Gap"]]
    return table.assign(**said.mask(said.eq(said.shift()), ""))


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
    planned, frame = gathered.tried if condition.tried else gathered.every, gathered.frame
    sides = ({p.run_id for p in planned if condition.sides[name].has(p)} for name in (one, other))
    return paired_differences(*(frame[frame["run_id"].isin(run_ids)] for run_ids in sides))


def change_cells(pairs_before: pd.DataFrame, pairs_after: pd.DataFrame, tasks: Sequence[str]) -> dict[str, str]:
    """A gap under both conditions, and its change. If seeds are in both, only these count, in pairs.

    Args:
        pairs_before, pairs_after: `paired_differences` of the gap.
        tasks: One task, or several to average over.
    """
    before, after = (by_seed(pairs, tasks) for pairs in (pairs_before, pairs_after))
    across = seeds_across(pairs_before, tasks) | seeds_across(pairs_after, tasks)
    shared = before.index.intersection(after.index)
    if len(shared):
        before, after = before[shared], after[shared]
        change, n = mean_interval((after - before).round(DIGITS).to_numpy()), f"{len(shared)} in pairs"
        across &= set(shared)
    else:
        change, n = welch_interval(after.to_numpy(), before.to_numpy()), f"{len(before)} and {len(after)}"
    gaps = {"Before": mean_interval(before.to_numpy()).text, "After": mean_interval(after.to_numpy()).text}
    return gaps | {"Change": change.text, "Seeds": pairs_text(n, len(across))}
