"""What the rows of one's own task say: against scikit-learn and pandas, and at the end of a launch."""

import math
import shlex

import numpy as np
import pandas as pd
import pytest
from own_tasks import learnable, write, write_csv, write_task
from sklearn import metrics

from lora.cli import main
from lora.data.facts import facts, facts_text
from lora.data.metrics import LOWER
from lora.data.own_task import read_task
from lora.data.read import read, read_for_run
from lora.files import read_object
from lora.records.analysis import OWN_ROWS, analysis_json
from lora.records.record import load_records
from lora.report.analyses import own_rows
from lora.report.analyses.own_rows import baselines, by_class, error_rows, metric_of, tf_idf
from lora.report.build import build_report
from lora.report.own import classes_table, errors_table, not_above
from lora.report.plots import draw

RANDOM = np.random.default_rng(0)
WORDS = ["good", "bad", "film", "plot", "actor", "scene"]


@pytest.fixture
def task(tmp_path):
    """A task whose label is a word of its text, with repeated rows and dev rows that are in train."""
    texts = [" ".join(RANDOM.permutation(WORDS[2:])) + f" {WORDS[i % 2]} {i}" for i in range(60)]
    rows = pd.DataFrame({"text": texts, "label": [["yes", "no"][i % 2] for i in range(60)]})
    pd.concat([rows[:40], rows[:2], rows[2:3].assign(label="no")]).to_csv(tmp_path / "train.csv", index=False)
    rows[38:].to_csv(tmp_path / "dev.csv", index=False)
    rows[39:42].to_csv(tmp_path / "test.csv", index=False)
    return read_task(write_task(tmp_path, label="label", labels=["yes", "no"], test="test.csv"))


def test_facts_are_pandas_counts(task):
    train, dev = (pd.read_csv(task.folder / name) for name in ("train.csv", "dev.csv"))
    found = facts(task, *read_for_run(task, {"source": "own"}, "matched"))
    assert found["classes"] == train["label"].value_counts().loc[["yes", "no"]].to_dict()
    assert found["repeated"] == train["text"].duplicated().sum() == 3
    assert found["relabelled"] == (train.groupby("text")["label"].nunique() - 1).sum() == 1
    leaked = (np.flatnonzero(dev["text"].isin(train["text"])) + 1).tolist()
    assert found["leaked"] == {"dev": leaked, "test": [1]} and leaked == [1, 2]
    lines = facts_text(found)
    assert "3 train rows (7%) repeat an earlier row's text, 1 of them with another label" in lines
    assert "2 dev rows have a text that is in train, which flatters dev scores: 1, 2" in lines and len(lines) == 4


def test_baselines_learn_from_train_alone(task):
    data = read(task, "own")
    constant, linear = baselines(task, data)
    dev = np.asarray(data.splits["validation"]["label"])
    assert constant["value"] == pytest.approx(100 * np.mean(dev == 0)) and linear["value"] == 100
    train, labels = data.splits["train"]["text"], np.asarray(data.splits["train"]["label"])
    predicted, strength = tf_idf(True, train, labels, ["good 7", "bad 7"])
    assert predicted.tolist() == [0, 1] and strength in (0.01, 0.1, 1, 10, 100)
    single = np.array([0] * 39 + [1] + [0] * 3)
    assert tf_idf(True, train, single, ["bad"])[1] == 1.0, "a class with one row has no folds"
    scores, strength = tf_idf(False, train, labels * 2.5, ["good 7", "bad 7"])
    assert scores[0] < 1 < scores[1]


@pytest.mark.parametrize(
    ("metric", "value", "word"), [("accuracy", 75.0, "higher"), (f"mine.error{LOWER}", 65.0, "lower")]
)
def test_a_baseline_that_no_method_beats_is_said(metric, value, word):
    columns = {"task": "jobs-1", "metric": metric, "model": "minilm", "protocol": "ours", "label": [*"ABC"]}
    summary = pd.DataFrame(columns | {"median": [70.0, 68.0, math.nan]})
    one = {"name": "TF-IDF", "value": value, "low": value - 5, "high": value + 5}
    entries = {"jobs-1": {"baselines": [one, one | {"value": 70.0, "name": "other"}], "on": ", on 40 rows"}}
    (line,) = not_above(summary, entries)
    rows = f"{value:.1f} ({value - 5:.1f} to {value + 5:.1f} over rows)"
    assert line == f"TF-IDF, on 40 rows, jobs-1: {rows}: no median in the table is {word}"
    third = {"jobs-1": {"baselines": [one | {"value": 33.3333}], "on": ""}}  # a third, as it is stored
    assert not_above(summary.assign(median=100 / 3), third), "a tie"
    others = {"higher": "A; C", "lower": "A; B"}
    mixed = summary.assign(median=[value, 90.0, 10.0])
    (line,) = not_above(mixed, entries)
    assert line == f"TF-IDF, on 40 rows, jobs-1: {rows}: medians that are not {word}: {others[word]}"
    (line,) = not_above(mixed.assign(label="A", model=["minilm", "x", "y"]), entries)
    assert line.endswith(f": A, all-MiniLM-L6-v2; A, {'y' if word == 'higher' else 'x'}"), "each with its encoder"
    assert not not_above(summary.assign(median=90.0 if word == "higher" else 10.0), entries)


