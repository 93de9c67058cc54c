"""The texts above and below tables: those of notes.yaml, and those that depend on the runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora.report.stats import ENOUGH_SEEDS, LEVEL
from lora.report.titles import adapted

NOTES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BANNERS: dict[str, str] = NOTES["banners"]
ENCODERS: dict[str, str] = NOTES["encoders"]


def note(key: str) -> str:
    return NOTES[key].format(level=f"{LEVEL:.0%}", enough=ENOUGH_SEEDS)


def encoder_notes(models: Iterable[str], kind: str = "whole") -> list[str]:
    """Notes on the encoders for tasks of this kind, for the encoders that have one."""
    known = NOTES["encoders_of_own"] if kind == "own" else ENCODERS
    return [known[model] for model in dict.fromkeys(models) if model in known]


def caption(summary: pd.DataFrame) -> str:
    """The note that defines a table's numbers."""
    seeds = set(summary["planned"])
    count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    of_runs = f"Median over {count} seeds of each run's best epoch on the dev set, ± the standard deviation over seeds."
    if seeds == {1}:
        of_runs = "Each run's best epoch on the dev set; one seed."
    return f"{of_runs} Protocol: {', '.join(sorted(set(summary['protocol'])))}. {note('head')}"


def ffn_notes(summary: pd.DataFrame, experiment: str) -> list[str]:
    """The notes of Tables 5 and 6 if LoRA adapts the FFN too, which it does not in the paper's tables."""
    names = [adapted(row)[0] for row in summary.itertuples()]
    if not any("Wi" in targets or "Wf" in targets for targets in names):
        return []
    counts = summary["trainable_method"].dropna()
    if experiment != "lora_targets" or counts.nunique() <= 1:
        return [note("ffn")]
    usual = counts.mode().iloc[0]
    others = dict.fromkeys(
        f"{targets}: {row.trainable_method / usual - 1:+.1%}"
        for targets, row in zip(names, summary.itertuples(), strict=True)
        if pd.notna(row.trainable_method) and row.trainable_method != usual
    )
    return [note("ffn"), f"All sets have the same number of parameters but {'; '.join(others)}."]
