"""Claims judged on what was measured: supported, not supported, or cannot tell, with the numbers behind it.

A claim is a list of comparisons that must all hold, each an interval against a bound that was stated in advance. It is
supported if every interval keeps its bound, not supported if some interval lies wholly on the other side, and cannot be
told otherwise. Nothing is decided on fewer than 5 pairs of seeds in any of its tasks (`lora.stats`), either way.
No correction for the number of comparisons is needed inside a claim: it asks for all of them, which makes it harder to
be supported, not easier. Between claims none is made either, since each was stated for itself before it was judged; the
table of all pairs, in which one may go looking, is corrected (Holm).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lora.claims.sides import described, labels, select
from lora.claims.statements import BASES, TIMES, Claim, Compare
from lora.counts import gpt3_count
from lora.efficiency.statistics import paired_ratio
from lora.errors import UserError
from lora.stats import ENOUGH_SEEDS, by_task, mean_interval, paired_differences
from lora.summary import Planned, kinds_of, method_label
from lora.tasks import TASKS

WORDS = {True: "supported", False: "not supported", None: "cannot tell"}
GPT3 = "GPT-3 175B"


@dataclass(frozen=True)
class Finding:
    """One comparison, judged.

    Args:
        label: What was compared.
        mean, low, high: The difference in points or the ratio, and its interval; NaN where it is not known.
        n: Pairs of seeds in the task with the fewest, or repetitions; None for what is counted and exact.
        bound: As stated.
        holds: None: cannot tell, for the `reason`.
        runs: The run_ids, or the file, behind it.
    """

    label: str
    mean: float
    low: float
    high: float
    n: int | None
    bound: str
    holds: bool | None
    reason: str
    runs: tuple[str, ...]
    unit: Literal["points", "ratio", "failures"]


@dataclass(frozen=True)
class Verdict:
    """A claim about one encoder, or one device.

    Args:
        about: The encoder or the device; empty where there is nothing to judge on.
        not_glue: Judged on the embedded tasks.
    """

    claim: Claim
    about: str
    findings: tuple[Finding, ...]
    word: Literal["supported", "not supported", "cannot tell"]
    reason: str
    not_glue: bool = False


def judge(
    claims: Sequence[Claim],
    planned: Mapping[str, Sequence[Planned]],
    frame: pd.DataFrame,
    efficiency: Path,
    checks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Verdict]:
    """All claims on one profile's records.

    Args:
        planned: Experiment -> the runs that it expects.
        frame: `load_frame` of those that are there.
        efficiency: The folder of what `python -m lora.efficiency` measured.
        checks: Name of a check -> its cases (`lora.analyses`).
    Raises: UserError: If a file to judge on is broken, or a side of a comparison is several methods or protocols.
    """
    verdicts = []
    for claim in claims:
        if claim.metric is not None:
            verdicts += on_runs(claim, planned, frame)
        elif claim.measure is not None:
            verdicts += on_measurements(claim, efficiency)
        elif claim.count is not None:
            verdicts += on_counts(claim, planned, frame)
        else:
            verdicts.append(on_check(claim, checks.get(claim.check, ())))
    return verdicts


def on_runs(claim: Claim, planned: Mapping[str, Sequence[Planned]], frame: pd.DataFrame) -> list[Verdict]:
    """One verdict for each encoder that has both sides of some comparison of the claim; one without, if none has."""
    verdicts = []
    for model in dict.fromkeys(p.model for found in planned.values() for p in found):
        sides = [[select(planned, claim, side, model, c.where) for side in (c.one, c.other)] for c in claim.compare]
        if any(one and other for one, other in sides):
            pairs = zip(claim.compare, sides, strict=True)
            findings = [
                found for compare, (one, other) in pairs for found in differences(claim, compare, one, other, frame)
            ]
            embedded = any(TASKS[p.task].family == "embedded" for one, _ in sides for p in one)
            verdicts.append(verdict(claim, model, findings, not_glue=embedded))
    lacking = dict.fromkeys(described(side) for c in claim.compare for side in (c.one, c.other))
    nothing = f"no runs: not all of {'; '.join(lacking)} are planned here for one encoder"
    return verdicts or [Verdict(claim, "", (), "cannot tell", nothing)]


def differences(
    claim: Claim, compare: Compare, one: Sequence[Planned], other: Sequence[Planned], frame: pd.DataFrame
) -> list[Finding]:
    """On the average over the common tasks, or on each of those that the claim names."""
    if not (one and other):
        return [without_runs(compare, one, other)]
    tasks = [task for task in TASKS if task in {p.task for p in one} & {p.task for p in other}]
    if claim.tasks == "average":
        kinds = kinds_of(tasks, frame)
        whole = [task for task in tasks if kinds[task] != "part"]
        groups = [whole or tasks]  # a task trained on a part of its rows is averaged with no whole one
    else:
        groups = [[task] for task in claim.tasks]
    sides = [frame[frame["run_id"].isin([p.run_id for p in side])] for side in (one, other)]
    pairs = paired_differences(*sides, claim.metric)
    return [difference(claim, compare, labels(one, other), group, pairs) for group in groups]


def without_runs(compare: Compare, one: Sequence[Planned], other: Sequence[Planned]) -> Finding:
    """A comparison of which a side has no cell in this profile."""
    names = [
        labels(found, found)[0] if found else described(side)
        for found, side in ((one, compare.one), (other, compare.other))
    ]
    lacking = [name for name, found in zip(names, (one, other), strict=True) if not found]
    nan, label = math.nan, " - ".join(names)
    reason = f"no runs of {' and '.join(lacking)} are planned here"
    return Finding(label, nan, nan, nan, 0, compare.bound.text, None, reason, (), "points")


def difference(
    claim: Claim, compare: Compare, names: Sequence[str], tasks: Sequence[str], pairs: pd.DataFrame
) -> Finding:
    here = pairs[pairs["task"].isin(tasks)]
    values = by_task(here)
    absent = [TASKS[task].title for task in tasks if task not in values]
    found = mean_interval([] if absent else [values[task] for task in tasks])
    titles = ", ".join(TASKS[task].title for task in tasks)
    over = f"average of {titles}" if len(tasks) > 1 else titles
    holds, reason = None, ""
    if absent:
        reason = f"no pair of seeds on {', '.join(absent)}"
    elif found.n < ENOUGH_SEEDS:
        reason = f"{found.n} of at least {ENOUGH_SEEDS} pairs of seeds"
    else:
        holds = compare.bound.holds(found.low, found.high)
        reason = "" if holds is not None else "the bound lies inside the interval"
    runs = tuple(here["run_id"]) + tuple(here["run_id_other"])
    label = f"{names[0]} - {names[1]}, {over}"
    return Finding(label, found.mean, found.low, found.high, found.n, compare.bound.text, holds, reason, runs, "points")


def on_counts(claim: Claim, planned: Mapping[str, Sequence[Planned]], frame: pd.DataFrame) -> list[Verdict]:
    """Ratios of trainable parameters without the head: GPT-3's by closed form, those of the encoders from records."""
    if claim.count == "gpt3":
        findings = [
            counted(compare, GPT3, {slug: (gpt3_count(slug), ("computed",)) for slug in (compare.one, compare.other)})
            for compare in claim.compare
        ]
        return [verdict(claim, GPT3, findings)]
    verdicts, wanted = [], {slug for compare in claim.compare for slug in (compare.one, compare.other)}
    for model in dict.fromkeys(p.model for found in planned.values() for p in found):
        runs = frame[(frame["model"] == model) & frame["slug"].isin(wanted)].sort_values("run_id")
        counts = {r.slug: (r.trainable_method, (r.run_id,)) for r in runs.drop_duplicates("slug").itertuples()}
        if wanted <= set(counts):
            verdicts.append(verdict(claim, model, [counted(compare, model, counts) for compare in claim.compare]))
    nothing = f"no runs: of no encoder are there records of {' and '.join(sorted(wanted))}"
    return verdicts or [Verdict(claim, "", (), "cannot tell", nothing)]


