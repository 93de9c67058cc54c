"""The page of published numbers, against the rows of its file."""

import csv
import json
import re

from lora.report import published
from lora.table import in_page


def cells():
    with (published.FOLDER / "published.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["base_model"] == "RoBERTa-base" and row["rerun_or_copied"] == "rerun"]


def test_the_committed_page_and_figure_are_those_of_the_file():
    page = (published.FOLDER / "README.md").read_text()
    assert in_page(page, published.MARK, f"\n{published.block().rstrip()}\n") == page
    assert json.loads((published.FOLDER / "papers.json").read_bytes()) == published.papers_figure(
        published.read_published()
    )


def test_the_sentences_count_the_papers_own_cells():
    cola = [row for row in cells() if row["task"] == "CoLA" and re.match("(Centralized )?LoRA", row["method"])]
    values, papers = sorted(float(row["value"]) for row in cola), {row["paper"] for row in cola}
    text = published.in_words(published.read_published())
    assert f"scores {values[0]:.1f} to {values[-1]:.1f} on CoLA in the {len(papers)} papers" in text
    averages: dict[str, dict[str, float]] = {}
    for row in cells():
        kind = "lora" if "LoRA" in row["method"] and "LoRA" in row["method"].split("-")[0].split("(")[0] else "full"
        if row["task"] == "Avg" and (kind == "lora" or row["method"].startswith(("FT", "Full"))):
            paper = averages.setdefault(row["paper"], {})
            paper[kind] = max(paper.get(kind, 0.0), float(row["value"]))
    gaps = [paper["lora"] - paper["full"] for paper in averages.values() if len(paper) == 2]
    assert f"in {sum(gap < 0 for gap in gaps)} of the {len(gaps)} papers that ran both" in text
