"""The page of published numbers, against the rows of its file."""

import csv
import re
import runpy

from lora.files import ROOT
from lora.table import in_page

FOLDER = ROOT / "experiments" / "published"


def test_the_page_has_the_ranges_and_gaps_of_the_papers_own_cells():
    page, script = (FOLDER / "README.md").read_text(), runpy.run_path(str(FOLDER / "build.py"))
    assert in_page(page, "published", f"\n{script['block']().rstrip()}\n") == page
    with (FOLDER / "published.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["base_model"] == "RoBERTa-base"]
    rows = [row for row in rows if row["rerun_or_copied"] == "rerun"]
    lora = [row for row in rows if re.match("(Centralized )?LoRA", row["method"]) and "-" not in row["method"][:6]]
    cola = sorted(float(r["value"]) for r in lora if (r["task"], r["selection"]) == ("CoLA", "unknown"))
    assert len(cola) > 5 and f" | {cola[0]:.1f} to {cola[-1]:.1f} | " in page
    averages: dict[str, dict[str, float]] = {}
    for row in rows:
        kind = "lora" if row in lora else "full" if row["method"].startswith(("FT", "Full")) else ""
        if row["task"] == "Avg" and kind:
            paper = averages.setdefault(row["paper"].rpartition(" ")[0], {})
            paper[kind] = max(paper.get(kind, 0.0), float(row["value"]))
    gaps = {name: paper["lora"] - paper["full"] for name, paper in averages.items() if len(paper) == 2}
    assert gaps and all(re.search(rf"^\| {name} .*\| {gap:.2f} \|$", page, re.MULTILINE) for name, gap in gaps.items())