def counted(compare: Compare, model: str, counts: Mapping[str, tuple[int, tuple[str, ...]]]) -> Finding:
    """
    Args:
        counts: Slug -> its trainable parameters, and where they are from.
    """
    (one, of_one), (other, of_other) = counts[compare.one], counts[compare.other]
    ratio, (first, second) = one / other, (slug_label(slug) for slug in (compare.one, compare.other))
    label = f"trainable parameters of {first} / {second}, {model}: {one:,} / {other:,}"
    holds, runs = compare.bound.holds(ratio, ratio), tuple(dict.fromkeys((*of_one, *of_other)))
    return Finding(label, ratio, ratio, ratio, None, compare.bound.text, holds, "", runs, "ratio")


def slug_label(slug: str) -> str:
    return method_label(slug, slug.partition("-")[0])


def on_measurements(claim: Claim, folder: Path) -> list[Verdict]:
    """One verdict for every summary that `python -m lora.efficiency` left."""
    verdicts = []
    for path in sorted([*folder.glob("*/summary.json"), *folder.glob("*/*/summary.json")]):
        summary, about = read_json(path), str(path.parent.relative_to(folder))
        findings = [found for compare in claim.compare for found in ratios(claim, compare, summary, path, folder)]
        if findings:
            verdicts.append(verdict(claim, about, findings))
    return verdicts or [Verdict(claim, "", (), "cannot tell", "nothing was measured: results/efficiency is empty")]


