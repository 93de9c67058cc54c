"""What a report of one's own task shows besides scores: baselines, costs, errors (`lora.report.analyses.own_rows`)."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lora.data.metrics import better
from lora.data.tasks import Task
from lora.files import rounded
from lora.report.figures import Figure, figure
from lora.report.runs import row_names, task_labels
from lora.report.tables import trainable_cell
from lora.table import Cell, Value, number

SHOWN_ROWS = 20
PRINTED_CLASSES = 8  # at most, for numbers in the cells of a confusion matrix
HOW = {"Kernels": "train.kernels", "Precision": "train.precision"}  # columns of costs, where runs differ in them
SHARES = {"Precision": "precision", "Recall": "recall", "F1": "f1"}
Entries = Mapping[str, Mapping[str, Any]]  # task -> what its rows say (`lora.report.analyses.own_rows`)


def with_baselines(table: pd.DataFrame, summary: pd.DataFrame, entries: Entries) -> pd.DataFrame:
    """Table 2 with the baselines of its tasks below, which have an interval for other dev rows and no verdict."""
    lines: dict[str, dict[str, Cell]] = {}
    for task, label in task_labels(summary).items():
        for one in entries.get(task, {}).get("baselines", ()):
            name = f"{one['name']}{entries[task]['on']}"
            line = lines.setdefault(name, dict.fromkeys(table.columns, "-"))
            line |= {"Method": name, label: number(one["value"], ".1f", over_rows(one))}
    return pd.concat([table, pd.DataFrame([*lines.values()], columns=table.columns)], ignore_index=True)


def over_rows(baseline: Mapping[str, Any]) -> str:
    return f"{baseline['low']:.1f} to {baseline['high']:.1f} over rows"


def not_above(summary: pd.DataFrame, entries: Entries) -> list[str]:
    """A line for each task on which a method's median is not above the best baseline, with the methods' names."""
    lines = []
    for task, entry in entries.items():
        scored = summary[summary["task"] == task].dropna(subset="median")
        if len(scored) and entry["baselines"]:
            names = row_names(scored, ["model", "protocol"])
            sign = better(scored["metric"].iloc[0])
            best = max(entry["baselines"], key=lambda one: sign * one["value"])
            rest = names[sign * best["value"] >= sign * scored["median"].map(rounded)]  # as a baseline is stored
            shown = f"{best['name']}{entry['on']}, {task}: {best['value']:.1f} ({over_rows(best)})"
            word = "higher" if sign > 0 else "lower"
            if len(rest) == len(names):
                lines.append(f"{shown}: no median in the table is {word}")
            elif len(rest):
                lines.append(f"{shown}: medians that are not {word}: {'; '.join(rest)}")
    return lines


def costs_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per task, method, device and way of computing: medians over the runs, as their records have them."""
    lines = []
    runs = runs.assign(label=row_names(runs, ["model", "protocol"])).dropna(subset="device")
    how = {title: key for title, key in HOW.items() if runs[key].nunique() > 1}
    keys = ["task", "label", "device", *how.values()]
    named = runs["task"].nunique() > 1
    for (task, label, device, *values), of_method in runs.groupby(keys, sort=False):
        middle = of_method[["seconds", "step_ms", "checkpoint_bytes"]].astype(float).median()
        line = ({"Task": task} if named else {}) | {"Method": label, "Trainable": trainable_cell(of_method)}
        line["Runs"] = len(of_method)
        line["Minutes a run"] = number(middle["seconds"] / 60, ".1f" if middle["seconds"] >= 60 else ".2f")
        line["Step, ms"] = number(middle["step_ms"], ".1f")
        line |= {"A task on disk, MB": number(middle["checkpoint_bytes"] / 1e6, ".2f"), "Device": device}
        lines.append(line | dict(zip(how, values, strict=True)))
    return pd.DataFrame(lines)


