"""From the frame of runs to one row per cell, in the paper's words. Uses neither torch nor configurations."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora.config.variants import Variant, said, value_in, words
from lora.data.tasks import TASKS, Task
from lora.errors import UserError
from lora.methods.titles import METHOD_TITLES, TARGET_TITLES
from lora.sweep.stand_in import WAY_OUT

METRIC_SHORT = {"accuracy": "acc.", "f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews", "pearson": "Pearson"}
METRIC_SHORT |= {"spearman": "Spearman"}
ROW = ["model", "protocol", "slug", "method", "label"]  # the columns that identify a line of a table
CELL = [*ROW, "start", "task"]  # the columns that identify a cell
START_TITLES = {"pretrained": "pretrained", "mnli": "MNLI"}
ENCODER_TITLES = {
    "minilm": "all-MiniLM-L6-v2",
    "mpnet_base": "all-mpnet-base-v2",
    "roberta_base": "RoBERTa-base",
    "roberta_large": "RoBERTa-large",
    "deberta_v2_xxl": "DeBERTa-XXL",
}
OF_MACHINES = ("train.precision", "train.kernels", "model.attention")
LORA_SLUG = re.compile(r"lora-([qkvoif]+)-r(\d+)")
KINDS = ("whole", "part", "embedded", "own")  # of a task's train rows; a table holds one kind


USUAL = Variant((), ())


@dataclass(frozen=True)
class Planned:
    """A run that a table expects, trained or not.

    Args:
        variant: The settings that distinguish it from other runs of its method.
        label: The name of its row; "" derives it from the method and the slug.
        untuned: Whether its learning rate was not chosen for its task.
    """

    run_id: str
    model: str
    protocol: str
    start: str
    slug: str
    method: str
    task: str
    seed: int
    variant: Variant = USUAL
    label: str = ""
    untuned: bool = False

    def __post_init__(self):
        if not self.label:
            object.__setattr__(self, "label", method_label(self.slug, self.method))


def labelled(planned: Iterable[Planned], start: bool = True, rank: bool = True) -> list[Planned]:
    """The same runs, with labels that distinguish the rows of one method.

    Args:
        start: Whether rows can differ in the start; False for a table with a column per start.
        rank: The same for the rank of LoRA: with a column per rank, all ranks of a target set share their rows.
    """
    planned, alike = list(planned), {}
    for p in planned:
        size = p.slug if rank else p.slug.rpartition("-r")[0]
        alike.setdefault((size, p.method, p.start), []).append(p)
    found = {}
    for several in alike.values():
        others = {p.run_id: p.variant.without("start") for p in several}
        apart = words(others.values())
        for p in several:
            label = ", ".join(filter(None, (method_label(p.slug, p.method), apart[others[p.run_id]])))
            found[p.run_id] = dataclasses.replace(p, label=label)
    named = [found[p.run_id] for p in planned]
    return with_starts(named) if start and named else named


def with_starts(planned: Sequence[Planned]) -> list[Planned]:
    """The same runs; of rows with one label, each is named by the starts of its runs, which can differ by task."""
    alike: dict[tuple[str, str, str], list[Planned]] = {}
    for p in planned:
        alike.setdefault((p.model, p.protocol, p.label), []).append(p)
    found = {}
    for several in alike.values():
        given = {p.run_id: value_in(p.variant.given, "start") for p in several}
        row = said(given, {p.run_id: p.start for p in several})
        starts: dict[str | None, set[str]] = {}
        for p in several:
            starts.setdefault(row[p.run_id], set()).add(p.start)
        names = {key: told("start", "+".join(sorted(of_row))) for key, of_row in starts.items()}
        for p in several:
            label = f"{p.label}, {names[row[p.run_id]]}" if len(set(names.values())) > 1 else p.label
            found[p.run_id] = dataclasses.replace(p, label=label)
    return [found[p.run_id] for p in planned]


def without(planned: Iterable[Planned], key: str) -> list[Planned]:
    """The same runs, labelled for a table with a column per value of a setting: it tells none of the rows apart."""
    return labelled(dataclasses.replace(p, variant=p.variant.without(key)) for p in planned)


def anywhere(p: Planned) -> Planned:
    """The run without settings that can depend on the machine, labelled by slug and method."""
    given = p.variant.without(*OF_MACHINES).given
    return dataclasses.replace(p, variant=Variant(given, ()), label=method_label(p.slug, p.method))


def expected_runs(planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per expected run: run_id, the columns of `CELL`, seed, and varied (what was given on top of conf/)."""
    rows = [{**vars(p), "varied": varied(p)} for p in planned]
    return pd.DataFrame(rows, columns=["run_id", *CELL, "seed", "varied"])


def varied(p: Planned) -> str:
    return "; ".join(p.variant.given)


