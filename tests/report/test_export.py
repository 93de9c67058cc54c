"""`report --latex` and `--csv`. The truth is computed from the committed records."""

import io
import re

import pandas as pd
import pytest
from committed import committed

from lora.data.metrics import LOWER
from lora.files import ROOT
from lora.records.record import load_frame, load_records
from lora.report.export import csv_files, latex, latex_files
from lora.report.own import with_baselines
from lora.report.tables import table2

METHODS = {"Full fine-tuning": "full", "Houlsby adapters (m8)": "houlsby-m8", "LoRA (qv, r8)": "lora-qv-r8"}
TITLES = {"MRPC (acc.)": "mrpc", "CoLA (Matthews)": "cola", "STS-B (Pearson)": "stsb"}


def test_bold_are_the_best_and_what_is_within_its_standard_deviation():
    (text,) = latex_files(committed("reference/long")).values()
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    table = pd.DataFrame(lines[1:], columns=lines[0]).set_index("Method")
    runs = load_frame(load_records(ROOT / "results" / "reference" / "long")[0])
    runs = runs[runs["seed"].between(6, 10) & runs["start"].eq("pretrained") & runs["epochs"].eq(10)]
    for title, task in TITLES.items():
        cells = runs[(runs["task"] == task) & runs["slug"].isin([*METHODS.values(), "lora-qkvo-r4"])]
        cells = (100 * cells.set_index("slug")["best"]).groupby("slug").agg(["median", "std"])
        best = cells.loc[cells["median"].idxmax()]
        for label, slug in METHODS.items():
            median, std = cells.loc[slug]
            number = f"{median:.1f}"
            bold = rf"\mathbf{{{number}}}" if median >= best["median"] - best["std"] else number
            assert table.at[label, title] == rf"${bold} \pm {std:.1f}$"
    assert set(table["Trainable"]) == {"22.6M", "78k", "74k"} and lines[0][-1] == "Avg."


def test_characters_of_latex_are_escaped_and_what_was_not_trained_is_a_dash():
    cells = committed("reference/long").cells
    cells = cells[cells["experiment"].eq("glue_table2")]
    cells = cells.assign(label=cells["label"].str.replace("LoRA (qv, r8)", "100% my_method & more", regex=False))
    part = cells[~(cells["slug"].eq("full") & cells["task"].eq("cola"))]
    text = latex(table2(part), part)
    assert r"100\% my\_method \& more & 74k" in text
    lower = cells.assign(median=-cells["median"], metric=cells["metric"] + LOWER)
    texts = latex(table2(lower), lower).replace("-", ""), latex(table2(cells), cells)
    assert len({(*re.findall(r"\\mathbf\{[\d.]+\}", one),) for one in texts}) == 1 and r"\mathbf" in texts[0]
    larger = pd.concat([cells, cells.assign(model="larger", median=cells["median"] + 50)])
    assert latex(table2(larger), larger).count(r"\mathbf") == 2 * texts[1].count(r"\mathbf"), "for each encoder"
    lost = cells.assign(collapsed=2)
    baseline = {"name": "TF-IDF", "value": 99.0, "low": 98.0, "high": 100.0}
    lines = latex(with_baselines(table2(lost), lost, {"mrpc": {"baselines": [baseline], "on": ""}}), lost).splitlines()
    (tf_idf,) = [line for line in lines if line.startswith("TF-IDF")]
    assert r"$\mathbf{99.0}$ (98.0 to 100.0 over rows)" in tf_idf
    column = [line.split(" & ")[3] for line in lines if " & " in line]
    assert column[0] == "MRPC (acc.)" and sum(r"\mathbf" in cell for cell in column) == 1, "no method is as good"
    assert all(cell.endswith("(2 of 5 collapsed)") for cell in column[1:-1])
    (full,) = [line for line in text.splitlines() if line.startswith("Full fine-tuning")]
    assert re.search(r"& -- & .* & -- \\\\$", full)


def test_a_row_a_run_and_a_row_a_cell():
    report = committed("reference/long")
    runs, cells = (pd.read_csv(io.StringIO(text)) for text in csv_files(report).values())
    records = [one for one in load_records(ROOT / "results" / "reference" / "long")[0] if one.config["seed"] > 5]
    shown = runs.set_index("run_id")["best"]
    assert shown.index.is_unique and len(shown) > 150
    truth = {one.run_id: one.selected["best"]["value"] for one in records}
    assert all(truth[run_id] == pytest.approx(value) for run_id, value in shown.items())
    assert len(cells) == len(report.cells) and {"median", "std", "n", "trainable_method"} <= set(cells)
