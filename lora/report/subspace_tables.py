"""Table 7 and Figures 3 and 4, from the results of `lora.report.analyses.subspaces`. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.methods.titles import TARGET_TITLES
from lora.report.figures import Figure, figure
from lora.report.notes import encoder_notes, note
from lora.table import Table

Case = Mapping[str, Any]
FIGURES = {
    "figure3": (
        "ranks of two seeds",
        "Figure 3: subspaces of a small and a large rank",
        "phi(i, j): how much of the top i directions of A at the small rank lies in the top j of A at the large one, "
        "trained with another seed; and the same of both as they were drawn.",
    ),
    "figure4": (
        "seeds",
        "Figure 4: subspaces of two seeds",
        "phi(i, j) between two seeds at the large rank, and between two random Gaussian matrices of that size.",
    ),
}


def amplification_table(name: str, cases: Sequence[Case]) -> Table | None:
    """Table 7: how much an update amplifies directions that W does not emphasise; None without cases."""
    lines = []
    for case in cases:
        if case["kind"] != "amplification":
            continue
        middle = case["layers"][len(case["layers"]) // 2]
        factors = pd.Series([layer["update"] / layer["in_update"] for layer in case["layers"]])
        lines.append(
            {
                "Task": TASKS[case["task"]].title,
                "Matrix": TARGET_TITLES[case["target"]],
                "r": str(case["rank"]),
                "Layer": f"{middle['layer'] + 1} of {len(case['layers'])}",
                "W by the update's U, V": f"{middle['in_update']:.2f}",
                "by W's own": f"{middle['in_weight']:.2f}",
                "by random ones": f"{middle['in_random']:.2f}",
                "Norm of W": f"{middle['weight']:.2f}",
                "Norm of the update": f"{middle['update']:.2f}",
                "Amplification": f"{middle['update'] / middle['in_update']:.2f}",
                "Median over layers": f"{factors.median():.2f}",
            }
        )
    title = f"Table 7: amplification by the update ({name})"
    notes = (note("table7"), *encoder_notes(case["model"] for case in cases))
    return Table("table7", title, pd.DataFrame(lines), 2, notes, figures=tuple(FIGURES)) if lines else None


def subspace_figures(cases: Sequence[Case]) -> dict[str, Figure]:
    """Figures 3 and 4, if there are cases of them: phi of every i and j in the middle layer, a panel per case."""
    figures = {}
    for name, (kind, title, about) in FIGURES.items():
        panels = [
            {
                "title": f"{TASKS[case['task']].title}, {case['label']}",
                "x": f"j, {case['x']}",
                "y": f"i, {case['y']}",
                "x_names": case["columns"],
                "y_names": case["rows"],
                "values": case["phi"],
            }
            for case in cases
            if case["kind"] == kind
        ]
        drawn = figure(title, f"{about} 1: contained, 0: orthogonal. Middle layer.", "heat", "", panels)
        figures |= {name: drawn} if drawn is not None else {}
    return figures
