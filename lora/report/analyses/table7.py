"""Table 7 and Figures 3 and 4, from the results of `lora.report.analyses.subspaces`. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.data.tasks import TASKS
from lora.methods.titles import TARGET_TITLES
from lora.report.figures import figure
from lora.report.notes import encoder_notes, note
from lora.table import Table

FIGURES = {  # name -> the kind of its cases, its title and its note
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
NORMS = {
    "W by the update's U, V": "in_update",
    "by W's own": "in_weight",
    "by random ones": "in_random",
    "Norm of W": "weight",
    "Norm of the update": "update",
}


def table7(name: str, cases: Sequence[Mapping[str, Any]]) -> Table | None:
    """How much an update amplifies directions that W does not emphasise, and phi of every i and j in the middle layer.

    Returns: None without cases.
    """
    lines = []
    for case in cases:
        if case["kind"] == "amplification":
            layers = case["layers"]
            middle = layers[len(layers) // 2]
            factors = pd.Series([layer["update"] / layer["in_update"] for layer in layers])
            line = {"Task": TASKS[case["task"]].title, "Matrix": TARGET_TITLES[case["target"]]}
            line |= {"r": str(case["rank"]), "Layer": f"{middle['layer'] + 1} of {len(layers)}"}
            line |= {title: f"{middle[norm]:.2f}" for title, norm in NORMS.items()}
            line |= {"Amplification": f"{middle['update'] / middle['in_update']:.2f}"}
            lines.append(line | {"Median over layers": f"{factors.median():.2f}"})
    figures = {}
    for key, (kind, title, about) in FIGURES.items():
        panels = [
            {"title": f"{TASKS[case['task']].title}, {case['label']}", "x": f"j, {case['x']}", "y": f"i, {case['y']}"}
            | {"x_names": case["columns"], "y_names": case["rows"], "values": case["phi"]}
            for case in cases
            if case["kind"] == kind
        ]
        drawn = figure(title, f"{about} 1: contained, 0: orthogonal. Middle layer.", "heat", "", panels)
        figures |= {key: drawn} if drawn is not None else {}
    title = f"Table 7: amplification by the update ({name})"
    notes = (note("table7"), *encoder_notes(case["model"] for case in cases))
    return Table("table7", title, pd.DataFrame(lines), 2, notes, figures=figures) if lines else None
