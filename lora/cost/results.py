"""Where the benchmark's results lie, and the tables that are built from what was measured. No torch here."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lora.cost.throughput import tables as table
from lora.cost.throughput.summary import summarise
from lora.errors import UserError
from lora.files import REFERENCE, RESULTS, ROOT, write_atomically

OWN, COMMITTED = RESULTS / "bench", RESULTS / REFERENCE / "bench"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def add_reference(parser: argparse.ArgumentParser) -> None:
    """The option that all benchmarks share: where their results go."""
    parser.add_argument(
        "--reference", action="store_true", help=f"write to {COMMITTED.relative_to(ROOT)}, which is committed"
    )


def results_folder(reference: bool) -> Path:
    return COMMITTED if reference else OWN


def write_tables(folder: Path, readme: Path | None) -> list[dict[str, Any]]:
    """Build summary.json and bench.md of every device from its measurements.

    Args:
        readme: Its block is written from all of them; None writes none.
    Raises: UserError: If a file cannot be read or written.
    """
    summaries = []
    for path in sorted(folder.glob("*/measurements.json")):
        try:
            summary = summarise(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no measurements of this benchmark: {type(error).__name__}: {error}"
            ) from error
        write_atomically(path.with_name("summary.json"), as_json(summary))
        write_atomically(path.with_name("bench.md"), table.document(summary).encode())
        summaries.append(summary)
    if summaries and readme is not None:
        before = readme.read_text()
        after = table.in_readme(before, table.block(summaries))
        if after != before:
            write_atomically(readme, after.encode())
    return summaries


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()
