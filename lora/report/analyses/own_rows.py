"""`python -m lora analyse rows PROFILE`: what the rows of one's own task say. A launch of one's own task ends with it.

    facts       rows per class, repeated texts, and dev and test rows whose text is in train (`lora.data.facts`)
    baselines   the most frequent class (the mean for scores), and TF-IDF with logistic regression (ridge for scores),
                whose strength is chosen by cross-validation on the train rows; the dev rows are only scored
    errors      precision, recall, F1 and the confusion of classes, and the dev rows that most runs get wrong

Numbers are kept in results/<profile>/analysis/rows.json. Texts are in <task>.errors.csv beside it, and nowhere else.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from lora.config.select import PLACES
from lora.data.facts import facts, texts_of
from lora.data.metrics import METRICS, compute
from lora.data.own_task import other_columns
from lora.data.read import TaskData, read_for_run
from lora.data.tasks import Task
from lora.errors import UserError
from lora.files import read_object, rounded, write_atomically
from lora.records.analysis import ERRORS, OWN_ROWS, add_entries
from lora.records.predictions import dev_predictions
from lora.report.analyses.dev_intervals import check_metric, pseudo_values
from lora.report.gather import Gathered, gather, run_here
from lora.report.gather import options as options
from lora.report.runs import row_names
from lora.report.stats import LEVEL

STRENGTHS: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regression, 1 / alpha of ridge
FOLDS = 5
Predictions = Mapping[str, Sequence[np.ndarray]]  # label of a method -> the dev predictions of each run


def baselines(task: Task, data: TaskData) -> list[dict[str, Any]]:
    """The metric of both baselines on the dev rows, in percent, with its interval for other dev rows."""
    train, dev = (texts_of(task, data, split) for split in task.training_splits)
    labels, true = (np.asarray(data.splits[split]["label"]) for split in task.training_splits)
    predicted, strength = tf_idf(bool(task.labels), train, labels, dev)
    constant = np.bincount(labels).argmax() if task.labels else labels.mean()
    names = ("Most frequent class", "logistic regression") if task.labels else ("Mean of the train scores", "ridge")
    predictions = ((names[0], np.full(len(true), constant), None), (f"TF-IDF, {names[1]}", predicted, strength))
    return [
        {"name": name, "strength": chosen, **metric_of(task.metric, values, true)}
        for name, values, chosen in predictions
    ]


def tf_idf(of_classes: bool, train: Sequence[str], labels: np.ndarray, dev: Sequence[str]) -> tuple[np.ndarray, float]:
    """The dev predictions of a linear model on words (1 to 2) and characters (2 to 5), and its strength."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    features = make_union(words, characters)
    seen, shown = features.fit_transform(train), features.transform(dev)
    if of_classes:
        model = LogisticRegression(solver="liblinear")
        grid = {"C": STRENGTHS}
        folds = StratifiedKFold
        model = model if len(np.unique(labels)) == 2 else LogisticRegression(max_iter=1000)
        most = int(np.unique(labels, return_counts=True)[1].min())
    else:
        model = Ridge()
        grid = {"alpha": tuple(1 / strength for strength in STRENGTHS)}
        folds = KFold
        most = len(labels)
    if most < 2:  # a class with one row is in no fold's train and test rows
        return model.fit(seen, labels).predict(shown), 1.0
    split = folds(min(FOLDS, most), shuffle=True, random_state=0)
    search = GridSearchCV(model, grid, cv=split).fit(seen, labels)
    return search.predict(shown), STRENGTHS[search.best_index_]


