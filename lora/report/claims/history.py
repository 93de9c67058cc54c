"""When a claim was stated: the commit in which it last changed, and whether the runs that judge it were made with it.

A change counts if it alters what is judged: the sentence, the measure, the tasks, or the comparisons with their bounds.
The source, the wording of the margin and the published cells can be corrected without restating the claim.
"""

import functools
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lora.files import ROOT
from lora.report.claims.statements import Claim
from lora.report.claims.verdicts import Verdict

NOT_JUDGED = ("source", "margin", "paper")
SHORT = 8  # digits of a commit
Entries = Mapping[str, Mapping[str, Any]]


def with_history(verdicts: Sequence[Verdict], commits: Mapping[str, str | None], root: Path = ROOT) -> list[Verdict]:
    """Add to each verdict the commit of its claim, and whether the claim was stated later than its runs.

    Args:
        commits: run_id or measured file -> commit of the code that made it.
        root: The folder that has experiments/; its git history is read.
    Returns: `stated` is empty if the history does not show it: without git, in a shallow clone, or for an uncommitted
        claim. `stated_later` is True if some run's commit lacks the claim as it is judged, else None if some commit is
        unknown or there is no run.
    """
    paths = {each.claim.experiment: f"experiments/{each.claim.experiment}/claims.yaml" for each in verdicts}
    present = {experiment: entries((root / path).read_bytes()) for experiment, path in paths.items()}
    made_with = sorted({commit for commit in commits.values() if commit})
    past = {experiment: past_of(root, path, made_with) for experiment, path in paths.items()}
    dated = []
    for each in verdicts:
        claim, experiment = each.claim, each.claim.experiment
        judged = present[experiment].get(claim.id)
        introduced, versions = past[experiment]
        stated = next((c for c, found, before in introduced if states(judged, found, before, claim)), "")
        runs = {run for found in each.findings for run in found.runs}
        held = {contains(versions.get(commits.get(run) or ""), claim, judged) for run in runs}
        later = True if False in held else None if None in held or not held else False
        dated.append(replace(each, stated=stated[:SHORT], stated_later=later))
    return dated


def states(judged: Any, found: Entries, before: Sequence[Entries], claim: Claim) -> bool:
    """Whether a commit introduced the claim as it is judged: the commit has it, and none of its parents does."""
    return found.get(claim.id) == judged and all(parent.get(claim.id) != judged for parent in before)


def contains(version: Entries | None, claim: Claim, judged: Any) -> bool | None:
    return None if version is None else version.get(claim.id) == judged


def entries(content: bytes | None) -> Entries:
    """Id -> the judged parts of each claim of a file; empty if the file is absent or of another form."""
    try:
        found = yaml.load(content or b"", Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {each["id"]: {k: v for k, v in each.items() if k not in NOT_JUDGED} for each in found or ()}
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}


@functools.lru_cache
def _past(root: Path, path: str, head: str, made_with: tuple[str, ...]) -> tuple[list, dict[str, Entries | None]]:
    lines = git(root, "log", "--topo-order", "--full-history", "--format=%H %P", head, "--", path)
    touched = [line.split() for line in (lines or b"").decode().splitlines()]
    wanted = list(dict.fromkeys([*made_with, *(commit for line in touched for commit in line)]))
    blobs = contents(root, [f"{commit}:{path}" for commit in wanted])
    known = contents(root, [f"{commit}^{{commit}}" for commit in made_with])
    found = {c: entries(blob) for c, blob in zip(wanted, blobs, strict=True)}
    introduced = [(commit, found[commit], [found[p] for p in parents]) for commit, *parents in touched]
    there = {c: found[c] if commit is not None else None for c, commit in zip(made_with, known, strict=True)}
    return introduced, there


def past_of(root: Path, path: str, made_with: Iterable[str]) -> tuple[list, dict[str, Entries | None]]:
    """The commits that touched a file, newest first, with their and their parents' entries; the entries at `made_with`.

    Returns: Both empty without git. In a shallow clone, whose oldest commit seems to add everything, only the second.
    """
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        return [], {}
    introduced, there = _past(root, path, head.decode().strip(), tuple(made_with))
    shallow = git(root, "rev-parse", "--is-shallow-repository") != b"false\n"
    return ([] if shallow else introduced), there


def contents(root: Path, names: Sequence[str]) -> list[bytes | None]:
    """The git objects with these names, read by one process; None for those that do not exist."""
    output = git(root, "cat-file", "--batch", given="".join(f"{name}\n" for name in names).encode()) or b""
    found: list[bytes | None] = []
    for _ in names:
        header, _, output = output.partition(b"\n")
        kind = header.split()
        if len(kind) == 3 and kind[2].isdigit():
            size = int(kind[2])
            found.append(output[:size])
            output = output[size + 1 :]
        else:  # `<name> missing`
            found.append(None)
    return found


def git(root: Path, *arguments: str, given: bytes | None = None) -> bytes | None:
    """The output of git, or None if it fails or is not installed."""
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], input=given, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