def test_an_accuracy_has_the_binomial_interval():
    true = np.arange(100) % 2
    found = metric_of("accuracy", np.where(np.arange(100) < 80, true, 1 - true), true)
    half = 1.959964 * 100 * np.sqrt(0.8 * 0.2 / 99)
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([80, 80 - half, 80 + half])
    near = metric_of("accuracy", np.where(np.arange(100) < 98, true, 1 - true), true)
    assert near["low"] < 98 and near["high"] == 100, "no accuracy is higher"


def test_classes_are_scored_as_scikit_learn_does(task):
    true, runs = RANDOM.integers(0, 2, 50), [RANDOM.integers(0, 2, 50)] * 2
    (found,) = by_class(task, true, {"LoRA": runs})
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(true, runs[0])
    assert np.allclose([found["precision"], found["recall"], found["f1"]], [precision, recall, f1])
    assert np.allclose(found["confusion"], metrics.confusion_matrix(true, runs[0]))
    two = by_class(task, true, {"LoRA": [runs[0], true]})[0]["f1"]
    assert np.allclose(two, np.mean([f1, [1, 1]], axis=0)), "means over the runs, not of the runs pooled"
    (once,) = by_class(task, true, {"LoRA": [np.zeros(50, int), true]})
    assert once["precision"][1] == 1 and once["predicted_in"] == [2, 1]
    once = {"task": "t", "methods": [once], "runs": {"LoRA": ["a", "b"]}}
    assert classes_table({"t": once}, {"t": task.labels})["Precision"].map(str).tolist()[1] == "100.0 (1 of 2 runs)"
    (never,) = by_class(task, true, {"LoRA": [np.zeros(50, int)]})
    assert math.isnan(never["precision"][1]) and never["recall"][1] == 0


def test_rows_that_most_runs_get_wrong_come_with_their_text(task):
    data = read(task, "own")
    true, split = np.asarray(data.splits["validation"]["label"]), data.splits["validation"]
    wrong = true.copy()
    wrong[[4, 9]] = 1 - wrong[[4, 9]]
    half = true.copy()
    half[4] = 1 - half[4]
    found = error_rows(task, data, {"A": [wrong, wrong], "B": [half, true]})
    assert found["row"].tolist() == [5] and found["wrong"].tolist() == ["3 of 4 runs"]
    assert found["text"].item() == split["text"][4] and found["label"].item() == task.labels[true[4]]
    more = error_rows(task, data, {"A": [wrong]}, {"ref": [f"T{number}" for number in range(len(true))], "row": true})
    assert more["ref"].tolist() == ["T4", "T9"] and more.columns.tolist()[-3:] == ["text", "ref", "column: row"]


def test_texts_may_be_called_like_the_other_columns(tmp_path):
    rows = [(f"one {number}", f"two {number}", ["bad", "good"][number % 2]) for number in range(6)]
    for split in ("train", "dev"):
        write_csv(tmp_path / f"{split}.csv", rows, ("Wrong", "LoRA", "mood"))
    task = read_task(write_task(tmp_path, columns=["Wrong", "LoRA"]))
    error_rows(task, read(task, "own"), {"LoRA": [np.zeros(6, int)]}).to_csv(tmp_path / "errors.csv", index=False)
    found = errors_table(tmp_path / "errors.csv")
    assert found.columns.tolist() == ["Row", "Wrong", "Label", "LoRA", "text: Wrong", "text: LoRA"]
    assert found.iloc[0].tolist() == [2, "1 of 1 runs", "good", "bad", "one 1", "two 1"]


@pytest.fixture
def own(tiny_overrides) -> list[str]:
    """A sweep of tiny runs on a task of one's own, without the task."""
    kept = [one for one in tiny_overrides if not one.startswith(("profile=", "task=", "data.path"))]
    return ["-m", "profile=own", *kept, "experiment=own_task"]