def summarise(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One row per expected cell, aggregated over its seeds.

    Returns: Columns `CELL`, varied (what was given on top of conf/), n, planned, median, mean, std, min, max (of `best`
        over seeds; std with ddof 1), last_median, trainable_method, trainable_head, seconds (mean), train_rows,
        collapsed (number of collapsed runs), kind (one of `KINDS`, by the records of the whole frame). Metrics are in
        percent; values that were not measured are NaN.
    Raises: UserError: If two runs of one cell have the same seed.
    """
    expected = expected_runs(planned)
    values = ["best", "last", "trainable_method", "trainable_head", "seconds", "train_rows", "is_part"]
    refuse_twice(expected)
    runs = expected.merge(frame.reindex(columns=["run_id", *values, "collapsed"]), on="run_id", how="left")
    runs = runs.assign(best=100 * runs["best"], last=100 * runs["last"], collapsed=runs["collapsed"].eq(1))
    table = runs.groupby(CELL, sort=False).agg(
        varied=("varied", "first"),
        n=("best", "count"),
        planned=("run_id", "size"),
        median=("best", "median"),
        mean=("best", "mean"),
        std=("best", "std"),
        min=("best", "min"),
        max=("best", "max"),
        last_median=("last", "median"),
        trainable_method=("trainable_method", "first"),
        trainable_head=("trainable_head", "first"),
        seconds=("seconds", "mean"),
        train_rows=("train_rows", "first"),
        collapsed=("collapsed", "sum"),
    )
    table = table.reset_index().astype(dict.fromkeys(("trainable_method", "trainable_head", "train_rows"), "Int64"))
    return table.assign(kind=table["task"].map(kinds_of(table["task"], frame)))


def refuse_mixed_rows(frame: pd.DataFrame) -> None:
    """Check that records of one task, on all train rows or on a part of one size, were made from the same rows."""
    sized = frame.assign(asked=frame["train_rows"].where(frame["is_part"], 0)) if len(frame) else frame
    for (task, _), runs in sized.groupby(["task", "asked"]) if len(frame) else ():
        if runs["fingerprint"].nunique() > 1:
            by_rows = runs.drop_duplicates("fingerprint")["run_id"]
            raise UserError(
                f"records of {task} were made from different rows, so they share no table: {', '.join(by_rows)}; "
                f"{WAY_OUT}"
            )


def refuse_twice(runs: pd.DataFrame, *more: str) -> None:
    """Check that no cell has two runs of one seed.

    Args:
        runs: One row per run, with run_id, seed and the columns of `CELL`.
        more: Further columns that identify a cell.
    Raises: UserError: If one has.
    """
    twice = runs[runs.duplicated([*CELL, *more, "seed"], keep=False)]
    if len(twice):
        raise UserError(f"two runs of one seed cannot be in one cell: {', '.join(twice['run_id'])}")


def kinds_of(tasks: Iterable[str], frame: pd.DataFrame) -> dict[str, str]:
    """Task -> one of `KINDS`. A GLUE task without a record is `part` if all those with records are, else `whole`."""
    glue = {task for task in frame["task"] if TASKS[task].family == "glue"}
    part = glue & set(frame.loc[frame["is_part"].eq(True), "task"])
    if part and part == glue:
        part = set(TASKS)
    families = {task: TASKS[task].family for task in tasks}
    return {t: family if family != "glue" else "part" if t in part else "whole" for t, family in families.items()}


def in_order(summary: pd.DataFrame) -> list[str]:
    return [task for task in TASKS if task in set(summary["task"])]


def method_label(slug: str, method: str) -> str:
    detail = slug.partition("-")[2]
    return METHOD_TITLES[method] + (f" ({detail.replace('-', ', ')})" if detail else "")


def slug_label(slug: str) -> str:
    """The label of a slug's row: `LoRA (qv, r8)`."""
    return method_label(slug, slug.partition("-")[0])


def encoder_title(model: str) -> str:
    return ENCODER_TITLES.get(model, model)


def told_apart(
    runs: pd.DataFrame, by: Sequence[str] = ("model", "protocol", "start"), within: Sequence[str] = ("task", "label")
) -> pd.Series:
    """The label of each run, with its encoder, protocol or start added if runs of one label differ in it.

    Args:
        runs: One row per run, with label, task and the columns of `by`.
        within: Runs that share these columns are distinguished.
    """
    labels = runs["label"]
    for key in by:
        several = runs.groupby([*within])[key].transform("nunique") > 1
        labels = labels.where(~several, labels + ", " + runs[key].map(lambda value, key=key: told(key, value)))
    return labels


def told(key: str, value: str) -> str:
    if key == "start":
        return f"from {' and '.join(START_TITLES[name] for name in value.split('+'))}"
    return encoder_title(value) if key == "model" else f"protocol {value}"


def task_label(task: Task) -> str:
    return f"{task.title} ({METRIC_SHORT[task.metric]})"


def lora_of(slug: str) -> tuple[str, int]:
    """The target set in the paper's notation, and the rank, of a LoRA slug without other options.

    Raises: ValueError: If the slug is of another form.
    """
    match = LORA_SLUG.fullmatch(slug)
    if match is None:
        raise ValueError(f"{slug!r} does not name target sets of q, k, v, o, i, f at one rank")
    return ", ".join(TARGET_TITLES[target] for target in match[1]), int(match[2])


def adapted(row: Any) -> tuple[str, int]:
    """`lora_of` of a LoRA row; the words that distinguish it from others of its slug follow the target set.

    Args:
        row: Anything with slug, method and label.
    Returns: The label instead of the target set, for modules named in full and for several ranks.
    """
    if not LORA_SLUG.fullmatch(row.slug):
        return row.label, int(row.slug.rpartition("-r")[2].removesuffix("x"))
    targets, rank = lora_of(row.slug)
    return targets + row.label.removeprefix(method_label(row.slug, row.method)), rank


def human_count(value: float) -> str:
    """A number of parameters as the paper prints it: 0.3M, 125.0M; below 0.1M in thousands."""
    return f"{value / 1e6:.1f}M" if value >= 99_500 else f"{value / 1e3:.0f}k"