def test_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per task and method, of tasks with runs that scored labelled test rows: mean and standard deviation over
    these runs. `runs`: with the column `size`, a line for each number of train rows."""
    lines = []
    titles = task_labels(runs)
    runs = runs.assign(label=row_names(runs, ["model", "protocol"]))
    keys = ["task", *(["size"] if "size" in runs else []), "label"]
    test_rows = runs.groupby("task")["test_rows"].first().dropna()
    runs = runs[runs["task"].isin(test_rows.index)].dropna(subset="device")
    for (task, *size, label), of_method in runs.groupby(keys, sort="size" in runs):
        scored = of_method.dropna(subset="test_rows")
        count = f"{len(scored)}" if len(scored) == len(of_method) else f"{len(scored)} of {len(of_method)}"
        line = {"Task": titles[task], "Method": label}
        line |= {"Train rows": Value(size[0], f"{size[0]:,}")} if size else {}
        line |= {"Runs": Value(len(scored), count)}
        line |= {"Test rows": int(test_rows[task])}
        for title, scores in (("Dev", 100 * scored["best"]), ("Test", 100 * scored["test"])):
            spread = f" ±{scores.std():.1f}" if len(scores) > 1 else ""
            mean = scores.mean(skipna=False)
            line |= {title: "-" if pd.isna(mean) else Value(mean, f"{mean:.1f}{spread}")}
        lines.append(line)
    return pd.DataFrame(lines)


def classes_table(entries: Entries, labels: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """One line per task, class and method. `entries`, `labels`: task -> what its rows say, and its classes."""
    lines = []
    for name, entry in entries.items():
        for place, label in enumerate(labels[name]):
            for method in entry["methods"]:
                rows = sum(method["confusion"][place])
                runs = len(entry["runs"][method["label"]])
                line = {"Task": name, "Class": label, "Method": method["label"]}
                line |= {"Runs": runs, "Dev rows": Value(rows, f"{rows:.0f}")}
                for title, key in SHARES.items():
                    count = method["predicted_in"][place] if key == "precision" else runs
                    remark = f"{count} of {runs} runs" if count < runs else ""
                    share = method[key][place]
                    line[title] = "-" if share is None else number(100 * share, ".1f", remark)
                lines.append(line)
    return pd.DataFrame(lines)


def lacking(task: str, entries: Entries, runs: pd.DataFrame) -> set[str]:
    """The run_ids of a task's trained runs that its analysis lacks."""
    trained = runs.loc[runs["task"].eq(task) & runs["device"].notna(), "run_id"]
    return set(trained).difference(*entries.get(task, {"runs": {}})["runs"].values())


def confusion_figure(entry: Mapping[str, Any], task: Task) -> Figure | None:
    """Which classes are taken for which, a panel per method."""
    panels = []
    for method in entry["methods"]:
        shares = [[count / (sum(row) or 1) for count in row] for row in method["confusion"]]
        about = {
            "title": method["label"],
            "x": "predicted",
            "y": "true",
            "x_names": task.labels,
            "y_names": task.labels,
            "numbers": len(task.labels) <= PRINTED_CLASSES,
        }
        panels.append(about | {"values": shares})
    note = "Share of the dev rows of each true class, mean over runs. 1 on the diagonal: every row is right."
    return figure(f"Which classes are taken for which: {task.name}", note, "heat", "", panels)


def scatter_figure(rows: pd.DataFrame, task: Task, methods: Collection[str]) -> Figure | None:
    """The mean prediction of each method against the dev rows' scores. `rows`: of `errors_table`, all of them."""
    x = rows["Label"].astype(float).tolist()
    panels = [
        {"title": method, "y": "predicted", "series": [{"label": "", "x": x, "y": rows[method].astype(float).tolist()}]}
        for method in methods
    ]
    note = "A point per dev row; the mean over the runs of a method. On the line, prediction and score are equal."
    return figure(f"Predicted scores: {task.name}", note, "scatter", "score", panels)


def errors_table(path: Path) -> pd.DataFrame:
    """The rows of a file of errors."""
    if not path.exists():
        return pd.DataFrame()
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    titles = {"row": "Row", "wrong": "Wrong", "residual": "Residual", "label": "Label"}
    return rows.assign(row=rows["row"].astype(int)).rename(columns=titles)
