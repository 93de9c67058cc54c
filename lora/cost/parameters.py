"""`python -m lora parameters`: trainable parameters at full size, counted without weights; and published numbers."""

import argparse
import copy
import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora.checks import SettingsError, build
from lora.errors import UserError
from lora.files import ROOT
from lora.methods import METHODS, apply
from lora.methods.configs import MethodConfig
from lora.models.modules import count_parameters
from lora.models.sizes import SIZES, closed_form

PUBLISHED = ROOT / "experiments" / "params" / "published.csv"
ARGUMENTS = ("targets", "rank", "bottleneck", "drop_layers")
COLUMNS = ("table", "row", "model", "method", *ARGUMENTS, "printed", "exact", "source")
OUTPUTS = 3  # of the head: MNLI's, as in the one checkpoint that the authors ship with their code


@dataclass(frozen=True)
class Published:
    """A row of experiments/params/published.csv.

    Args:
        table: The paper's table that has the row or its setting.
        printed: As printed, such as `0.3M`; None if the table is about another model.
        exact: By the paper's formula for |Theta| (section 5.1), computed independently of this code; None if unknown.
    """

    table: str
    row: str
    model: str
    config: MethodConfig
    printed: str | None
    exact: int | None
    source: str

    @property
    def label(self) -> str:
        return self.row if self.table in ("5", "6") else f"{self.row} ({self.config.slug})"


@dataclass(frozen=True)
class Count:
    """Trainable parameters of one row: counted on the model, and by `closed_form`."""

    published: Published
    without_head: int
    with_head: int
    closed_form: int

    @property
    def off_printed(self) -> float | None:
        """Millions above the printed number, at its precision: 0.0 when the count rounds to it."""
        if self.published.printed is None:
            return None
        return round(round(self.without_head / 1e6, 1) - millions(self.published.printed), 1)

    def as_dict(self) -> dict[str, Any]:
        published = self.published
        return {
            "table": published.table,
            "row": published.row,
            "model": published.model,
            "method": published.config.slug,
            "without_head": self.without_head,
            "with_head": self.with_head,
            "closed_form": self.closed_form,
            "printed": published.printed,
            "exact": published.exact,
            "off_printed_millions": self.off_printed,
            "source": published.source,
        }


def millions(printed: str) -> float:
    return float(printed.removesuffix("M"))


def read_published(path: Path = PUBLISHED) -> list[Published]:
    """Read the published rows. Raises: UserError: If the file cannot be read, or a row has the wrong form."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        found = ", ".join(map(str, lines[0])) if lines else "no rows"
        raise UserError(f"{path} must have rows with the columns {', '.join(COLUMNS)}; found: {found}")
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            rows.append(_published(line))
        except (SettingsError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return rows


def _published(line: Mapping[str, str]) -> Published:
    if line["model"] not in SIZES:
        raise ValueError(f"model must be one of {', '.join(SIZES)}, got {line['model']!r}")
    if line["method"] not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {line['method']!r}")
    arguments = {k: line[k].split() if k == "targets" else int(line[k]) for k in ARGUMENTS if line[k]}
    if line["printed"]:
        millions(line["printed"])
    return Published(
        table=line["table"],
        row=line["row"],
        model=line["model"],
        config=build(METHODS[line["method"]].config, arguments),
        printed=line["printed"] or None,
        exact=int(line["exact"]) if line["exact"] else None,
        source=line["source"],
    )


def model_of_size(model: str, outputs: int, attention: str = "eager") -> nn.Module:
    """A model of a published size, with its classification head and newly initialised weights."""
    sizes = dict(SIZES[model])
    settings = AutoConfig.for_model(sizes.pop("model_type"), num_labels=outputs, **sizes)
    settings._attn_implementation = attention
    return AutoModelForSequenceClassification.from_config(settings)


@functools.cache
def skeleton(model: str) -> nn.Module:
    """The same on the meta device: names and shapes, no values. It is cached: do not change it."""
    with torch.device("meta"):
        return model_of_size(model, OUTPUTS)


def count(published: Published) -> Count:
    model = copy.deepcopy(skeleton(published.model))
    apply(model, published.config)
    counts = count_parameters(model)
    without_head = counts["trainable_method"]
    return Count(
        published,
        without_head=without_head,
        with_head=without_head + counts["trainable_head"],
        closed_form=closed_form(published.model, published.config),
    )


def table(counts: Sequence[Count]) -> str:
    """A Markdown table of the rows. `Published` and `Difference` have the exact number, if any, in parentheses."""
    lines = []
    for each in counts:
        printed, exact, off = each.published.printed, each.published.exact, each.off_printed
        difference = None if exact is None else each.without_head - exact
        lines.append(
            {
                "Table": each.published.table,
                "Model": each.published.model,
                "Row": each.published.label,
                "Without head": f"{each.without_head:,}",
                "With head": f"{each.with_head:,}",
                "Closed form": f"{each.closed_form:,}",
                "Published": _both(printed, None if exact is None else f"{exact:,}"),
                "Difference": _both(
                    None if off is None else f"{off:+.1f}M" if off else "0.0M",
                    None if difference is None else f"{difference:+,}" if difference else "0",
                ),
            }
        )
    aligned = ("left", "left", "left", *["right"] * 5)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True, colalign=aligned)


def _both(printed: str | None, exact: str | None) -> str:
    if printed is None:
        return exact or "-"
    return printed if exact is None else f"{printed} ({exact})"


NOTES = f"""
Without head: what the method trains in the encoder, as the paper counts (its authors, microsoft/LoRA issue 16).
With head: and the classification head, here with {OUTPUTS} outputs, which trains too.
Published: as the paper prints it and, in parentheses, by its formulas for |Theta| (section 5.1).
Difference: of the count without head from these; 0.0M where it rounds to the printed number. Adapters of size 64 do
not, by the paper's own formula; nothing here is fitted to agree.
Tables 5 and 6 are about GPT-3: these are their settings on other models."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(SIZES), help="only this model")
    parser.add_argument("--table", choices=["2", "5", "6", "10"], help="only this table of the paper")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call or in published.csv."""
    rows = [r for r in read_published() if chosen.model in (None, r.model) and chosen.table in (None, r.table)]
    if not rows:
        raise UserError(f"table {chosen.table} has no row for model {chosen.model}")
    counts = [count(row) for row in rows]
    if chosen.json:
        print(json.dumps([each.as_dict() for each in counts], indent=2))
    else:
        print(table(counts) + "\n" + NOTES)