def test_scores_have_a_mean_a_ridge_and_residuals(own, tmp_path):
    scores = [(f"word {number} {'good' if number % 3 else 'bad'}", f"{number % 3}") for number in range(60)]
    for split in ("train", "dev"):
        write_csv(tmp_path / "data" / f"{split}.csv", scores, ("row", "mood"))
    path = write_task(tmp_path / "data", "scores", columns=["row"], labels=None, range=[0, 2], metric="pearson")
    assert main([*own, f"task={path}", "method=full", "seed=1,2"]) == 0
    report = build_report("own", [f"runtime.results={tmp_path}/results"])
    (table,) = [table for table in report.tables if table.name == "table2_own"]
    assert table.cells["Method"].tolist()[1:] == ["Mean of the train scores", "TF-IDF, ridge"]
    (name,) = (one for one in report.figures if one.startswith("scatter_"))
    (panel,) = report.figures[name]["panels"]
    (series,) = panel["series"]
    (listed,) = (table.values for table in report.tables if table.name.startswith("errors_"))
    assert listed.columns.tolist()[:3] == ["Row", "Residual", "Label"]
    assert len(series["x"]) == 60 and set(series["x"]) == {0, 1, 2}
    assert draw(report.figures[name])["svg"].startswith(b"<?xml")


def test_test_rows_are_scored_at_the_best_epoch_and_choose_nothing(own, model_dir, tmp_path, capsys):
    """The record's score is that of the saved adapter on the file, and without the split the run is the same."""
    plain, results = write(tmp_path / "data", 80, 60), tmp_path / "results"
    write_csv(tmp_path / "data" / "test.csv", learnable(50, 3))
    path = write_task(tmp_path / "data", "tested", test="test.csv")
    asked = [*own, "method=lora", "seed=1,2", "train.epochs=4"]
    for task in (path, plain):
        assert main([*asked, f"task={task}", "runtime.save_adapter=true"]) == 0
    records = {("test" in one.selected, one.config["seed"]): one for one in load_records(results)[0]}
    assert len(records) == 4
    for seed in (1, 2):
        one, other = records[True, seed], records[False, seed]
        best = one.selected["best"]["epoch"]
        assert one.predictions == other.predictions and one.selected["best"] == other.selected["best"]
        predicted = tmp_path / f"{one.run_id}.csv"
        where = tmp_path / "outputs" / "adapters" / one.run_id
        command = ["predict", f"--adapter={where}", f"--input={tmp_path}/data/test.csv", f"--output={predicted}"]
        assert main([*command, f"--model={model_dir}"]) == 0
        right = np.mean(pd.read_csv(predicted)["prediction"] == [mood for _, mood in learnable(50, 3)])
        assert one.selected["test"] == {"value": right, "rows": 50}
        assert [epoch["epoch"] for epoch in one.epochs if "test" in epoch["metrics"]][-1] == best
    report = build_report("own", [f"runtime.results={results}"])
    (table,) = [table for table in report.tables if table.name == "test_own"]
    scores = [records[True, seed].selected["test"]["value"] for seed in (1, 2)]
    assert table.values["Test"].item().number == pytest.approx(100 * np.mean(scores))
    write_csv(tmp_path / "data" / "test.csv", learnable(50, 4))
    assert main([*asked, f"task={path}"]) == 2
    assert "the test rows of tested-" in capsys.readouterr().err


def test_runs_before_the_test_rows_had_labels_are_counted(own, tmp_path, capsys):
    write(tmp_path / "data", 40, 30)
    test = tmp_path / "data" / "test.csv"
    write_csv(test, learnable(20, 3), ("text", "other"))
    words = [*own, f"task={write_task(tmp_path / 'data', 'late', test='test.csv')}"]
    assert main([*words, "method=lora", "seed=1"]) == main([*words, "method=bitfit", "seed=1"]) == 0
    write_csv(test, learnable(20, 3))
    assert main([*words, "method=lora", "seed=1"]) == 0
    assert "1 finished run did not score the test rows, which had no labels then: " in capsys.readouterr().err
    assert main([*words, "method=lora", "seed=1,2"]) == 0
    report = build_report("own", [f"runtime.results={tmp_path / 'results'}"])
    (table,) = (table for table in report.tables if table.name == "test_own")
    assert table.cells[["Method", "Runs"]].values.tolist() == [["BitFit", "0 of 1"], ["LoRA (qv, r8)", "1 of 2"]]
    assert table.cells["Test"].tolist()[0] == "-" != table.cells["Test"].tolist()[1]


