"""Which method is better on a user's own task, in sentences."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy import special

from lora.data.metrics import LOWER
from lora.records.analysis import Analyses
from lora.report.runs import task_title
from lora.report.stats import ENOUGH_SEEDS, LEVEL, ON_ROWS, POWER, ends, interval_of, needed_text


def answers(pairs: pd.DataFrame, analyses: Analyses, origins: Mapping[str, str]) -> list[str]:
    """`LoRA (qv, r8) - Full fine-tuning, my_task: -4.4 (-14.9 to +6.0), n = 3: undecided; ...`, a line per pair and
    task.

    A method is higher or lower if all of the 95% interval over seeds is above or below 0, and not on fewer than
    `ENOUGH_SEEDS` pairs, as for the paper's claims; `on these dev rows` if the interval for other rows includes 0. A
    method is judged against another only if both rates were chosen alike. `origins`: as of
    `lora.report.rates.origins_of`.
    """
    lines = []
    for row in pairs.dropna(subset=["mean"]).itertuples():
        one, other = ({origins[run_id] for run_id in side if run_id in origins} for side in zip(*row.runs, strict=True))
        low, high = analyses.over_rows(row.runs, "best")
        if one and other and one != other:
            chosen = " and ".join(" or ".join(sorted(side)) for side in (one, other))
            word = f"not judged, because their learning rates were not chosen alike: {chosen}"
        elif row.n >= ENOUGH_SEEDS and (row.low > 0 or row.high < 0):
            word = "higher" if row.low > 0 else "lower"
            if low <= 0 <= high:
                rows = analyses.own_rows.get(row.task, {}).get("rows")
                word += ON_ROWS + (rows_text(rows_needed(row, analyses, rows[1])) if rows else "")
        else:
            few = f"; a verdict needs at least {ENOUGH_SEEDS} seeds" if row.n < ENOUGH_SEEDS else ""
            word = f"undecided{few}{needed_text(row.needed, 'tell them apart')}"
        about = LOWER if row.place.endswith(f"{LOWER})") else ""
        about += f", {row.model}" if pairs["model"].nunique() > 1 else ""
        both = "" if pd.isna(low) else f", for other seeds and rows {ends(low, high)}"
        value = f"{interval_of(row).shown}{both}, n = {row.n}"
        lines.append(f"{row.one} - {row.other}, {task_title(row.task)}{about}: {value}: {word}")
    return lines


def rows_needed(row: Any, analyses: Analyses, rows: int) -> float:
    """The number of dev rows at which the interval for other seeds and rows would exclude 0 with a probability of
    `POWER`, at this difference, these seeds and this spread over rows; infinite if more rows cannot do it."""
    deviates = special.ndtri((1 + LEVEL) / 2) + special.ndtri(POWER)
    over_rows = (analyses.over_rows(row.runs, "best", "examples")[1] - row.mean) / special.ndtri((1 + LEVEL) / 2)
    over_seeds = (row.high - row.mean) / special.stdtrit(row.n - 1, (1 + LEVEL) / 2)
    left = (row.mean / deviates) ** 2 - over_seeds**2
    return math.ceil(rows * over_rows**2 / left) if left > 0 else math.inf


def rows_text(rows: float) -> str:
    """A part of a sentence about `rows_needed`."""
    needed = f"about {rows:,.0f} dev rows" if math.isfinite(rows) else "more seeds and dev rows"
    return f"; {needed} would show it for others with {POWER:.0%} power"