def ratios(claim: Claim, compare: Compare, summary: Mapping[str, Any], path: Path, folder: Path) -> list[Finding]:
    """The ratio of one measure, for each batch x tokens where it has one; nothing where the method was not measured.

    Raises: UserError: If the summary is of another layout.
    """
    try:
        to_other = (summary.get(compare.one) or {}).get(f"to_{compare.other}")
        if compare.other not in BASES:
            to_other = ratios_of_samples(claim.measure, compare, path.parent / "samples.csv")
        if to_other is None or to_other.get(claim.measure) is None:
            return []
        values, rounds = to_other[claim.measure], summary["about"]["plan"]["rounds"]
        by_shape = values if isinstance(values, dict) else {"": values}
        intervals = to_other[f"{claim.measure}_interval"] if claim.measure in TIMES else {}
        found = []
        for shape, value in by_shape.items():
            low, high = (intervals[shape] or (math.nan, math.nan)) if claim.measure in TIMES else (value, value)
            holds, n = compare.bound.holds(low, high), rounds if claim.measure in TIMES else None
            reason = "" if holds is not None else "the bound lies inside the interval"
            if math.isnan(low) or (n is not None and n < ENOUGH_SEEDS):
                holds, reason = None, f"{n} repetitions are too few for an interval"
            label = f"{claim.measure} of {compare.one} / {compare.other}" + (f" at {shape}" if shape else "")
            source = (str(path.relative_to(folder.parent)),)
            found.append(Finding(label, value, low, high, n, compare.bound.text, holds, reason, source, "ratio"))
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a summary of python -m lora.efficiency: {error!r}") from error


def ratios_of_samples(measure: str, compare: Compare, path: Path) -> dict[str, Any] | None:
    """The ratio to a method for which the summary has none, from the visits that the summary was made of.

    Returns: As the summary's `to_full` and `to_base`; None where one of the two was not timed.
    Raises: UserError: If there are no samples beside the summary.
    """
    try:
        samples = pd.read_csv(path)
        samples = samples[samples["kind"] == measure.removesuffix("_ms")]
        times = samples.pivot(index="round", columns=["method", "shape"], values="ms")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not readable as the samples of python -m lora.efficiency: {error}") from error
    if not {compare.one, compare.other} <= set(samples["method"]):
        return None
    found = {
        shape: paired_ratio(times[compare.one, shape].to_numpy(), times[compare.other, shape].to_numpy())
        for shape in dict.fromkeys(samples["shape"])
    }
    ratios = {shape: round(ratio, 6) for shape, (ratio, _) in found.items()}
    return {measure: ratios, f"{measure}_interval": {shape: interval for shape, (_, interval) in found.items()}}


def on_check(claim: Claim, cases: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether something holds exactly, case by case: any failure refutes it."""
    if not cases:
        return Verdict(
            claim, "", (), "cannot tell", f"nothing was measured: no analysis/{claim.check}.json is of these records"
        )
    findings = []
    for case in cases:
        trials, fails = case["trials"], case["failures"]
        holds, runs = trials > 0 and fails == 0, tuple(case["runs"])
        findings.append(Finding(case["label"], fails, fails, fails, trials, "exactly 0", holds, "", runs, "failures"))
    return verdict(claim, claim.check, findings)


def verdict(claim: Claim, about: str, findings: Sequence[Finding], not_glue: bool = False) -> Verdict:
    holds = [found.holds for found in findings]
    word = WORDS[False if False in holds else None if None in holds else True]
    reasons = dict.fromkeys(found.reason for found in findings if found.holds is None)
    return Verdict(claim, about, tuple(findings), word, "; ".join(reasons) if word == "cannot tell" else "", not_glue)


def read_json(path: Path) -> dict[str, Any]:
    """Raises: UserError: If it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content