def test_a_launch_ends_with_them(own, tmp_path, capsys, monkeypatch):
    path, results = write(tmp_path / "data", 80, 60), tmp_path / "results"
    assert main([*own, f"task={path}", "method=full,lora", "seed=1,2,3"]) == 0
    out = capsys.readouterr().out
    assert "data:    train rows by class" in out and "for other seeds and rows" in out
    report = build_report("own", [f"runtime.results={results}"])
    tables = {table.name: table for table in report.tables}
    (task,) = report.gathered.runs["task"].unique()
    assert {"Most frequent class", "TF-IDF, logistic regression"} <= set(tables["table2_own"].cells["Method"])
    assert tables["costs_own"].cells["Runs"].tolist() == ["3", "3"] and len(tables["classes_own"].cells) > 2
    listed = pd.read_csv(results / "analysis" / f"{task}.errors.csv")
    wrong = {name: table for name, table in tables.items() if name.startswith("errors_")}
    assert len(listed) == 0 or wrong
    kept = read_object(results / "analysis" / OWN_ROWS)
    monkeypatch.setattr(own_rows, "baselines", lambda *rows: pytest.fail("of the same rows, they are kept"))
    assert main([*own, f"task={path}", "method=full,lora", "seed=1,2,3"]) == 0
    assert read_object(results / "analysis" / OWN_ROWS) == kept
    monkeypatch.undo()
    assert not any(text in out for text in listed["text"]), "texts are on the page alone"
    confusion = report.figures[f"confusion_{task}_own"]
    assert confusion["panels"][0]["x_names"] == [*report.gathered.tasks[task].labels]
    assert f"{confusion['panels'][0]['values'][0][1]:.2f}" in draw(confusion)["svg"].decode()
    write_csv(tmp_path / "data" / "other.csv", learnable(5, 3), ("text", "Mood"))
    second = write_task(tmp_path / "data", "again", test="other.csv")
    assert main([*own, f"task={second}", "method=lora", "seed=1,2,3"]) == 0
    assert "data:    the test rows have no labels in column mood, and are not scored" in capsys.readouterr().out
    assert main([*own, f"task={path}", "method=bitfit", "seed=1,2,3"]) == 0
    both = build_report("own", [f"runtime.results={results}"])
    assert {task, *both.gathered.runs["task"]} == {*both.analyses.own_rows} and len(both.analyses.own_rows) == 2
    assert len(both.analyses.own_rows[task]["methods"]) == 3, "of all methods, whichever the last launch had"
    (costs,) = (table.cells for table in both.tables if table.name == "costs_own")
    assert len(costs) == 4 and set(costs["Task"]) == {*both.analyses.own_rows}
    part = build_report("own", [f"runtime.results={results}", "method=lora"])
    assert part.problems == (), "of a part, from the whole's"
    (pairs,) = (table.cells for table in both.tables if table.name == "pairs_own")
    of_task = pairs[pairs["Task"].str.startswith(task)]
    assert len(of_task) == 3 and not (of_task["... over both"] == "-").all()

    def classes(*words):
        """The report, the number of runs by task in the table of classes, and its note."""
        report = build_report("own", [f"runtime.results={results}", *words])
        (table,) = (table for table in report.tables if table.name == "classes_own")
        return report, {(row["Task"], row["Method"]): row["Runs"] for _, row in table.values.iterrows()}, table.notes

    report, counts, (note,) = classes("seed=1", "method=full")
    assert set(counts.values()) == {3} and "all runs of a method in this folder" in note and not report.problems
    assert main(["report", "own", f"runtime.results={results}"]) == 0
    single = [word for word in own if word not in ("-m", "experiment=own_task")]
    assert main([*single, f"task={path}", "method=full", "seed=4"]) == 0
    (problem,) = classes()[0].problems
    assert f"lacks 1 of the runs of {task}: rebuild it with " in problem
    _, _, _, *command = shlex.split(problem.partition("rebuild it with ")[2])  # python -m lora
    assert main(["report", "own", f"runtime.results={results}"]) == 1
    assert main(["report", "own", f"runtime.results={results}", "method=full"]) == 1, "a selection says it too"
    assert main([*command, "seed=3"]) == 0
    report, counts, _ = classes()
    assert counts[task, "Full fine-tuning"] == 4 and len(counts) == 4 and not report.problems
    content = read_object(results / "analysis" / OWN_ROWS)
    older = [{key: value for key, value in entry.items() if key != "on"} for entry in content["entries"]]
    (results / "analysis" / OWN_ROWS).write_bytes(analysis_json(content["made_from"], older))
    (problem,) = build_report("own", [f"runtime.results={results}"]).problems
    assert "was made by an older version: rebuild it" in problem
