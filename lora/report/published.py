"""`python -m lora published`: the tables of published GLUE numbers, from experiments/published/published.csv.

A row of the file is one printed cell: the paper, what it ran or copied, how it selected, and where the number stands.
"""

import argparse

import pandas as pd

from lora.files import ROOT, write_atomically
from lora.table import in_page, markdown

FOLDER = ROOT / "experiments" / "published"
MARK = "published"
MODEL = "RoBERTa-base"  # the one that most papers ran
FULL, LORA = r"^(?:FT|Full)", r"^(?:Centralized )?LoRA\b"
TASKS = ("CoLA", "MRPC", "STS-B", "RTE")
PROTOCOLS = {
    "best epoch on dev": "best epoch on the dev set that is reported",
    "last epoch": "last epoch",
    "held-out half of dev": "one half of dev selects, the other is reported",
    "separate test split": "dev selects, a test split is reported",
    "unknown": "not stated",
}


def block() -> str:
    """Two tables of the cells that each paper ran itself on `MODEL`."""
    table = pd.read_csv(FOLDER / "published.csv")
    rows = table[(table["base_model"] == MODEL) & (table["rerun_or_copied"] == "rerun")]
    rows = rows.assign(name=rows["paper"].str.rpartition(" ")[0])  # without its number on arXiv
    full, lora = (rows[rows["method"].str.contains(pattern)] for pattern in (FULL, LORA))
    of_tasks = lora[lora["task"].isin(TASKS)]
    cells = of_tasks.pivot_table(index="selection", columns="task", values="value", aggfunc=[min, max]).reindex(
        [selection for selection in PROTOCOLS if selection in set(of_tasks["selection"])]
    )
    papers = [", ".join(dict.fromkeys(lora.loc[lora["selection"] == selection, "name"])) for selection in cells.index]
    by_protocol = {"Reported": cells.index.map(PROTOCOLS), "Papers": papers}
    for task in TASKS:
        ends = zip(cells["min", task], cells["max", task], strict=True)
        by_protocol[task] = [" to ".join(dict.fromkeys((f"{low:.1f}", f"{high:.1f}"))) for low, high in ends]
    best = [side[side["task"] == "Avg"].groupby("name")["value"].max() for side in (full, lora)]
    both = pd.concat(best, axis=1, keys=["Full fine-tuning", "LoRA (its best rank)"]).dropna().sort_index()
    averages = both.assign(**{"LoRA - full": both.iloc[:, 1] - both.iloc[:, 0]})
    by_paper = averages.map("{:.2f}".format).rename_axis("Paper").reset_index()
    return "\n".join(
        [
            f"**LoRA on {MODEL} by what is reported**\n",
            markdown(pd.DataFrame(by_protocol), 2),
            f"**Full fine-tuning and LoRA on {MODEL}, averages over the paper's own tasks**\n",
            markdown(by_paper),
        ]
    )


def options(parser: argparse.ArgumentParser) -> None:
    pass


def main(given: argparse.Namespace) -> None:
    """Rewrite the page's tables."""
    page = FOLDER / "README.md"
    write_atomically(page, in_page(page.read_text(), MARK, f"\n{block().rstrip()}\n").encode())
