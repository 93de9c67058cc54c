"""The page of published GLUE numbers, from published.csv beside it: `python experiments/published/build.py`.

A row of the file is one printed cell: the paper, what it ran or copied, how it selected, and where the number stands.
"""

from pathlib import Path

import pandas as pd

from lora.files import write_atomically
from lora.report.command import draw_changed
from lora.report.figures import Figure
from lora.table import in_page, markdown

FOLDER = Path(__file__).parent
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


def rerun() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of full fine-tuning and of LoRA that each paper ran itself on `MODEL`."""
    table = pd.read_csv(FOLDER / "published.csv")
    rows = table[(table["base_model"] == MODEL) & (table["rerun_or_copied"] == "rerun")]
    rows = rows.assign(name=rows["paper"].str.rpartition(" ")[0])  # without its number on arXiv
    return rows[rows["method"].str.contains(FULL)], rows[rows["method"].str.contains(LORA)]


def span(values: pd.Series) -> str:
    """`54.2 to 64.4`, or the value if there is one."""
    return " to ".join(dict.fromkeys((f"{values.min():.1f}", f"{values.max():.1f}")))


def papers_figure(lora: pd.DataFrame) -> Figure:
    """LoRA on CoLA: a line per paper, a point per rank."""
    cola = lora[lora["task"] == "CoLA"].sort_values("value")
    names = list(dict.fromkeys(cola["name"]))
    points = {"x": cola["name"].map(names.index).tolist(), "y": cola["value"].tolist()}
    panel = {"title": "", "names": names, "bounds": [], "series": [{"label": "a printed cell", **points}]}
    title = f"LoRA on {MODEL}, CoLA, in the papers that ran it"
    return {"title": title, "note": "", "kind": "intervals", "x": "Matthews", "log_x": False, "panels": [panel]}


def sentences(lora: pd.DataFrame, gaps: pd.Series) -> list[str]:
    """`gaps`: paper -> LoRA minus full fine-tuning on its own average."""
    cola, rte = (lora[lora["task"] == task] for task in ("CoLA", "RTE"))
    started = rte["start"] == "mnli"
    return [
        f"- **One method, one model, one task:** LoRA on {MODEL} scores {span(cola['value'])} on CoLA in the "
        f"{cola['name'].nunique()} papers that ran it.",
        f"- **RTE depends on the start:** {span(rte.loc[started, 'value'])} from an MNLI run (the LoRA paper), "
        f"{span(rte.loc[~started, 'value'])} in the {rte.loc[~started, 'name'].nunique()} papers that mention none.",
        f"- **Full fine-tuning is above LoRA** on the paper's own average in {(gaps < 0).sum()} of the {len(gaps)} "
        f"papers that ran both, by {-gaps.max():.2f} to {-gaps.min():.2f} points. The LoRA paper copied its row of "
        f"full fine-tuning, and has LoRA above.",
    ]


def block() -> str:
    """Three sentences, a figure, and two tables of the cells that each paper ran itself on `MODEL`."""
    full, lora = rerun()
    by_protocol = []
    for selection, rows in lora.groupby("selection"):
        line = {"Reported": PROTOCOLS[selection], "Papers": ", ".join(rows["name"].unique())}
        by_protocol.append(line | {task: span(rows.loc[rows["task"] == task, "value"]) for task in TASKS})
    by_protocol.sort(key=lambda line: list(PROTOCOLS.values()).index(line["Reported"]))
    best = [side[side["task"] == "Avg"].groupby("name")["value"].max() for side in (full, lora)]
    averages = pd.concat(best, axis=1, keys=["Full fine-tuning", "LoRA (its best rank)"]).dropna().sort_index()
    averages["LoRA - full"] = averages.iloc[:, 1] - averages.iloc[:, 0]
    by_paper = averages.map("{:.2f}".format).rename_axis("Paper").reset_index()
    return "\n".join(
        [
            *sentences(lora, averages["LoRA - full"]),
            f"\n![LoRA on {MODEL} in different papers](papers.png)\n",
            f"**LoRA on {MODEL} by what is reported**\n",
            markdown(pd.DataFrame(by_protocol), 2),
            f"**Full fine-tuning and LoRA on {MODEL}, averages over the paper's own tasks**\n",
            markdown(by_paper),
        ]
    )


def main() -> None:
    """Rewrite the page's block and its figure."""
    page = FOLDER / "README.md"
    write_atomically(page, in_page(page.read_text(), MARK, f"\n{block().rstrip()}\n").encode())
    draw_changed(FOLDER / "papers", papers_figure(rerun()[1]))


if __name__ == "__main__":
    main()
