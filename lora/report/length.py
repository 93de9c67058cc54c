"""The effect of doubling the length of training on each method, and on LoRA minus full fine-tuning."""

from collections.abc import Sequence
from itertools import product

import pandas as pd

from lora.data.tasks import TASKS
from lora.report.aggregate import CELL, Planned, expected_runs, refuse_twice, task_label, without
from lora.report.stats import DIGITS, mean_interval
from lora.report.tables import number

LORA, FULL = "lora-qv-r8", "full"


def length_table(frame: pd.DataFrame, planned: Sequence[Planned]) -> pd.DataFrame:
    """One line per row and task: a column per length, and the change from the shortest to the longest, in points.

    A row is the runs that are equal in every setting but the length and the seed. Its values are means over the seeds
    that were trained at each length, and those of a difference over the seeds that both rows have. Changes and
    differences have their 95% interval over seeds.

    The change is `-` unless a seed was trained at both: a single length says nothing about another.

    Args:
        frame: `load_frame` of the records.
    Raises: UserError: If two runs of one row, task and length have the same seed.
    """
    expected = expected_runs(without(planned, "train.epochs"))
    runs = expected.merge(frame[["run_id", "epochs", "best"]], on="run_id")
    refuse_twice(runs, "epochs")
    runs = runs.assign(best=100 * runs["best"])
    lengths = sorted(runs["epochs"].unique().tolist())
    rows = [
        (dict(zip(CELL, key, strict=True)), of_row.pivot(index="seed", columns="epochs", values="best"))
        for key, of_row in runs.groupby(CELL, sort=False)
    ]
    lines = [line_of(cell["label"], cell["task"], best, lengths) for cell, best in rows]
    for task in dict.fromkeys(cell["task"] for cell, _ in rows):
        sides = [
            [(cell["label"], best) for cell, best in rows if (cell["task"], cell["slug"]) == (task, slug)]
            for slug in (LORA, FULL)
        ]
        lines += [
            line_of(f"{one} - {other}", task, ours - theirs, lengths, is_difference=True)
            for (one, ours), (other, theirs) in product(*sides)
        ]
    return pd.DataFrame(lines)


def line_of(
    label: str, task: str, best: pd.DataFrame, lengths: Sequence[float], is_difference: bool = False
) -> dict[str, str]:
    """The line of one row.

    Args:
        best: In points, a line per seed and a column per length; NaN where a run is not trained.
        lengths: The columns of the table, in order.
        is_difference: Whether these are differences of two methods, which have an interval at each length too.
    """
    trained = best.reindex(columns=lengths).dropna(how="all").round(DIGITS)
    compared = trained.dropna()
    shown = compared if len(compared) else trained
    line = {"Method": label, "Task": task_label(TASKS[task]), "Seeds": str(len(shown))}
    for length in lengths:
        found = mean_interval(shown[length].dropna().to_numpy())
        line[f"{length:.0f} epochs"] = found.text if is_difference else number(found.mean)
    change = compared[lengths[-1]] - compared[lengths[0]] if len(lengths) > 1 else pd.Series(dtype=float)
    return line | {"Change": mean_interval(change.round(DIGITS).to_numpy()).text}
