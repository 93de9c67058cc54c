"""Tables of the analyses of adapters: their subspaces (Table 7, Figures 3 and 4), and swaps by subtraction."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.methods.configs import TARGET_TITLES
from lora.report.experiments import EXPERIMENTS, FOLDERS
from lora.report.figures import figure
from lora.report.notes import encoder_notes, note
from lora.report.runs import task_title
from lora.table import Cell, Table, Value, number

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
    """How much an update amplifies directions that W does not emphasise, and phi of all i and j in the middle layer."""
    lines = []
    for case in cases:
        if case["kind"] == "amplification":
            layers = case["layers"]
            middle = layers[len(layers) // 2]
            factors = pd.Series([layer["update"] / layer["in_update"] for layer in layers])
            line: dict[str, Cell] = {"Task": task_title(case["task"]), "Matrix": TARGET_TITLES[case["target"]]}
            place = middle["layer"] + 1
            line |= {"r": case["rank"], "Layer": Value(place, f"{place} of {len(layers)}")}
            line |= {title: number(middle[norm], ".2f") for title, norm in NORMS.items()}
            line |= {"Amplification": number(middle["update"] / middle["in_update"], ".2f")}
            lines.append(line | {"Median over layers": number(factors.median(), ".2f")})
    figures = {}
    for key, (kind, title, about) in FIGURES.items():
        panels = [
            {"title": f"{task_title(case['task'])}, {case['label']}", "x": f"j, {case['x']}", "y": f"i, {case['y']}"}
            | {"x_names": case["columns"], "y_names": case["rows"], "values": case["phi"]}
            for case in cases
            if case["kind"] == kind
        ]
        drawn = figure(title, f"{about} 1: contained, 0: orthogonal. Middle layer.", "heat", "", panels)
        figures |= {key: drawn} if drawn is not None else {}
    title = f"{EXPERIMENTS['subspaces'].title} ({name})"
    notes = (note("table7"), *encoder_notes(case["model"] for case in cases))
    cells = pd.concat([pd.DataFrame(lines), pd.read_csv(FOLDERS / "subspaces" / "paper.csv", dtype=str)])
    return Table("table7", title, cells, 2, notes, figures=figures) if lines else None


def subtraction_table(name: str, cases: Sequence[Mapping[str, Any]]) -> Table | None:
    """What swaps by the paper's own subtraction leave of W0, and what they change."""
    lines = []
    for case in cases:
        errors = {"Error / norm of W0": "of_weight", "Error / norm of BA": "of_update"}
        errors["Largest change of a logit"] = "logits"
        line: dict[str, Cell] = {"Dtype": case["label"], "Swaps": number(case["swaps"], ",")}
        line |= {title: number(case[key], ".1e") for title, key in errors.items()}
        title = f"Changed predictions ({task_title(case['task'])})"
        lines.append(line | {title: Value(case["changed"], f"{case['changed']} of {case['rows']:,}")})
    title = f"{EXPERIMENTS['efficiency'].title} ({name})"
    return Table("subtraction", title, pd.DataFrame(lines), 1, (note("subtraction"),)) if lines else None
