"""The folders of measurements, and their files. No torch."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lora.files import REFERENCE, RESULTS, ROOT

COMMITTED = RESULTS / REFERENCE


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folder of measurements."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results, which git ignores)")
    text = f"{COMMITTED.relative_to(ROOT)}, which is committed"
    place.add_argument("--reference", dest="results", action="store_const", const=COMMITTED, help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build the tables again")


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
