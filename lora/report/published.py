"""`python -m lora published`: the page of published GLUE numbers, from experiments/published/published.csv.

A row of the file is one printed cell: the paper, what it ran or copied, how it selected, and where the number stands.
"""

import argparse
from collections.abc import Iterable

import pandas as pd

from lora.files import ROOT, write_atomically
from lora.report.figures import Figure
from lora.report.write import draw_changed
from lora.table import in_page, markdown

FOLDER = ROOT / "experiments" / "published"
MARK = "published"
MODEL = "RoBERTa-base"  # the one that most papers ran
LORA = r"^(?:Centralized )?LoRA\b"
FULL = r"^(?:FT|Full)"
SHOWN = ("CoLA", "MRPC", "STS-B", "RTE")
TITLES = {"full": "Full fine-tuning", "lora": "LoRA (its best rank)", "gap": "LoRA - full"}
PROTOCOLS = {
    "best epoch on dev": "best epoch on the dev set that is reported",
    "last epoch": "last epoch",
    "held-out half of dev": "one half of dev selects, the other is reported",
    "separate test split": "dev selects, a test split is reported",
    "unknown": "not stated",
}


def read_published() -> pd.DataFrame:
    """The cells that each paper ran itself on `MODEL`. `name` is the paper's, without its number on arXiv."""
    table = pd.read_csv(FOLDER / "published.csv")
    rows = table[(table["base_model"] == MODEL) & (table["rerun_or_copied"] == "rerun")]
    return rows.assign(name=rows["paper"].str.rpartition(" ")[0])


def of_method(rows: pd.DataFrame, pattern: str) -> pd.DataFrame:
    return rows[rows["method"].str.contains(pattern)]


def extremes(values: Iterable[float]) -> str:
    """`54.2 to 64.4`, or the value if there is one, or `-`."""
    texts = dict.fromkeys(f"{value:.1f}" for value in sorted(values))
    return " to ".join(dict.fromkeys([next(iter(texts)), [*texts][-1]])) if texts else "-"


def by_protocol(rows: pd.DataFrame) -> pd.DataFrame:
    """LoRA's published cells by how the papers selected what they report."""
    lines = []
    for selection, words in PROTOCOLS.items():
        chosen = of_method(rows, LORA)[lambda table, selection=selection: table["selection"] == selection]
        if len(chosen):
            cells = {task: extremes(chosen.loc[chosen["task"] == task, "value"]) for task in SHOWN}
            lines.append({"Reported": words, "Papers": ", ".join(dict.fromkeys(chosen["name"])), **cells})
    return pd.DataFrame(lines)


def beside_full(rows: pd.DataFrame) -> pd.DataFrame:
    """The papers that ran LoRA and full fine-tuning: each paper's own averages. Of several ranks, LoRA's highest."""
    averages = rows[rows["task"] == "Avg"]
    full, lora = (of_method(averages, pattern).groupby("name")["value"].max() for pattern in (FULL, LORA))
    both = pd.DataFrame({"full": full, "lora": lora}).dropna().sort_index()
    return both.assign(gap=both["lora"] - both["full"])


def in_words(rows: pd.DataFrame) -> str:
    """Three sentences on the published numbers."""
    lora = of_method(rows, LORA)
    cola, rte = (lora[lora["task"] == task] for task in ("CoLA", "RTE"))
    started = rte[rte["start"] == "mnli"]
    others = rte[rte["start"] != "mnli"]
    both = beside_full(rows)
    below = int((both["gap"] < 0).sum())
    return "\n".join(
        [
            f"- **One method, one model, one task:** LoRA on {MODEL} scores {extremes(cola['value'])} on CoLA in the "
            f"{cola['name'].nunique()} papers that ran it.",
            f"- **RTE hangs on the start:** {extremes(started['value'])} from an MNLI run (the LoRA paper), "
            f"{extremes(others['value'])} in the {others['name'].nunique()} papers that do not say that they use one.",
            f"- **Full fine-tuning is above LoRA** on the paper's own average in {below} of the {len(both)} papers "
            f"that ran both, by {-both['gap'].max():.2f} to {-both['gap'].min():.2f} points. The LoRA paper copied its "
            f"row of full fine-tuning, and has LoRA above.",
        ]
    )


def papers_figure(rows: pd.DataFrame) -> Figure:
    """One point per paper: LoRA on CoLA and on RTE."""
    panels = []
    for task, metric in (("CoLA", "Matthews"), ("RTE", "accuracy")):
        cells = of_method(rows, LORA)[lambda table, task=task: table["task"] == task].sort_values("value")
        several = cells["name"].duplicated(keep=False)
        ranks = cells["method"].str.extract(r"(?:r=|rank[ =])(\d+)")[0]
        names = [
            name + f" (r = {rank})" * more + " (from MNLI)" * (start == "mnli")
            for name, rank, more, start in zip(cells["name"], ranks, several, cells["start"], strict=True)
        ]
        y = cells["value"].tolist()
        series = [{"label": "", "names": names, "x": list(range(len(y))), "y": y, "low": y, "high": y}]
        panels.append({"title": task, "y": metric, "series": series})
    title = f"LoRA on {MODEL}, as printed by the papers that ran it"
    return {"title": title, "note": "", "kind": "points", "x": "", "log_x": False, "panels": panels}


def block() -> str:
    rows = read_published()
    table = beside_full(rows)
    columns = {"Paper": table.index}
    columns |= {title: [f"{value:.2f}" for value in table[key]] for key, title in TITLES.items()}
    return "\n".join(
        [
            in_words(rows),
            f"\n![LoRA on {MODEL} in different papers](papers.png)\n",
            f"**LoRA on {MODEL} by what is reported**\n",
            markdown(by_protocol(rows), 2),
            f"**Full fine-tuning and LoRA on {MODEL}, averages over the paper's own tasks**\n",
            markdown(pd.DataFrame(columns)),
        ]
    )


def options(parser: argparse.ArgumentParser) -> None:
    pass


def main(given: argparse.Namespace) -> None:
    """Rewrite the page's block and its figure."""
    page = FOLDER / "README.md"
    write_atomically(page, in_page(page.read_text(), MARK, f"\n{block().rstrip()}\n").encode())
    draw_changed(FOLDER / "papers", papers_figure(read_published()))
