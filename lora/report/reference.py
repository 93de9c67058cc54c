"""The comparison of one's own runs with the reference of their profile."""

from collections.abc import Sequence

import pandas as pd

from lora.report.aggregate import CELL, Planned, anywhere, summarise, varied
from lora.table import Table


def reference_table(
    name: str, frame: pd.DataFrame, ours: Sequence[Planned], committed: pd.DataFrame, theirs: Sequence[Planned]
) -> Table | None:
    """The comparison with the reference, in the cells that both have; None if there are none.

    Several cells of ours can have one of the reference: they differ in what can depend on the machine.

    Args:
        ours, theirs: Runs of the same cells (`lora.report.select.reference_of`).
    """
    if not theirs:
        return None
    there = {varied(p): varied(anywhere(p)) for p in ours}
    cells = summarise(frame, ours).assign(varied=lambda table: table["varied"].map(there))
    compared = against_reference(cells, summarise(committed, theirs))
    agree, total = (compared["Agrees"] == "yes").sum(), (compared["Agrees"] != "-").sum()
    verdict = f"{agree} of {total} cells agree: the ranges of their seeds overlap."
    return Table("reference", f"Compared with the reference runs ({name})", compared, 2, (verdict,))


def against_reference(ours: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Compare the cells that both have, whatever their labels. They agree if the ranges of their seeds overlap.

    Returns: Columns Method, Task, This run, Reference, Difference (of medians), Agrees (yes, no, or - without values).
    """
    cell = [*(column for column in CELL if column != "label"), "varied"]
    merged = ours.merge(reference, on=cell, suffixes=("", "_reference"), validate="many_to_one")
    lines = []
    for _, row in merged.iterrows():
        there = row["n"] > 0 and row.get("n_reference", 0) > 0
        overlap = there and row["min"] <= row["max_reference"] and row["min_reference"] <= row["max"]
        lines.append(
            {
                "Method": row["label"],
                "Task": row["task"],
                "This run": span(row["median"], row["min"], row["max"]),
                "Reference": span(row["median_reference"], row["min_reference"], row["max_reference"]),
                "Difference": f"{row['median'] - row['median_reference']:+.1f}" if there else "-",
                "Agrees": ("yes" if overlap else "no") if there else "-",
            }
        )
    return pd.DataFrame(lines)


def span(median: float, low: float, high: float) -> str:
    return "-" if pd.isna(median) else f"{median:.1f} ({low:.1f} to {high:.1f})"
