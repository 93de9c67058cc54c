"""The folders of measurements, and their files. No torch."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from lora.errors import UserError
from lora.files import REFERENCE, RESULTS, ROOT

COMMITTED = RESULTS / REFERENCE


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folder of measurements."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results, which git ignores)")
    text = f"{COMMITTED.relative_to(ROOT)}, which is committed"
    place.add_argument("--reference", dest="results", action="store_const", const=COMMITTED, help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build the tables again")


def check_writable(folder: Path) -> None:
    """Raises: UserError: If results cannot be written there, so that a measurement does not find out at its end."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"cannot write results to {folder}: {existing} is not a folder in which you may write")


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