def metric_of(metric: str, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """A metric in percent, 0 if it is undefined, and the ends of its interval for other dev rows."""
    value = 100 * (compute((metric,), predicted, true)[metric] or 0.0)
    spread = pseudo_values(metric, predicted, true).std(ddof=1) / math.sqrt(len(true))
    half = -special.ndtri((1 - LEVEL) / 2) * spread
    lowest = -100.0 if metric in ("matthews", "pearson", "spearman") else 0.0
    return {"value": value, "low": max(lowest, value - half), "high": min(100.0, value + half)}


def by_class(task: Task, true: np.ndarray, predictions: Predictions) -> list[dict[str, Any]]:
    """For each method the means over its runs: precision, recall and F1 of each class, without runs where it is 0 / 0,
    and the number of runs that predicted the class; and the confusion, rows of each true class by the predicted one."""
    size, methods = len(task.labels), []
    for label, runs in predictions.items():
        confusions = np.zeros((len(runs), size, size))
        for confusion, predicted in zip(confusions, runs, strict=True):
            np.add.at(confusion, (true, predicted), 1)
        right = confusions.diagonal(axis1=1, axis2=2)
        rows = confusions.sum(axis=2)
        columns = confusions.sum(axis=1)
        shares = {"precision": (right, columns), "recall": (right, rows), "f1": (2 * right, rows + columns)}
        with np.errstate(invalid="ignore"):
            means = {name: pd.DataFrame(a / b).mean().tolist() for name, (a, b) in shares.items()}  # without 0 / 0
        means["predicted_in"] = (columns > 0).sum(axis=0).tolist()
        methods.append({"label": label, "confusion": confusions.mean(axis=0).tolist(), **means})
    return methods


def error_rows(
    task: Task, data: TaskData, predictions: Predictions, others: Mapping[str, Sequence[Any]] | None = None
) -> pd.DataFrame:
    """The dev rows that most runs get wrong, the worst first; of scores, all rows by the mean residual.

    Args:
        others: The further columns of the dev file, such as a number of each row.
    Returns: Columns row (from 1), wrong (runs) or residual, label, the prediction of each method (the most frequent
        class, or the mean), the texts and the others; one that is called like an earlier column as `text: row`.
    """
    split = data.splits[task.validation_splits[0]]
    true = np.asarray(split["label"])
    every = np.concatenate([np.array(runs) for runs in predictions.values()])
    if task.labels:
        badness = (every != true).sum(axis=0)
        rows = [row for row in np.argsort(-badness, kind="stable") if 2 * badness[row] > len(every)]
        columns = {"wrong": [f"{badness[row]} of {len(every)} runs" for row in rows]}
        answers = {
            label: [np.bincount(of_row).argmax() for of_row in np.array(p).T] for label, p in predictions.items()
        }
        show = task.labels.__getitem__
    else:
        residuals = every.mean(axis=0) - true
        low, high = task.label_range
        digits = 4 + math.ceil(math.log10(max(1.0, max(-low, high) / (high - low))))  # 4 that differ in the range
        rows = [*np.argsort(-abs(residuals), kind="stable")]
        columns = {"residual": [f"{residuals[row]:+.{digits}g}" for row in rows]}
        answers = {label: np.mean(runs, axis=0) for label, runs in predictions.items()}
        show = f"{{:.{digits}g}}".format
    columns = {"row": [int(row) + 1 for row in rows]} | columns | {"label": [show(true[row]) for row in rows]}
    columns |= {label: [show(values[row]) for row in rows] for label, values in answers.items()}
    further = {("text", name): split[name] for name in task.columns}
    further |= {("column", name): values for name, values in (others or {}).items()}
    for (kind, name), values in further.items():
        head = f"{kind}: {name}" if {name, name.lower()} & columns.keys() else name
        columns[head] = [values[int(row)] for row in rows]
    return pd.DataFrame(columns)


def write_rows(gathered: Gathered) -> int:
    """Write the analysis of each own task whose rows are at hand. Returns: Their number."""
    runs = gathered.own_runs.assign(label=row_names(gathered.own_runs, ["model", "protocol"]))
    entries = []
    path = gathered.folder / "analysis" / OWN_ROWS
    known = {entry["task"]: entry for entry in (read_object(path)["entries"] if path.exists() else ())}
    for name, of_task in runs.dropna(subset="device").groupby("task", sort=False):
        task = gathered.tasks[name]
        if task.is_definition_only:
            continue
        first = of_task.sort_values("train_rows", kind="stable").iloc[-1]  # of those on the most train rows
        config = run_here(gathered.state.ok[first["run_id"]], gathered).config
        data, more = read_for_run(task, config.rows, config.train.selection)
        if data.fingerprint != first["fingerprint"]:
            raise UserError(f"the rows of {name} are not those that {first['run_id']} was trained on")
        true = np.asarray(data.splits[task.validation_splits[0]]["label"])
        predictions: dict[str, list[np.ndarray]] = {}
        for row in of_task.itertuples():
            record = gathered.state.ok[row.run_id]
            predicted = dev_predictions(record, gathered.folder)["best"]
            if task.metric in METRICS:  # a module of one's own is code, which only runs execute
                check_metric(record, task.metric, predicted, true)
            predictions.setdefault(row.label, []).append(predicted)
        others = other_columns(task.own, task.folder, task.validation_splits[0])
        table = error_rows(task, data, predictions, others).to_csv(index=False, lineterminator="\n")
        write_atomically(gathered.folder / "analysis" / ERRORS.format(task=name), table.encode())
        classes = by_class(task, true, predictions) if task.labels else []
        before = known.get(name, {})
        compared = before.get("baselines", [])
        if before.get("fingerprint") != data.fingerprint:  # a minute or more for texts and classes
            compared = baselines(task, data) if task.metric in METRICS else []
        on = f", on {data.rows['train']:,} rows" if of_task["train_rows"].nunique() > 1 else ""
        on += f", on the rows of seed {first['seed']}" if first["draw"] >= 0 else ""
        of_methods = of_task.groupby("label", sort=False)["run_id"].agg(list).to_dict()
        about = {"fingerprint": data.fingerprint, "baselines": compared, "on": on}
        about |= {"methods": classes, "runs": of_methods}
        entries.append({"task": name, **facts(task, data, more), **about})
    if entries:
        add_entries(path, rounded(entries), lambda entry: entry["task"])
    return len(entries)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 no finished run of an own task, or its rows are not at hand."""
    words = [word for word in given.overrides if word.startswith((*PLACES, "task="))]  # all methods of a task
    gathered = gather(given.profile, words)
    if not (count := write_rows(gathered)):
        raise UserError(f"{gathered.folder} has no finished run of an own task whose rows are at hand (task=FILE)")
    print(f"{count} tasks: {gathered.folder / 'analysis' / OWN_ROWS}")
