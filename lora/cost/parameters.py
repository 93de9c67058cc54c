"""`python -m lora parameters`: trainable parameters at full size, counted without weights, beside published numbers;
with --memory the accelerator memory that a run needs."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from lora.checks import build
from lora.cost.machine import whole
from lora.cost.memory import memory_table
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import METHODS, apply
from lora.methods.configs import MethodConfig
from lora.models.load import model_of_size
from lora.models.modules import count_parameters
from lora.models.sizes import ENCODER_SIZES

PUBLISHED = ROOT / "experiments" / "params" / "published.csv"
OUTPUTS = 3  # of the head: MNLI's, as in the one checkpoint that the authors ship with their code


@dataclass(frozen=True)
class Published:
    """A row of experiments/params/published.csv.

    Args:
        table: The paper's table that has the row or its setting.
        printed: As printed, such as `0.3M`; empty if the table is about another model.
        exact: By the paper's formula for |Theta| (section 5.1), computed independently of this code; None if unknown.
    """

    table: str
    row: str
    model: str
    config: MethodConfig
    printed: str
    exact: int | None

    @property
    def label(self) -> str:
        return self.row if self.table in ("5", "6") else f"{self.row} ({self.config.slug})"


def read_published() -> list[Published]:
    rows = []
    for line in pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False).to_dict("records"):
        arguments = {key: int(line[key]) for key in ("rank", "bottleneck", "drop_layers") if line[key]}
        arguments |= {"targets": line["targets"].split()} if line["targets"] else {}
        config = build(METHODS[line["method"]].config, arguments)
        exact = int(line["exact"]) if line["exact"] else None
        rows.append(Published(line["table"], line["row"], line["model"], config, line["printed"], exact))
    return rows


def count(model: str, config: MethodConfig) -> tuple[int, int]:
    """Trainable parameters of a method on a model of a published size: without the head, and with it."""
    with torch.device("meta"):  # names and shapes, no values
        built = model_of_size(model, OUTPUTS)
    apply(built, config)
    counts = count_parameters(built)
    return counts["trainable_method"], counts["trainable_method"] + counts["trainable_head"]


def off_printed(printed: str, counted: int) -> float:
    """Millions above the printed number, at its precision: 0.0 when the count rounds to it."""
    return round(round(counted / 1e6, 1) - float(printed.removesuffix("M")), 1)


def table(rows: Sequence[Published]) -> str:
    """A Markdown table of the rows. `Published` and `Difference` have the exact number, if any, in parentheses."""
    lines = []
    for row in rows:
        without_head, with_head = count(row.model, row.config)
        published, difference = row.printed, ""
        if row.printed:
            off = off_printed(row.printed, without_head)
            difference = f"{off:+.1f}M" if off else "0.0M"
        if row.exact is not None:
            apart = without_head - row.exact
            exactly = f"{apart:+,}" if apart else "0"
            published = f"{published} ({row.exact:,})" if published else f"{row.exact:,}"
            difference = f"{difference} ({exactly})" if difference else exactly
        lines.append(
            {
                "Table": row.table,
                "Model": row.model,
                "Row": row.label,
                "Without head": f"{without_head:,}",
                "With head": f"{with_head:,}",
                "Published": published or "-",
                "Difference": difference or "-",
            }
        )
    aligned = ("left", "left", "left", *["right"] * 4)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True, colalign=aligned)


FOOTNOTE = f"""
Without head: what the method trains in the encoder, as the paper counts (its authors, microsoft/LoRA issue 16).
With head: and the classification head, here with {OUTPUTS} outputs, which trains too.
Published: as the paper prints it and, in parentheses, by its formulas for |Theta| (section 5.1).
Difference: of the count without head from these; 0.0M where it rounds to the printed number. Adapters of size 64 do
not, by the paper's own formula; nothing here is fitted to agree.
Tables 5 and 6 are about GPT-3: these are their settings on other models."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(ENCODER_SIZES), help="only this model")
    parser.add_argument("--memory", action="store_true", help="the accelerator memory of the committed table's runs")
    parser.add_argument("--processes", type=whole, default=1, help="with --memory: GPUs that share a batch")
    parser.add_argument("overrides", nargs="*", help="with --memory: those of one run")


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call."""
    if chosen.memory:
        print(memory_table([(chosen.processes, chosen.overrides)]) if chosen.overrides else memory_table())
        return
    if chosen.overrides:
        raise UserError(f"{' '.join(chosen.overrides)} is of a run: only --memory takes one")
    print(table([row for row in read_published() if chosen.model in (None, row.model)]) + "\n" + FOOTNOTE)
