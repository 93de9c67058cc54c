"""The texts above and below tables: those of notes.yaml, and those that depend on the runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora.report.stats import ENOUGH_SEEDS, LEVEL

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
